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
    kind, keys, position, has_gauss, cached = state["numpy"]
    unsigned = keys.numpy().astype(np.uint32)
    np.random.set_state((kind, unsigned, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])


def _numpy_state() -> tuple[Any, ...]:
    """Return NumPy's state with its uint32 keys as an int64 tensor.

    A checkpoint holds tensors, and torch supports uint32 only in part.
    """
    kind, keys, position, has_gauss, cached = np.random.get_state()
    signed = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return str(kind), signed, position, has_gauss, cached
