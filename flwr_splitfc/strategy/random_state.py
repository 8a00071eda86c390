"""The state of the global random generators, which strategies may sample from."""

import random
from math import isfinite
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's global generators."""
    return {
        "python": random.getstate(),
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` took.

    Raises
    ------
    Exception
        If it is no such state.
    """
    version, internal, gauss = state["python"]
    if gauss is not None:
        _check_normal(gauss)
    random.setstate((version, tuple(internal), gauss))
    _restore_numpy(state["numpy"])
    torch.set_rng_state(state["torch"])


def _numpy_state() -> tuple[Any, ...]:
    """Return NumPy's state with its keys, an array of uint32, as a tensor."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    # int64, as torch supports uint32 only in part
    signed = np.asarray(keys).astype(np.int64)
    tensor = torch.from_numpy(signed)
    return str(kind), tensor, position, has_gauss, cached


def _restore_numpy(state: tuple[Any, ...]) -> None:
    kind, tensor, position, has_gauss, cached = state
    _check_normal(cached)
    keys = tensor.numpy().astype(np.uint32)
    # NumPy does not look, and reads beside its keys
    if not 0 <= position <= len(keys):
        raise ValueError(f"NumPy's generator is at {position!r:.40} of {len(keys)}")
    np.random.set_state((kind, keys, position, has_gauss, cached))


def _check_normal(number: Any) -> None:
    """Refuse a normal number, kept for the next call, that was never drawn."""
    if not isinstance(number, float) or not isfinite(number):
        raise ValueError(f"a generator has kept {number!r:.40} as a normal number")
