"""The shapes of a sample's features that a strategy wants."""

from collections.abc import Mapping
from operator import index
from typing import Any, SupportsIndex, TypeAlias

FeatureShape: TypeAlias = Any
"""A shape, whose sizes may be None for any; or a tuple, list or dict of shapes."""


def as_feature_shape(wanted: FeatureShape) -> FeatureShape:
    """Return the shapes with tuples for the shape of each tensor.

    Raises
    ------
    ValueError
        If it is none.

    >>> as_feature_shape({"hidden": [None, 64]})
    {'hidden': (None, 64)}
    """
    if isinstance(wanted, Mapping):
        return {key: as_feature_shape(part) for key, part in wanted.items()}
    if wanted is None:
        return None
    is_sequence = isinstance(wanted, tuple | list)
    if is_sequence and all(_is_size(size) for size in wanted):
        return tuple(None if size is None else index(size) for size in wanted)
    # features are no named tuples
    if type(wanted) not in (tuple, list):
        raise ValueError(
            f"feature_shape: {wanted!r:.100} is no shape of a sample's features, "
            "such as (16, 5, 5), or (None, 64) where a size varies"
        )
    return type(wanted)(as_feature_shape(part) for part in wanted)


def _is_size(size: object) -> bool:
    return size is None or isinstance(size, SupportsIndex)


def is_shaped(shapes: Any, wanted: FeatureShape) -> bool:
    """Whether shapes are as wanted, where None stands for any size or tensor."""
    if wanted is None:
        return True
    if isinstance(wanted, dict):
        if not isinstance(shapes, dict) or shapes.keys() != wanted.keys():
            return False
        return all(is_shaped(shapes[key], wanted[key]) for key in wanted)
    if not isinstance(wanted, tuple | list):
        return bool(shapes == wanted)
    if type(shapes) is not type(wanted) or len(shapes) != len(wanted):
        return False
    pairs = zip(shapes, wanted, strict=True)
    return all(is_shaped(one, other) for one, other in pairs)
