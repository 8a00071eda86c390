"""Inference of labels from gradients, where the last layers are the devices'.

The server gets the gradient of the loss by its output. It has the last layers, which
come back after each turn, and the loss: so it computes the gradient that each class
would give, and takes the class whose gradient is nearest to the one that came. The
gradient of the usual losses is affine in labels that are numbers, and is solved for
them. Neither needs a known label.

The other attacks need no last layers. With a linear last layer ``W`` and cross-entropy
the gradient is ``W^T (p - e_y)`` for scores ``p`` and the label ``y``: samples of one
class have gradients of about one direction. So an attacker clusters directions, as in
Liu et al., "Clustering label inference attack against practical split learning",
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
    last_layers : float, optional
        By the class whose gradient through the last layers is nearest.
    answer : float, optional
        By the class of the model's largest score, with no gradient.
    """

    clusters: float
    nearest: float
    sign: float | None
    majority: float
    last_layers: float | None = None
    answer: float | None = None


@dataclass(frozen=True)
class LabelValues:
    """How close an attacker comes to labels that are numbers.

    Parameters
    ----------
    r2 : float
        The share of the labels' variance that it explains; 1 is exact.
    largest_error : float
        In the labels' own unit.
    """

    r2: float
    largest_error: float

    @classmethod
    def of(cls, guesses: Tensor, labels: Tensor) -> "LabelValues":
        """Compare guesses with labels, both (N, K)."""
        wrong = guesses - labels
        spread = (labels - labels.mean(0)).square().sum()
        # of labels that are all alike nothing is left to explain
        r2 = 1 - wrong.square().sum() / spread if spread else torch.tensor(torch.nan)
        return cls(r2.item(), wrong.abs().max().item())


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
        clusters=share_right(named, labels),
        nearest=share_right(_nearest(known_gradients, known_labels, gradients), labels),
        sign=_by_sign(gradients.flatten(1), labels, classes),
        majority=share_right(majority, labels),
    )


def nearest_class(gradients: Tensor, by_class: Tensor) -> Tensor:
    """Return the classes (N,) whose own gradients are nearest.

    Parameters
    ----------
    gradients : Tensor of shape (N, ...)
        Of a batch, as they came.
    by_class : Tensor of shape (C, N, ...)
        What they would be, if all labels were this class.
    """
    came = gradients.flatten(1)
    # a column of zeros was left out or rounded off: it would speak for small gradients
    told = came.any(0)
    wrong = by_class.flatten(2)[:, :, told] - came[:, told]
    return wrong.square().sum(2).argmin(0)


def solved_labels(gradients: Tensor, at_zero: Tensor, by_entry: Tensor) -> Tensor:
    """Return the labels (N, K) for which an affine gradient comes closest.

    Parameters
    ----------
    gradients : Tensor of shape (N, ...)
        Of a batch, as they came.
    at_zero : Tensor of shape (N, ...)
        What they would be, if all labels were 0.
    by_entry : Tensor of shape (K, N, ...)
        What they would be, if one entry of each label were 1.
    """
    came = gradients.flatten(1).double()
    base = at_zero.flatten(1).double()
    told = came.any(0)
    slopes = (by_entry.flatten(2).double() - base)[:, :, told].permute(1, 2, 0)
    wanted = (came - base)[:, told, None]
    solved: Tensor = torch.linalg.pinv(slopes) @ wanted
    return solved.squeeze(2)


def share_right(guesses: Tensor, labels: Tensor) -> float:
    """Return the share of guesses that are right."""
    return (guesses == labels).float().mean().item()


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
    return share_right(gradients.argmin(1), labels)
