"""How close reconstructions come to the inputs.

For inputs ``x`` and reconstructions ``r`` with values in a range of ``L``:

    MSE  = mean (x - r)^2                                                       (1)
    PSNR = 10 log10(L^2 / MSE)                                                  (2)

and SSIM of Wang et al. (2004), with a Gaussian window of 11 x 11. An attack on inputs
that are no images gives each column in its unit (see `units`), over what all vary in
theirs: an MSE of 1 is then as much as they vary.
"""

from dataclasses import dataclass
from math import inf, log10

from torch import Tensor

from flwr_splitfc.leakage.decoders import is_image

_LEAST_SIDE = 6  # SSIM's window, mirrored at the borders, needs more than five pixels


@dataclass(frozen=True)
class Scores:
    """The distance of reconstructions from their inputs.

    Parameters
    ----------
    mse : float or None
        Mean squared error; of columns, over their mean variance.
    psnr : float
        Peak signal-to-noise ratio in dB; infinite for a perfect reconstruction.
    ssim : float or None
        Mean structural similarity, at most 1; None for what is no image.
    recovered : float or None
        Share of entries that are exact, of integers such as tokens; they have no other
        score.
    """

    mse: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    recovered: float | None = None

    @property
    def closeness(self) -> float:
        """What is larger for a better reconstruction of the same inputs."""
        score = self.recovered if self.psnr is None else self.psnr
        assert score is not None  # inputs are numbers or tokens
        return score


def scores_of(inputs: Tensor, guesses: Tensor, value_range: float) -> Scores:
    """Compare reconstructions with inputs.

    Parameters
    ----------
    inputs, guesses : Tensor of shape (N, ...)
    value_range : float
        The largest value of inputs minus the smallest.

    Examples
    --------
    >>> import torch
    >>> scores = scores_of(torch.zeros(2, 3), torch.full((2, 3), 0.1), value_range=1.0)
    >>> round(scores.mse, 4), round(scores.psnr, 2), scores.ssim
    (0.01, 20.0, None)
    """
    if not inputs.is_floating_point():
        exact = inputs == guesses
        return Scores(recovered=exact.float().mean().item())
    error = inputs - guesses
    mse = error.square().mean().item()
    psnr = _psnr(mse, value_range)
    return Scores(mse, psnr, _ssim(inputs, guesses, value_range))


def _psnr(mse: float, value_range: float) -> float:
    """Return equation (2)."""
    if mse == 0 or value_range == 0:
        return inf
    return 10 * log10(value_range**2 / mse)


def _ssim(inputs: Tensor, guesses: Tensor, value_range: float) -> float | None:
    if not is_image(inputs.shape[1:]) or min(inputs.shape[2:]) < _LEAST_SIDE:
        return None
    # here, since it takes seconds to import
    from torchmetrics.functional.image import structural_similarity_index_measure

    similarity = structural_similarity_index_measure(
        guesses, inputs, data_range=value_range
    )
    assert isinstance(similarity, Tensor)  # a tuple only where more is asked for
    return similarity.item()
