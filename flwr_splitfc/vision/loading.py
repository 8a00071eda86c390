"""Data sets of images by their names."""

from functools import lru_cache

import numpy as np
import torch

from flwr_splitfc.extras import imported
from flwr_splitfc.vision.images import LabelledImages
from flwr_splitfc.vision.torchvision_style import load_torchvision_style


@lru_cache(maxsize=2)
def load_dataset(
    name: str, data_dir: str = "", download: bool = True
) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and the test set of a data set; a process reads them once.

    Parameters
    ----------
    name : str
        `digits`, which comes with scikit-learn (1,797 images of 8 x 8), or the dotted
        path of a class that is called as `torchvision.datasets.MNIST` is.
    data_dir : str (default: "")
        The class's `root`, an absolute path: a run's processes start in other folders
        than its user. Unused for digits.
    download : bool (default: True)
        Whether the class may download what is missing.

    Raises
    ------
    ValueError
        If there is no such data set, or its images or labels are of another form.
    FileNotFoundError
        If `data_dir` does not exist and nothing may be downloaded.
    """
    if name == "digits":
        return _digits()
    return load_torchvision_style(name, data_dir, download)


def _digits() -> tuple[LabelledImages, LabelledImages]:
    """Return a fixed split of the digits, 1,438 to train and 359 to test."""
    digits = imported("sklearn.datasets", "examples").load_digits()
    images = torch.from_numpy(digits.images / 16).float()  # grey levels from 0 to 16
    labels = torch.from_numpy(digits.target).long()
    everything = LabelledImages(images.unsqueeze(1), labels, num_classes=10)
    # the same for every run, whatever its seed: figures are of one test set
    order = np.random.default_rng(0).permutation(len(everything))
    num_test = len(everything) // 5
    return everything.subset(order[num_test:]), everything.subset(order[:num_test])
