"""The accuracy of a batch, and over how many of its labels it is."""

from torch import Tensor

from flwr_splitfc.model.structures import Structure


def accuracy(outputs: Structure, labels: Tensor) -> dict[str, float]:
    """Return the share of right classes as ``eval_acc``.

    Negative labels, such as -100 for losses, are left out. The result is empty where no
    label is left, or where outputs are no scores of classes.

    Parameters
    ----------
    outputs : Tensor of shape (B, classes, ...)
        Of two classes or more. Outputs (B, T, classes), the classes last, need a
        `metrics_fn`: where T is the number of classes, they cannot be told apart.
    labels : Tensor of shape (B, ...)
        Class indices.
    """
    if not _are_scores(outputs, labels):
        return {}
    counted = labels >= 0
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


def labels_that_count(outputs: Structure, labels: Tensor) -> int:
    """Return over how many labels a mean loss is, as `accuracy` takes them."""
    if not _are_scores(outputs, labels):
        return len(labels)
    return int((labels >= 0).sum())
