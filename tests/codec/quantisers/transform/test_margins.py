"""Expected magnitudes of coefficients, and the contexts that follow from them."""

from __future__ import annotations

import torch

from flwr_splitfc.codec.quantisers.transform.margins import CONTEXTS, Margins


def test_contexts_are_the_expected_magnitudes() -> None:
    """Twice as large is two contexts further, but for the rounding of each share."""
    rows, directions, places = (
        torch.tensor([1.0, 4.0]),
        torch.tensor([1.0, 2.0, 8.0]),
        torch.tensor([0.25, 2.0]),
    )
    magnitudes = rows[:, None, None] * directions[:, None] * places
    contexts = Margins.of(magnitudes).contexts().view(2, 3, 2).int()
    expected = (2 * (magnitudes / magnitudes[0, 0, 0]).log2()).int()
    assert int((contexts - contexts[0, 0, 0] - expected).abs().max()) <= 2
    assert contexts.max() < CONTEXTS


def test_a_row_of_zeros_is_expected_to_be_small() -> None:
    magnitudes = torch.ones(3, 2, 4)
    magnitudes[1] = 0
    contexts = Margins.of(magnitudes).contexts().view(3, 8).int()
    assert int((contexts[0] - contexts[1]).min()) >= 14
