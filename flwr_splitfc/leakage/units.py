"""Units of inputs: what attacks compute in.

Columns of a table have units of their own, grams beside years, and a squared error over
all of them would be that of the column with the largest numbers. So each is taken less
its mean and over its spread: in attacks by the samples that the attacker knows, and in
scores by all samples. Pixels of an image have one unit, and stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flwr_splitfc.leakage.decoders import is_image
from flwr_splitfc.model.structures import Structure

# over a column's range. What differs in less than one sample of a hundred, as a rare
# category, has a smaller spread: over that, these few samples would be the whole error.
# A range has the column's own unit, and no other column's.
_LEAST_SPREAD = 0.1


def has_columns(shape: Sequence[int]) -> bool:
    """Tell whether the entries of one sample have units of their own."""
    return not is_image(shape)


@dataclass(frozen=True, eq=False)
class Units:
    """The units of inputs (N, ...).

    Parameters
    ----------
    mean, spread : Tensor of shape (...)
        Of each column; the spread is a tenth of the range at least, and 1 of a column
        that does not vary.
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, *parts: Tensor) -> "Units | None":
        """Return the units of inputs (N, ...), in parts; None for images and tokens."""
        first = parts[0]
        if not first.is_floating_point():
            return None
        if not has_columns(first.shape[1:]):
            return None
        # in float64: squares of float32 overflow
        exact = torch.cat(parts).double()
        extent = exact.amax(0) - exact.amin(0)
        least_spread = _LEAST_SPREAD * extent
        wide = torch.maximum(exact.std(0), least_spread)
        mean = exact.mean(0).to(first.dtype)
        spread = wide.to(first.dtype)
        # of equal numbers, too, a rounded mean leaves a little
        varies = (extent > 0) & (spread > 0)
        one = torch.ones_like(spread)
        return cls(mean, torch.where(varies, spread, one))

    def removed(self, inputs: Tensor) -> Tensor:
        """Return inputs (N, ...) less their mean and over their spread."""
        return (inputs - self.mean) / self.spread

    def restored(self, inputs: Tensor) -> Tensor:
        """Return inputs (N, ...) from which units were removed."""
        return self.mean + inputs * self.spread


class InUnits(nn.Module):
    """A device half that takes inputs (B, ...) from which units were removed.

    Parameters
    ----------
    half : nn.Module
    units : Units
    """

    def __init__(self, half: nn.Module, units: Units) -> None:
        super().__init__()
        self.device_half = half  # nn.Module has a method `half`
        self._units = units

    def forward(self, inputs: Tensor) -> Structure:
        """Return the half's features (B, ...)."""
        return self.device_half(self._units.restored(inputs))
