"""Callbacks: what is told of a run while it goes on, and what may end it."""

from flwr_splitfc.callbacks.best_model import BestModel
from flwr_splitfc.callbacks.callback import Callback
from flwr_splitfc.callbacks.early_stopping import EarlyStopping
from flwr_splitfc.callbacks.run_so_far import RunSoFar
from flwr_splitfc.callbacks.target_accuracy import TargetAccuracy
from flwr_splitfc.callbacks.tensorboard import TensorBoard

__all__ = [
    "BestModel",
    "Callback",
    "EarlyStopping",
    "RunSoFar",
    "TargetAccuracy",
    "TensorBoard",
]
