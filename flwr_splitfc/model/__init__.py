"""Cutting a model in two halves, and joining them."""

from flwr_splitfc.model.cutting import (
    HeadAndTail,
    JoinedModel,
    LossFn,
    OptimizerFn,
    SchedulerFn,
    joined_state_dict,
    split_at,
)

__all__ = [
    "HeadAndTail",
    "JoinedModel",
    "LossFn",
    "OptimizerFn",
    "SchedulerFn",
    "joined_state_dict",
    "split_at",
]
