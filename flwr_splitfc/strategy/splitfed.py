"""SplitFed: devices train in parallel."""

from typing import Any

from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from flwr_splitfc.model import LossFn, OptimizerFn
from flwr_splitfc.strategy.split_learning import SplitLearning


class SplitFedV1(SplitLearning):
    """SplitFed with a copy of the server half for each sampled device.

    A round ends with the averages of both halves, and each turn begins with a fresh
    optimizer of the device half unless `optimizer_state` says otherwise.

    The server half's copies are weighed by the samples that each device trained on,
    whatever `devices` does with device halves: a robust strategy there does not keep
    out a device that sends very many. ``max_train_rows`` times ``max_steps`` of
    `Limits` is the most samples of a turn.

    Implementation based on https://arxiv.org/abs/2004.12088

    Parameters
    ----------
    server_model, loss_fn, optimizer
        As in `SplitLearning`. Each copy has a fresh optimizer and `scheduler` each
        round; with more `accumulate_steps` than a turn has batches, it never learns.
    devices : Strategy, optional
        Samples devices and combines their halves; default `FedAvg()`.
    **split_options
        Other parameters as in `SplitLearning`.
    """

    def __init__(
        self,
        server_model: nn.Module,
        loss_fn: LossFn | None,
        optimizer: OptimizerFn,
        *,
        devices: Strategy | None = None,
        **split_options: Any,
    ) -> None:
        # as for the copies of the server half: only so is V1 FedAvg
        split_options.setdefault("optimizer_state", "fresh")
        super().__init__(
            server_model,
            loss_fn,
            optimizer,
            devices=devices or FedAvg(),
            shared_server_half=False,
            **split_options,
        )


class SplitFedV2(SplitLearning):
    """SplitFed with one server half for all sampled devices.

    The server half takes their batches as they come; device halves are averaged.

    Implementation based on https://arxiv.org/abs/2004.12088

    Parameters
    ----------
    server_model, loss_fn, optimizer
        As in `SplitLearning`; the optimizer's state lives across batches, devices and
        rounds.
    devices : Strategy, optional
        Samples devices and combines their halves; default `FedAvg()`.
    **split_options
        Other parameters as in `SplitLearning`.
    """

    def __init__(
        self,
        server_model: nn.Module,
        loss_fn: LossFn | None,
        optimizer: OptimizerFn,
        *,
        devices: Strategy | None = None,
        **split_options: Any,
    ) -> None:
        super().__init__(
            server_model,
            loss_fn,
            optimizer,
            devices=devices or FedAvg(),
            **split_options,
        )
