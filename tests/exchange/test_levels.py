"""Channels are levelled once gradients tell that the server half normalises them."""

import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange import DeviceStates, SplitEndpoint
from flwr_splitfc.exchange.server.turn.device_states import Kept
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


def lost_by_step(
    *steps_of_turns: int, normalises: bool, beside: bool = False
) -> list[bool]:
    """Whether most of the small columns were lost, in each step of several turns.

    Parameters
    ----------
    *steps_of_turns : int
    normalises : bool
    beside : bool (default: False)
        Whether a tensor goes beside the features, whole numbers in every other step.
    """
    half = seeded(lambda: Half(normalises=normalises))
    draw = torch.Generator().manual_seed(1)
    batches: list[Tensor] = []
    cut = cut_codec("splitfc-rd", quality=12.5)
    with SplitEndpoint(shared_half(half), cut) as endpoint:
        for turn, steps in enumerate(steps_of_turns):
            message = ticket_message(endpoint, device=str(turn % 3))
            with connect(message) as session:
                for _ in range(steps):
                    features = torch.randn(64, COLUMNS, generator=draw) * SCALES
                    batches.append(features.clone())
                    sent: Tensor | dict[str, Tensor] = features.requires_grad_()
                    if beside:
                        first = len(batches) % 2 == 1
                        other = torch.ones(64, 3) if first else torch.rand(64, 3)
                        sent = {"other": other, "features": features}
                    labels = torch.randint(4, (64,), generator=draw)
                    session.loss(sent, labels).backward()
            endpoint.replied(session.ticket.token)
    lost = []
    for exact, seen in zip(batches, half.seen, strict=True):
        errors = (seen - exact).square().mean(0) / exact.var(0)
        lost.append(bool(errors[-SMALL:].median() > 0.5))
    return lost


@pytest.mark.parametrize("normalises", [True, False])
def test_from_the_second_step_on_what_matters_arrives(normalises: bool) -> None:
    lost = lost_by_step(4, normalises=normalises)
    assert lost == [True] + 3 * [not normalises]


def test_whatever_goes_beside_the_features() -> None:
    assert lost_by_step(4, normalises=True, beside=True) == [True] + 3 * [False]


@pytest.mark.parametrize("normalises", [True, False])
def test_what_turns_tell_in_a_row_holds_from_the_first_step_on(
    normalises: bool,
) -> None:
    """Whichever device has the turn."""
    lost = lost_by_step(*13 * [1], normalises=normalises)
    assert lost == 10 * [True] + 3 * [not normalises]


def test_a_run_that_goes_on_knows_what_turns_told() -> None:
    states = DeviceStates("relay")
    levels = []
    for turn in range(13):
        # the fourth turn tells otherwise of the first tensor
        wanted, unwanted = ((2,), (0,)) if turn == 3 else ((0, 2), ())
        states.keep(str(turn), Kept(levels=wanted, no_levels=unwanted))
        # a turn that tells nothing leaves all as it is
        states.keep(str(turn), Kept())
        saved = states.state_dict()
        states = DeviceStates("relay")
        states.load_state_dict(saved)
        levels.append(list(states.of("another").levels))
    assert levels == 9 * [[]] + 4 * [[2]]
    # as an earlier version wrote it
    del saved["levels"]
    states.load_state_dict(saved)
    assert not states.of("another").levels
