"""A data set of drawn shapes that is called and read as torchvision's classes are."""

import numpy as np
from PIL import Image, ImageDraw

NUM_CLASSES = 4


class DrawnShapes:
    """Squares and circles, light or dark, on noise: 32 x 32, 400 to train and 100 to test."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        rng = np.random.default_rng(int(train))
        self.targets = rng.integers(NUM_CLASSES, size=400 if train else 100).tolist()
        self.data = np.stack([draw_shape(rng, target) for target in self.targets])


def draw_shape(rng: np.random.Generator, target: int) -> np.ndarray:
    """uint8 (32, 32, 3)."""
    picture = Image.fromarray(rng.integers(96, 160, (32, 32, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(picture)
    x, y = rng.integers(2, 12, 2).tolist()
    draw = pen.ellipse if target % 2 else pen.rectangle
    draw((x, y, x + 17, y + 17), fill="white" if target < 2 else "black")
    return np.asarray(picture)
