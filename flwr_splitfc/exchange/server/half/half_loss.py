"""The loss of a server half's outputs, where it is the server's."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from flwr_splitfc.exchange.protocol.split_errors import LabelsRefused, StepRefused
from flwr_splitfc.exchange.server.half.step_checks import check_labels, check_loss
from flwr_splitfc.model import LossFn
from flwr_splitfc.model.structures import shapes_of


def loss_of(loss_fn: LossFn | None, outputs: Any, labels: Tensor) -> Tensor:
    """Return the loss of outputs, a scalar with a graph; NaN where no label counts.

    Raises
    ------
    LabelsRefused, StepRefused
    """
    assert loss_fn is not None  # the session has seen to it
    # of several outputs, a loss of the user's own has to make something
    if isinstance(outputs, Tensor):
        check_labels(loss_fn, outputs, labels)
    try:
        loss = loss_fn(outputs, labels)
    except Exception as error:
        raise LabelsRefused(
            f"the loss does not take labels {tuple(labels.shape)} of {labels.dtype}"
            f" with outputs {shapes_of(outputs)}: {error}"
        ) from error
    check_loss(loss, loss_fn, labels)
    return loss


def check_loss_of_copy(loss: Tensor, originals: Iterable[Tensor]) -> None:
    """Refuse a copy's loss that depends on the weights of the original half.

    Their gradient would be in no step of the copy, and nothing would show it.

    Parameters
    ----------
    loss : Tensor
        A scalar with a graph.
    originals : iterable of Tensor
        The original's weights.

    Raises
    ------
    StepRefused
    """
    wanted = {id(weight) for weight in originals}
    waiting = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # a leaf of the graph has its tensor
        if id(getattr(node, "variable", None)) in wanted:
            raise StepRefused(
                "each device trains a copy of the server half, and loss_fn goes by the "
                "weights of the original: let the server half return what the loss "
                "needs of them, as (outputs, penalty), or use weight_decay"
            )
        waiting += [following for following, _ in node.next_functions]
