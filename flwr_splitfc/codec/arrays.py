"""Types of numpy arrays that codecs pass around."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Symbols = NDArray[np.int32]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
