"""Steps of a server half: what is known of one before it is applied."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from flwr_splitfc.exchange.protocol.split_errors import StepRefused
from flwr_splitfc.exchange.server.half.replay_memory import KeptBatch
from flwr_splitfc.model.structures import Structure


class Update(NamedTuple):
    """One mini-batch that a server half was trained on.

    `merged` is how many, with those beside it in the list, made one optimizer step.
    """

    server_round: int
    device: str
    step: int
    merged: int = 1


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A mini-batch between the server half's forward and backward pass.

    The half itself is as it was before the pass.

    Parameters
    ----------
    features : structure of Tensor of shape (B, ...)
        The leaves of the graph, on the half's device.
    output : Tensor of shape (B, ...)
        With its graph.
    buffers : dict of str to Tensor
        The half's, as the pass leaves them.
    step : int
        The steps that were behind the half, which its randomness is drawn from.
    changes : int
        How often the half's tensors were written before: by steps, and by undoing them.
    """

    features: Structure
    output: Tensor
    buffers: dict[str, Tensor]
    step: int
    changes: int


class BegunStep:
    """A step of training whose gradient is known, and that is yet to be applied.

    Whatever is done next with the half applies it first.

    Parameters
    ----------
    apply : callable
        Applies it, if nothing has done so since.
    loss : float
        0 where the loss is the device's; NaN where no label counts.
    gradients : list of Tensor of shape (B, ...)
        By the floating point tensors of the features, of which they were wanted, on the
        CPU.

    Attributes
    ----------
    refusal : StepRefused or None
        Why it could not be applied.
    """

    def __init__(
        self, apply: Callable[[], None], loss: float, gradients: list[Tensor]
    ) -> None:
        self.loss = loss
        self.gradients = gradients
        self.refusal: StepRefused | None = None
        self._apply = apply

    def finish(self) -> None:
        """Apply the step, if nothing has done so since.

        Raises
        ------
        StepRefused
            It cannot be applied, and has changed nothing.
        """
        self._apply()
        if self.refusal is not None:
            raise self.refusal


class PendingUpdate(NamedTuple):
    """What applying a begun step needs, and its batch if it is kept for later steps."""

    begun: BegunStep
    grads: Sequence[Tensor | None]
    features: Structure
    origin: Update | None
    kept: KeptBatch | None = None
