"""Types of numpy arrays that codecs pass around."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Columns, levels, counts.
Ints = NDArray[np.int64]

# What the range coder takes.
Symbols = NDArray[np.int32]

# Bytes, or single bits.
Octets = NDArray[np.uint8]

# What is chosen.
Mask = NDArray[np.bool_]

# Entries of a matrix.
Floats = NDArray[np.float32]

# Results that are rounded only at the end.
Doubles = NDArray[np.float64]


def to_ints(indices: Tensor | None) -> Ints | None:
    """Return a link's columns or rows as its selection is packed; None stays None."""
    if indices is None:
        return None
    array: Ints = indices.cpu().numpy()
    return array


def from_ints(indices: Ints | None) -> Tensor | None:
    """Return the columns or rows of an unpacked selection as a link has them."""
    if indices is None:
        return None
    return torch.from_numpy(indices)
