"""Inference of labels from gradients, where the last layers are the devices'.

The server gets the gradient of the loss by its output. With a linear last layer ``W``
and cross-entropy it is ``W^T (p - e_y)`` for scores ``p`` and the label ``y``: samples
of one class have gradients of about one direction. So the attacker clusters directions,
as in Liu et al., "Clustering label inference attack against practical split learning",
2203.05222, and names each cluster after the labels that it knows. Where the output has
an entry for each class, as without a last layer, the gradient is ``p - e_y`` itself,
and its one negative entry is the label's: the attack of Li et al., 2102.08504. Behind
deeper last layers a class has several directions, and the known gradient of about the
same direction tells the label.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class LabelInference:
    """The shares of labels that an attacker infers.

    Parameters
    ----------
    clusters : float
        By clusters of gradients.
    nearest : float
        By the known gradient whose direction is nearest.
    sign : float or None
        By the smallest entry; None where the output has fewer entries than there are
        classes.
    majority : float
        By always guessing the commonest label, with no gradient.
    """

    clusters: float
    nearest: float
    sign: float | None
    majority: float


def infer_labels(
    known: tuple[Tensor, Tensor], attacked: tuple[Tensor, Tensor], seed: int = 0
) -> LabelInference:
    """Infer labels from gradients, and say how many are right.

    Parameters
    ----------
    known : (Tensor, Tensor)
        Gradients (N, ...) and labels (N,) that the attacker has.
    attacked : (Tensor, Tensor)
        Gradients (M, ...) that the attacker has, and labels (M,) to compare with.
    seed : int (default: 0)
        Of the clusters' first centres.

    Raises
    ------
    ValueError
        If labels are not class indices, one a sample.
    """
    known_gradients, known_labels = known
    gradients, labels = attacked
    for given in (known_labels, labels):
        if given.is_floating_point() or given.ndim != 1:
            raise ValueError(
                f"labels are {given.dtype} of shape {tuple(given.shape)}, "
                "wanted a class index for each sample"
            )
    classes = int(max(known_labels.max(), labels.max())) + 1
    majority = known_labels.mode().values
    named = _named_by_cluster(known_gradients, known_labels, gradients, classes, seed)
    return LabelInference(
        clusters=_share(named == labels),
        nearest=_share(_nearest(known_gradients, known_labels, gradients) == labels),
        sign=_by_sign(gradients.flatten(1), labels, classes),
        majority=_share(labels == majority),
    )


def _named_by_cluster(
    known: Tensor, known_labels: Tensor, gradients: Tensor, classes: int, seed: int
) -> Tensor:
    """Return the labels of gradients by the clusters in which they are."""
    # here, since it takes seconds to import
    from sklearn.cluster import KMeans

    directions = _directions(torch.cat([known, gradients]))
    # fewer clusters where there are fewer different directions
    count = min(classes, len(directions.unique(dim=0)))
    found = KMeans(count, n_init=10, random_state=seed).fit_predict(directions.numpy())
    clusters = torch.from_numpy(found).long()
    names = torch.zeros(count, dtype=torch.int64)
    for cluster in range(count):
        inside = known_labels[clusters[: len(known)] == cluster]
        # a cluster with no known label gets the commonest of all
        names[cluster] = (inside if len(inside) else known_labels).mode().values
    return names[clusters[len(known) :]]


def _nearest(known: Tensor, known_labels: Tensor, gradients: Tensor) -> Tensor:
    """Return the labels of the known gradients that are nearest by their cosine."""
    directions = _directions(known).T
    rows = [
        (part @ directions).argmax(1)
        for part in _directions(gradients).split(_ROWS_AT_ONCE)
    ]
    return known_labels[torch.cat(rows)]


def _directions(gradients: Tensor) -> Tensor:
    """Return gradients (N, ...) as vectors (N, W) of length 1."""
    return F.normalize(gradients.flatten(1).double())


def _by_sign(gradients: Tensor, labels: Tensor, classes: int) -> float | None:
    if gradients.shape[1] < classes:
        return None
    return _share(gradients.argmin(1) == labels)


def _share(right: Tensor) -> float:
    return right.float().mean().item()
