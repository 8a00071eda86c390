"""The state of the global random generators, which strategies may sample from."""

import random
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
    """Put back what `random_state` took."""
    version, internal, gauss = state["python"]
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
    keys = tensor.numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
