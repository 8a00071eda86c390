"""SplitFC, the paper's strategy."""

from typing import Any

from torch import nn

from flwr_splitfc.codec import cut_codec
from flwr_splitfc.model import LossFn, OptimizerFn
from flwr_splitfc.strategy.split_learning import SplitLearning


class SplitFC(SplitLearning):
    """Split learning with adaptive feature-wise compression.

    Implementation based on https://arxiv.org/abs/2307.10805

    Parameters
    ----------
    server_model, loss_fn, optimizer
        As in `SplitLearning`.
    uplink_bits : float (default: 0.2)
        Bits per entry of the B x D feature matrix, everything counted; float32 is 32.
    downlink_bits : float (default: 0.4)
        Bits per entry of the gradient matrix.
    reduction : float (default: 16)
        The paper's R: one column in R is kept, in expectation.
    evaluation, evaluation_bits, channel_dim
        Settings of the codec, as in `CutCodec`.
    **split_options
        Other parameters as in `SplitLearning`.
    """

    def __init__(
        self,
        server_model: nn.Module,
        loss_fn: LossFn | None,
        optimizer: OptimizerFn,
        *,
        uplink_bits: float = 0.2,
        downlink_bits: float = 0.4,
        reduction: float = 16,
        evaluation: str = "float16",
        evaluation_bits: float | None = None,
        channel_dim: int | None = None,
        **split_options: Any,
    ) -> None:
        codec = cut_codec(
            "splitfc",
            uplink_bits=uplink_bits,
            downlink_bits=downlink_bits,
            reduction=reduction,
            evaluation=evaluation,
            evaluation_bits=evaluation_bits,
            channel_dim=channel_dim,
        )
        super().__init__(server_model, loss_fn, optimizer, codec=codec, **split_options)
