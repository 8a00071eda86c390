"""The accuracy of a batch, and over how many of its labels it is."""

from torch import Tensor

from flwr_splitfc.batches import counted_labels
from flwr_splitfc.model import LossFn
from flwr_splitfc.model.structures import Structure
from flwr_splitfc.model.torch_losses import ignored_label


def accuracy(outputs: Structure, labels: Tensor) -> dict[str, float]:
    """Return the share of right classes as ``eval_acc``.

    Labels that are no class's, such as -100 and 255, are left out. The result is empty
    where no label is left, or where outputs are no scores of classes.

    Parameters
    ----------
    outputs : Tensor of shape (B, classes, ...)
        Of two classes or more. Outputs (B, T, classes), the classes last, need a
        `metrics_fn`: where T is the number of classes, they cannot be told apart.
    labels : Tensor of shape (B, ...)
        Class indices.
    """
    return accuracy_beside(None, outputs, labels)


def accuracy_beside(
    loss_fn: LossFn | None, outputs: Structure, labels: Tensor
) -> dict[str, float]:
    """Return `accuracy` without the labels that a loss ignores; None ignores -100."""
    if not _are_scores(outputs, labels):
        return {}
    counted = _counted(loss_fn, outputs, labels)
    if not counted.any():
        return {}
    right = outputs.argmax(1) == labels
    return {"eval_acc": right[counted].float().mean().item()}


def _are_scores(outputs: Structure, labels: Tensor) -> bool:
    if not isinstance(outputs, Tensor) or labels.is_floating_point():
        return False
    if outputs.ndim != labels.ndim + 1 or outputs.shape[1] == 1:
        return False
    return outputs.shape[:1] + outputs.shape[2:] == labels.shape


def _counted(loss_fn: LossFn | None, scores: Tensor, labels: Tensor) -> Tensor:
    # a byte would be compared with the lowest byte of -100
    return counted_labels(scores, labels) & (labels.long() != ignored_label(loss_fn))


def labels_that_count(
    loss_fn: LossFn | None, outputs: Structure, labels: Tensor
) -> int:
    """Return over how many labels a mean loss is, as `accuracy_beside` takes them."""
    if not _are_scores(outputs, labels):
        return len(labels)
    return int(_counted(loss_fn, outputs, labels).sum())
