"""Structures of tensors: tuples, lists and dicts, as layers give them.

A mapping of any type, such as an ``OrderedDict`` or a ``ModelOutput`` of Hugging Face,
is taken as the dict that it holds. Named tuples and other objects are no structures:
they would arrive without their names.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Structure: TypeAlias = Any
"""A tensor, None, or a tuple, list or dict of structures; keys are str."""


def mapped(structure: Structure, change: Callable[[Any], Any]) -> Any:
    """Return a structure alike, with `change` of each of its leaves.

    Leaves come in the order of the structure, and what is no tensor is one, too.

    >>> mapped({"a": (1, [2, None])}, lambda leaf: -leaf)
    {'a': (-1, [-2, None])}
    """
    # first: what most halves give
    if isinstance(structure, Tensor):
        return change(structure)
    if structure is None:
        return None
    if isinstance(structure, Mapping):
        return {key: mapped(part, change) for key, part in structure.items()}
    if type(structure) is tuple:
        return tuple(mapped(part, change) for part in structure)
    if type(structure) is list:
        return [mapped(part, change) for part in structure]
    return change(structure)


def leaves_of(structure: Structure) -> list[Any]:
    """Return the leaves of a structure, in its order."""
    leaves: list[Any] = []
    mapped(structure, leaves.append)
    return leaves


def float_tensors(structure: Structure) -> list[Tensor]:
    """Return the floating point tensors of a structure, which have gradients."""
    return [leaf for leaf in leaves_of(structure) if is_float(leaf)]


def is_float(leaf: object) -> bool:
    """Whether a leaf is a floating point tensor."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def rows_of(structure: Structure) -> int:
    """Return ``B``, the rows of the first floating point tensor.

    >>> rows_of({"mask": torch.ones(1, 7) > 0, "hidden": torch.zeros(16, 7)})
    16
    """
    return float_tensors(structure)[0].shape[0]


def shapes_of(structure: Structure) -> Any:
    """Return a structure's shapes, for messages; types of what is no tensor.

    >>> shapes_of({"hidden": torch.zeros(2, 3)})
    {'hidden': (2, 3)}
    """
    return mapped(structure, _shape_of)


def _shape_of(leaf: object) -> object:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__


def plain_tensors(structure: Structure) -> Structure:
    """Return a structure whose tensors are torch's own, with their graphs.

    A subclass, such as the ``MetaTensor`` of MONAI, may do something else than torch
    where it is sliced or computed with.
    """
    return mapped(structure, _plain_tensor)


def _plain_tensor(leaf: Tensor) -> Tensor:
    return leaf if type(leaf) is Tensor else leaf.as_subclass(Tensor)


def on_device(structure: Structure, device: torch.device) -> Structure:
    """Return a structure whose tensors are on a device."""
    return mapped(structure, lambda leaf: leaf.to(device))
