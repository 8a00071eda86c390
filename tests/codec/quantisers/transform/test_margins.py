"""Expected magnitudes of coefficients, and the contexts that follow from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.quantisers.transform.context_order import CONTEXTS
from flwr_splitfc.codec.quantisers.transform.margins import Margins


def contexts_of(magnitudes: Tensor) -> Tensor:
    everywhere = np.arange(magnitudes.numel())
    contexts = Margins.of(magnitudes).order().contexts(everywhere)
    return torch.from_numpy(contexts).view(magnitudes.shape).int()


def test_contexts_are_the_expected_magnitudes() -> None:
    """Twice as large is two contexts further, but for the rounding of each share."""
    rows, directions, places = (
        torch.tensor([1.0, 4.0]),
        torch.tensor([1.0, 2.0, 8.0]),
        torch.tensor([0.25, 2.0]),
    )
    magnitudes = rows[:, None, None] * directions[:, None] * places
    contexts = contexts_of(magnitudes)
    expected = (2 * (magnitudes / magnitudes[0, 0, 0]).log2()).int()
    assert int((contexts - contexts[0, 0, 0] - expected).abs().max()) <= 2
    assert contexts.max() < CONTEXTS


def test_a_row_of_zeros_is_expected_to_be_small() -> None:
    magnitudes = torch.ones(3, 2, 4)
    magnitudes[1] = 0
    contexts = contexts_of(magnitudes)
    assert int((contexts[0] - contexts[1]).min()) >= 14
