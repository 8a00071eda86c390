"""Types of numpy arrays that codecs pass around."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
"""Columns, levels, counts."""

Symbols: TypeAlias = NDArray[np.int32]
"""What the range coder takes."""

Floats: TypeAlias = NDArray[np.float32]
"""Entries of a matrix."""

Doubles: TypeAlias = NDArray[np.float64]
"""Intermediate results."""
