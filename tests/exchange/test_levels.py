"""A turn levels channels once a gradient tells that the server half normalises them."""

import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange import SplitEndpoint
from tests.exchange.server_halves import shared_half
from tests.halves import seeded
from tests.local_grid import ticket_message

COLUMNS, SMALL = 32, 24
# far enough apart to be lost, and not so far that this is sure without a gradient
SCALES = torch.tensor([10.0] * (COLUMNS - SMALL) + [1.0] * SMALL)


class Half(nn.Module):
    """A server half that keeps what it gets."""

    def __init__(self, *, normalises: bool) -> None:
        super().__init__()
        first = nn.BatchNorm1d(COLUMNS) if normalises else nn.Identity()
        self.layers = nn.Sequential(first, nn.Linear(COLUMNS, 4))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        features = x["features"] if isinstance(x, dict) else x
        self.seen.append(features.detach().clone())
        return self.layers(features)


def lost_by_step(*, normalises: bool, beside: bool = False) -> list[bool]:
    """Whether most of the small columns were lost, in each step of a turn.

    Parameters
    ----------
    normalises : bool
    beside : bool (default: False)
        Whether a tensor goes beside the features, whole numbers in every other step.
    """
    half = seeded(lambda: Half(normalises=normalises))
    draw = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(4):
        features = torch.randn(64, COLUMNS, generator=draw) * SCALES
        batches.append((features, torch.randint(4, (64,), generator=draw)))
    cut = cut_codec("splitfc-rd", quality=12.5)
    with (
        SplitEndpoint(shared_half(half), cut) as endpoint,
        connect(ticket_message(endpoint)) as session,
    ):
        for step, (features, labels) in enumerate(batches):
            sent: Tensor | dict[str, Tensor] = features.requires_grad_()
            if beside:
                other = torch.ones(64, 3) if step % 2 == 0 else torch.rand(64, 3)
                sent = {"other": other, "features": features}
            session.loss(sent, labels).backward()
    lost = []
    for (features, _), seen in zip(batches, half.seen, strict=True):
        exact = features.detach()
        errors = (seen - exact).square().mean(0) / exact.var(0)
        lost.append(bool(errors[-SMALL:].median() > 0.5))
    return lost


@pytest.mark.parametrize("normalises", [True, False])
def test_from_the_second_step_on_what_matters_arrives(normalises: bool) -> None:
    assert lost_by_step(normalises=normalises) == [True] + 3 * [not normalises]


def test_whatever_goes_beside_the_features() -> None:
    assert lost_by_step(normalises=True, beside=True) == [True] + 3 * [False]
