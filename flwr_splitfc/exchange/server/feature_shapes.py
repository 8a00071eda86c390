"""The shapes of a sample's features that a strategy wants."""

from collections.abc import Mapping
from typing import Any, TypeAlias

FeatureShape: TypeAlias = Any
"""A shape, whose sizes may be None for any; or a tuple, list or dict of shapes."""


def as_feature_shape(wanted: FeatureShape) -> FeatureShape:
    """Return the shapes with tuples for the shape of each tensor.

    >>> as_feature_shape({"hidden": [None, 64]})
    {'hidden': (None, 64)}
    """
    if isinstance(wanted, Mapping):
        return {key: as_feature_shape(part) for key, part in wanted.items()}
    if not isinstance(wanted, tuple | list):
        return wanted
    if all(size is None or isinstance(size, int) for size in wanted):
        return tuple(wanted)
    return type(wanted)(as_feature_shape(part) for part in wanted)


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
