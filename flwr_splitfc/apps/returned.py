"""What functions of a user's app return, checked before it is used."""

from collections.abc import Mapping

from torch import Tensor

from flwr_splitfc.exchange.device.pipeline import LabelledBatches
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.model.structures import Structure, leaves_of
from flwr_splitfc.run.returned_metrics import described

_BATCH_WANTED = "wanted a pair (x, y) of tensors, or of structures of tensors"


def batches_for(purpose: Purpose, data: object) -> LabelledBatches:
    """Return those of ``load_data``'s two kinds of batches that are for a purpose.

    Raises
    ------
    ValueError
        If it has returned no two, or none for the purpose.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(
            f"load_data(context) returned {described(data)}, wanted two: batches to "
            "train on and batches to evaluate on, as in return trainloader, testloader"
        )
    train, evaluate = data
    batches: LabelledBatches = train if purpose == "train" else evaluate
    if batches is None:
        raise ValueError(
            f"load_data(context) returned None as the batches to {purpose} on, wanted "
            "batches (x, y), such as a DataLoader of them"
        )
    return batches


def pair_of(batch: object) -> tuple[Structure, Tensor]:
    """Return inputs and labels of one of the batches of ``load_data``.

    Raises
    ------
    ValueError
        If it is no pair of them.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"a batch of load_data is {described(batch)}, {_BATCH_WANTED}"
            + _advice(batch)
        )
    x, y = batch
    for name, part in (("x", x), ("y", y)):
        for leaf in leaves_of(part):
            _check_movable(name, leaf)
    return x, y


def _check_movable(name: str, leaf: object) -> None:
    # a loop's inputs may be objects of one's own that go to a device as tensors do
    if not hasattr(leaf, "to"):
        raise ValueError(
            f"{name} of a batch of load_data has {described(leaf)}, {_BATCH_WANTED}, "
            "such as torch.as_tensor makes"
        )


def _advice(batch: object) -> str:
    if not isinstance(batch, Mapping) or len(batch) < 2:
        return ""
    x, y = list(batch)[:2]
    return f", such as (batch[{x!r}], batch[{y!r}])"
