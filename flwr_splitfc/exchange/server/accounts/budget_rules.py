"""Budgets by device and round: rules, and what a rule may go by."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.exchange.server.accounts.traffic import Traffic
from flwr_splitfc.settings import Scalar

MOST_BITS = 32.0
"""The most bits per entry that a rule may give: float32."""

Bits: TypeAlias = tuple[float, float]
Cut = Literal["features", "output"]


@dataclass(frozen=True)
class LastTurn:
    """Measurements of the last turn of training that a device finished.

    Parameters
    ----------
    uplink_bits, downlink_bits : float
        The budgets that it had, at the cut in question; what it took of them where they
        are the ceilings of a quality.
    steps : int
        Its mini-batches, those that it predicted on included.
    uplink_bytes, downlink_bytes : int
        Of all its frames but for what is kept between turns.
    link_seconds : float
        How long frames were on their way, see `Traffic`; 0.0 if that is not known.
    """

    uplink_bits: float
    downlink_bits: float
    steps: int
    uplink_bytes: int
    downlink_bytes: int
    link_seconds: float

    @classmethod
    def of(cls, codec: CutCodec, traffic: Traffic) -> "LastTurn":
        """Make it from what was agreed at a cut, and what the session moved."""
        uplink, downlink = traffic.uplink_bytes, traffic.downlink_bytes
        uplink_bits, downlink_bits = codec.uplink_bits, codec.downlink_bits
        if codec.quality is not None:
            # budgets are only ceilings
            uplink_bits = min(uplink_bits, traffic.uplink_bits_per_entry)
            downlink_bits = min(downlink_bits, traffic.downlink_bits_per_entry)
        return cls(
            uplink_bits=uplink_bits,
            downlink_bits=downlink_bits,
            steps=traffic.mini_batches,
            uplink_bytes=uplink.total() - uplink["state"],
            downlink_bytes=downlink.total() - downlink["state"],
            link_seconds=traffic.link_seconds,
        )

    @property
    def step_link_seconds(self) -> float:
        """How long the frames of one step were on their way; 0.0 if it is not known."""
        return self.link_seconds / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class DeviceRound:
    """A device that is about to take its turn in a round, as a rule sees it.

    Parameters
    ----------
    name : str
        The device's, see `device_name`.
    server_round : int
        From 1.
    uplink_bits, downlink_bits : float
        What it would get so far: the codec's own, or what rules before this one
        decided.
    cut : "features" or "output"
        In U-shaped split learning the output of the server half is a second cut with
        budgets of its own, and rules are asked for each.
    node_config : mapping
        The device's, as it tells; nothing in it is to be trusted.
    last : LastTurn, optional
        None before its first turn, also after a run was resumed.
    """

    name: str
    server_round: int
    uplink_bits: float
    downlink_bits: float
    cut: Cut = "features"
    node_config: Mapping[str, Scalar] = field(default_factory=dict)
    last: LastTurn | None = None


BudgetRule: TypeAlias = Callable[[DeviceRound], Bits | None]
"""A function that gives a device (uplink_bits, downlink_bits).

It gives None to leave them as they are, and is asked before each train and evaluate
message.
"""


def budgeted(
    codec: CutCodec, rules: Sequence[BudgetRule], device: DeviceRound
) -> CutCodec:
    """Return `codec` with the budgets that rules give a device for a round.

    Parameters
    ----------
    codec : CutCodec
    rules : sequence of BudgetRule
        Asked one after another, each with what those before it gave.
    device : DeviceRound

    Raises
    ------
    ValueError
        If a rule raises an error, or gives no two numbers above 0 and at most 32.

    Examples
    --------
    >>> from flwr_splitfc.codec import cut_codec
    >>> poor = DeviceRound("7", 1, uplink_bits=0.2, downlink_bits=0.4)
    >>> halved = lambda device: (device.uplink_bits / 2, device.downlink_bits / 2)
    >>> budgeted(cut_codec("quant-only"), [halved, halved], poor)
    cut_codec('quant-only', uplink_bits=0.05, downlink_bits=0.1, evaluation='float16')
    """
    for rule in rules:
        bits = _ask(rule, device)
        if bits is not None:
            up, down = _checked(rule, bits, device)
            device = replace(device, uplink_bits=up, downlink_bits=down)
    return replace(
        codec, uplink_bits=device.uplink_bits, downlink_bits=device.downlink_bits
    )


def is_budget(value: object) -> bool:
    """Whether `value` is a number of bits per entry that a rule may give."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value <= MOST_BITS
    )


def rules_text(rules: Sequence[BudgetRule]) -> str:
    """Return the rules by name and settings, the same in every process."""
    return ", ".join(_name(rule) for rule in rules) or "none"


def _name(rule: BudgetRule) -> str:
    # a function has a name; other callables have a repr, perhaps with their address
    without_address = re.sub(" at 0x[0-9a-f]+", "", str(rule))
    return str(getattr(rule, "__qualname__", without_address))


def _ask(rule: BudgetRule, device: DeviceRound) -> Any:
    try:
        return rule(device)
    # Rules read what devices tell, and one device must not end the run.
    except Exception as error:
        # other errors than a rule's own need their type beside their text
        reason = repr(error)
        if isinstance(error, ValueError):
            reason = str(error)
        raise ValueError(f"{_name(rule)}: {reason}") from error


def _checked(rule: BudgetRule, bits: Any, device: DeviceRound) -> Bits:
    match bits:
        case [up, down]:
            # what a rule left as it was may be any budget that the codec takes
            up_is_good = is_budget(up) or up == device.uplink_bits
            down_is_good = is_budget(down) or down == device.downlink_bits
            if up_is_good and down_is_good:
                return float(up), float(down)
    raise ValueError(
        f"{_name(rule)} gave {bits!r:.100}, "
        f"wanted two numbers above 0 and at most {MOST_BITS:g}, or None"
    )
