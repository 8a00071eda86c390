"""Models in two halves: cutting one, joining its parts, and training functions."""

from flwr_splitfc.model.adapters import trained_only
from flwr_splitfc.model.callables import LossFn, OptimizerFn, SchedulerFn, loss_on
from flwr_splitfc.model.cutting import split_at
from flwr_splitfc.model.decoupled import AuxiliaryHead, DecoupledHalf, without_auxiliary
from flwr_splitfc.model.joined import HeadAndTail, JoinedModel, joined_state_dict

__all__ = [
    "AuxiliaryHead",
    "DecoupledHalf",
    "HeadAndTail",
    "JoinedModel",
    "LossFn",
    "OptimizerFn",
    "SchedulerFn",
    "joined_state_dict",
    "loss_on",
    "split_at",
    "trained_only",
    "without_auxiliary",
]
