"""Distance correlation: how much two sets of vectors depend on each other.

For samples ``x_i`` and ``z_i``, ``a_ij = |x_i - x_j|`` and ``b_ij`` alike, with the
mean of each row and column taken off (``A``, ``B``):

    dCov^2(x, z) = mean A_ij B_ij                                               (1)
    dCor(x, z) = sqrt(dCov^2(x, z) / sqrt(dCov^2(x, x) dCov^2(z, z)))           (2)

Szekely, Rizzo and Bakirov, Annals of Statistics 35 (2007). Vepakomma et al., "NoPeek",
2008.09161, add it to the loss of a device half.
"""

import torch
from torch import Tensor

_LEAST = 1e-12  # a root's slope is infinite at 0


def distance_correlation(inputs: Tensor, features: Tensor) -> Tensor:
    """Return the distance correlation (2) of a batch, a scalar between 0 and 1.

    Gradients flow into both. It is 0 where either does not vary over the batch.

    Parameters
    ----------
    inputs, features : Tensor of shape (B, ...)

    Raises
    ------
    ValueError
        If there is not a feature vector for each input.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> round(distance_correlation(x, 5 - 2 * x).item(), 4)
    1.0
    """
    if len(inputs) != len(features):
        raise ValueError(f"there are {len(inputs)} inputs and {len(features)} features")
    a = _centred_distances(inputs)
    b = _centred_distances(features)
    covariance = (a * b).mean()
    spread = a.square().mean() * b.square().mean()
    if spread <= _LEAST**2:
        return 0 * features.float().sum()
    return (covariance / spread.sqrt()).clamp(min=_LEAST).sqrt()


def _centred_distances(vectors: Tensor) -> Tensor:
    """Return ``A``, (B, B), of vectors (B, ...)."""
    rows = vectors.flatten(1).float()
    # distances stay, and are more exact where they come from products
    rows = rows - rows.mean(0)
    distances = torch.cdist(rows, rows)
    centred: Tensor = distances - distances.mean(0) - distances.mean(1, keepdim=True)
    return centred + distances.mean()
