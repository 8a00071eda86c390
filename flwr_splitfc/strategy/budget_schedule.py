"""More bits in early rounds, less and less as rounds go by.

A schedule multiplies the bits that a device would get. In round r the part of the way
that is left between a first and a last round is

    left = clip((last - r) / (last - first), 0, 1),

and the multiple is 1 + (factor - 1) left (linear) or factor^left (geometric): `factor`
up to the first round, 1 from the last round on.
"""

import re
from dataclasses import dataclass

from flwr_splitfc.exchange.server.accounts.budget_rules import MOST_BITS, DeviceRound

_FACTOR = r"(?P<factor>\d{1,6}(?:\.\d{1,6})?)x"
_WARMUP = re.compile(rf"warmup {_FACTOR} (?P<last>\d{{1,9}})", re.ASCII)
_DECLINE = re.compile(
    rf"(?P<shape>linear|geometric) {_FACTOR} (?P<first>\d{{1,9}})-(?P<last>\d{{1,9}})",
    re.ASCII,
)


@dataclass(frozen=True)
class BudgetSchedule:
    """More bits in early rounds: a multiple of what each device would get.

    The multiple becomes one. A round is what the strategy calls one, with devices in
    turn a turn of one device. No device gets more than 32 bits by it.

    Parameters
    ----------
    uplink, downlink : str, optional
        ``"warmup 4x 20"``, four times the bits up to round 20; ``"linear 4x 5-20"``,
        four times up to round 5, once from round 20 on, and by an equal amount less in
        each round between; ``"geometric 4x 5-20"``, there by an equal factor; ``""``,
        once.

    Raises
    ------
    ValueError
        For any other text.

    Examples
    --------
    >>> rule = BudgetSchedule(uplink="geometric 4x 1-3", downlink="warmup 2x 1")
    >>> for server_round in (1, 2, 3, 4):
    ...     print(rule(DeviceRound("3", server_round, 0.2, 0.4)))
    (0.8, 0.8)
    (0.4, 0.4)
    (0.2, 0.4)
    (0.2, 0.4)
    """

    uplink: str = ""
    downlink: str = ""

    def __post_init__(self) -> None:
        _check_schedule("uplink-schedule", self.uplink)
        _check_schedule("downlink-schedule", self.downlink)

    def __call__(self, device: DeviceRound) -> tuple[float, float] | None:
        """Return the bits of the device's round."""
        server_round = device.server_round
        uplink = _Ramp.parse(self.uplink)
        downlink = _Ramp.parse(self.downlink)
        return (
            uplink.applied(device.uplink_bits, server_round),
            downlink.applied(device.downlink_bits, server_round),
        )


def _check_schedule(key: str, text: str) -> None:
    try:
        _Ramp.parse(text)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None


@dataclass(frozen=True)
class _Ramp:
    """A multiple by round: `factor` up to round `first`, one from round `last` on."""

    factor: float = 1.0
    first: int = 0
    last: int = 1
    geometric: bool = False

    @classmethod
    def parse(cls, text: str) -> "_Ramp":
        """Return the ramp that a schedule's text describes."""
        if not text:
            return cls()
        ramp = cls._matched(text)
        if ramp is None or not (ramp.factor > 0 and ramp.first < ramp.last):
            raise ValueError(
                f"is {text!r}, wanted 'warmup 4x 20', 'linear 4x 5-20', "
                "'geometric 4x 5-20' or ''"
            )
        return ramp

    @classmethod
    def _matched(cls, text: str) -> "_Ramp | None":
        warmup = _WARMUP.fullmatch(text)
        if warmup is not None:
            # no ramp: the multiple holds in round `last`, and ends with it
            last = int(warmup["last"])
            return cls(float(warmup["factor"]), first=last, last=last + 1)
        decline = _DECLINE.fullmatch(text)
        if decline is not None:
            return cls(
                float(decline["factor"]),
                first=int(decline["first"]),
                last=int(decline["last"]),
                geometric=decline["shape"] == "geometric",
            )
        return None

    def applied(self, bits: float, server_round: int) -> float:
        """Return the multiple of `bits` in a round; not more than 32 by it."""
        left = (self.last - server_round) / (self.last - self.first)
        left = min(max(left, 0.0), 1.0)
        if self.geometric:
            multiple = float(self.factor**left)
        else:
            multiple = 1.0 + (self.factor - 1.0) * left
        # bits that were above 32 without the schedule stay
        return min(bits * multiple, max(bits, MOST_BITS))
