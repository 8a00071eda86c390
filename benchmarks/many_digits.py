"""A data set with a sample for each of ten thousand devices, as torchvision's are called."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

COPIES = 7


class ManyDigits:
    """scikit-learn's digits, the training set several times over: 10,500 and 297."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        digits = load_digits()
        images = np.uint8(digits.images / 16 * 255)
        split = slice(None, 1500) if train else slice(1500, None)
        copies = COPIES if train else 1
        self.data = np.concatenate(copies * [images[split]])
        self.targets = copies * digits.target[split].tolist()
