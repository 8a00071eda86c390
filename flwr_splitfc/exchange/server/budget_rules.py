"""Budgets by device and round: what they may depend on, and how rules decide them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.exchange.server.traffic import Traffic
from flwr_splitfc.settings import Scalar

MOST_BITS = 32.0
"""What nobody gets more of by a rule: float32."""

Bits: TypeAlias = tuple[float, float]
Cut = Literal["features", "output"]


@dataclass(frozen=True)
class LastTurn:
    """What was measured in a device's last turn of training that it finished.

    Parameters
    ----------
    uplink_bits, downlink_bits : float
        The budgets that it had, at the cut in question.
    steps : int
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
        """From what was agreed at a cut, and what its session moved."""
        up, down = (
            way.total() - way["state"]
            for way in (traffic.uplink_bytes, traffic.downlink_bytes)
        )
        return cls(
            codec.uplink_bits,
            codec.downlink_bits,
            traffic.steps,
            up,
            down,
            traffic.link_seconds,
        )

    @property
    def bytes_per_second(self) -> float:
        """Both ways together, round trips included; 0.0 if that is not known.

        One way alone cannot be told: a device sees how long an answer took, and clocks
        differ.
        """
        return (
            (self.uplink_bytes + self.downlink_bytes) / self.link_seconds
            if self.link_seconds
            else 0.0
        )

    @property
    def step_link_seconds(self) -> float:
        """How long the frames of one step were on their way; 0.0 if that is not known."""
        return self.link_seconds / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class DeviceRound:
    """What a budget may depend on: a device that is about to take its turn in a round.

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
"""Gives (uplink_bits, downlink_bits), or None to leave them as they are; asked for each train and evaluate message."""


def budgeted(
    codec: CutCodec, rules: Sequence[BudgetRule], device: DeviceRound
) -> CutCodec:
    """`codec` with the budgets that `rules`, one after another, give a device for a round.

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
        try:
            bits = rule(device)
        # rules read what devices tell, and one device must not end the run
        except Exception as error:
            raise ValueError(
                f"{_name(rule)}: {error if isinstance(error, ValueError) else repr(error)}"
            ) from error
        if bits is not None:
            up, down = _checked(rule, bits, (device.uplink_bits, device.downlink_bits))
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
    """The rules by name and settings, the same in another process."""
    return ", ".join(map(_name, rules)) or "none"


def _name(rule: BudgetRule) -> str:
    return str(getattr(rule, "__qualname__", re.sub(" at 0x[0-9a-f]+", "", str(rule))))


def _checked(rule: BudgetRule, bits: Any, before: Bits) -> Bits:
    """What a rule gave; what it left as it was may be any budget that the codec takes."""
    match bits:
        case [up, down] if all(
            is_budget(new) or new == old
            for new, old in zip((up, down), before, strict=True)
        ):
            return float(up), float(down)
    raise ValueError(
        f"{_name(rule)} gave {bits!r:.100}, wanted two numbers above 0 and at most {MOST_BITS:g}, or None"
    )
