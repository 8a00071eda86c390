"""What vision apps share: labelled images, how devices share them, and their batches.

Needs ``pip install "flwr-splitfc[examples]"`` where scikit-learn, torchvision or
flwr-datasets is asked for.
"""

from flwr_splitfc.batches import Augment, Batches, Samples, evaluate, turn_batches
from flwr_splitfc.vision.images import DatasetSpec, LabelledImages
from flwr_splitfc.vision.loading import load_dataset
from flwr_splitfc.vision.partition import partition
from flwr_splitfc.vision.run import (
    datasets_of,
    device_images,
    evaluate_on_test_set,
    load_data,
)

__all__ = [
    "Augment",
    "Batches",
    "DatasetSpec",
    "LabelledImages",
    "Samples",
    "datasets_of",
    "device_images",
    "evaluate",
    "evaluate_on_test_set",
    "load_data",
    "load_dataset",
    "partition",
    "turn_batches",
]
