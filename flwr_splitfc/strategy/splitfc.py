"""SplitFC, the strategy that compresses what crosses the cut."""

from typing import Any

from torch import nn

from flwr_splitfc.codec import CutCodec, cut_codec
from flwr_splitfc.model import LossFn, OptimizerFn
from flwr_splitfc.strategy.split_learning import SplitLearning


def splitfc_codec(
    *,
    quality: float | None = None,
    uplink_bits: float | None = None,
    downlink_bits: float | None = None,
    reduction: float | None = None,
    **settings: Any,
) -> CutCodec:
    """Return the codec of `SplitFC`: the paper's for its settings, else the default.

    >>> splitfc_codec()
    cut_codec('splitfc-rd', uplink_bits=32.0, downlink_bits=32.0, quality=0.0, \
evaluation='float16')
    >>> splitfc_codec(uplink_bits=0.1)
    cut_codec('splitfc', uplink_bits=0.1, downlink_bits=0.4, evaluation='float16')
    """
    choices = {
        "quality": quality,
        "uplink_bits": uplink_bits,
        "downlink_bits": downlink_bits,
        "reduction": reduction,
    }
    given = {key: value for key, value in choices.items() if value is not None}
    # only the paper's codec drops columns, and a budget alone is the paper's
    spends_budget = bool(given) and quality is None
    name = "splitfc" if reduction is not None or spends_budget else "splitfc-rd"
    return cut_codec(name, **given, **settings)


class SplitFC(SplitLearning):
    """Split learning with features and gradients compressed.

    Without a setting, or with a `quality`, the codec is ``splitfc-rd``: a transform
    code that is precise enough for training as if nothing was coded (docs/quality.md).
    With a `reduction`, or budgets and no quality, it is ``splitfc``, the adaptive
    feature-wise compression of https://arxiv.org/abs/2307.10805.

    Parameters
    ----------
    server_model, loss_fn, optimizer
        As in `SplitLearning`.
    quality : float, optional
        In decibels, the precision at the cut (`flwr_splitfc.codec.quality`); budgets
        are then ceilings. 0 is the automatic one, the default of ``splitfc-rd``.
    uplink_bits : float, optional
        Bits per entry of the B x D feature matrix, everything counted; float32 is 32.
        The paper's is 0.2, the default beside the two that follow.
    downlink_bits : float, optional
        Bits per entry of the gradient matrix; the paper's is 0.4.
    reduction : float, optional
        The paper's R: one column in R is kept, in expectation, and 1 keeps all. The
        default follows from `uplink_bits`, 8 at 0.2 (docs/choosing.md).
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
        quality: float | None = None,
        uplink_bits: float | None = None,
        downlink_bits: float | None = None,
        reduction: float | None = None,
        evaluation: str = "float16",
        evaluation_bits: float | None = None,
        channel_dim: int | None = None,
        **split_options: Any,
    ) -> None:
        if "codec" in split_options:
            raise ValueError(
                "SplitFC makes its codec itself, from quality, or from uplink_bits, "
                "downlink_bits and reduction: give these, or another codec to "
                "SplitLearning(codec=...)"
            )
        codec = splitfc_codec(
            quality=quality,
            uplink_bits=uplink_bits,
            downlink_bits=downlink_bits,
            reduction=reduction,
            evaluation=evaluation,
            evaluation_bits=evaluation_bits,
            channel_dim=channel_dim,
        )
        super().__init__(server_model, loss_fn, optimizer, codec=codec, **split_options)
