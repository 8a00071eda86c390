"""Ready-made rules for budgets: what a device's node config says, what its link is measured to bear, schedules."""

import re
from dataclasses import dataclass

from flwr_splitfc.exchange.server.budget_rules import (
    MOST_BITS,
    BudgetRule,
    DeviceRound,
    is_budget,
)

_NUMBER = r"\d{1,6}(?:\.\d{1,6})?"
_SCHEDULE = re.compile(
    rf"(?P<shape>warmup|linear|geometric) (?P<factor>{_NUMBER})x ((?P<first>\d{{1,9}})-)?(?P<last>\d{{1,9}})",
    re.ASCII,
)
_THROUGHPUT = re.compile(
    rf"throughput ({_NUMBER})s(?: ({_NUMBER})-({_NUMBER}))?", re.ASCII
)


@dataclass(frozen=True)
class NodeConfigBudgets:
    """The bits that a device's node config asks for, under the keys that a run-config has them.

    ``--node-config "partition-id=3 uplink-bits=0.1"``; ``uplink-bits`` and
    ``downlink-bits``, and for the second cut of U-shaped split learning
    ``output-uplink-bits`` and ``output-downlink-bits``. A direction without a key is
    left as it is.

    Raises
    ------
    ValueError
        When asked about a device whose value is no number above 0 and at most 32.

    Examples
    --------
    >>> NodeConfigBudgets()(DeviceRound("3", 1, 0.2, 0.4, node_config={"uplink-bits": 0.1}))
    (0.1, 0.4)
    """

    def __call__(self, device: DeviceRound) -> tuple[float, float] | None:
        """As its node config says."""
        prefix = "" if device.cut == "features" else "output-"
        up = self._told(device, f"{prefix}uplink-bits", device.uplink_bits)
        return up, self._told(device, f"{prefix}downlink-bits", device.downlink_bits)

    @staticmethod
    def _told(device: DeviceRound, key: str, default: float) -> float:
        if key not in device.node_config:
            return default
        value = device.node_config[key]
        if not is_budget(value):
            raise ValueError(
                f"{key} is {value!r:.100}, wanted a number above 0 and at most {MOST_BITS:g}"
            )
        return float(value)


@dataclass(frozen=True)
class ThroughputBudgets:
    """As many bits as let the frames of a step be on their way for a given time, by the device's last turn.

    Both directions are scaled alike, by the time wanted over the time measured: what a
    step moves beside features and gradient, and round trips, only slow the approach.
    Without a measurement, as in a first turn, budgets are left as they are.

    Parameters
    ----------
    step_seconds : float
        Up and down together, so that either takes less.
    least_bits, most_bits : float
        What no device gets less or more than.

    Examples
    --------
    >>> from flwr_splitfc.exchange.server.budget_rules import LastTurn
    >>> slow = LastTurn(0.2, 0.4, steps=10, uplink_bytes=20_000, downlink_bytes=40_000, link_seconds=4.0)
    >>> ThroughputBudgets(0.1)(DeviceRound("3", 2, 0.2, 0.4, last=slow))
    (0.05, 0.1)
    """

    step_seconds: float
    least_bits: float = 0.05
    most_bits: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.step_seconds < float("inf"):
            raise ValueError(
                f"step_seconds is {self.step_seconds}, wanted a finite number above 0"
            )
        if not 0 < self.least_bits <= self.most_bits <= MOST_BITS:
            wanted = f"wanted 0 < least_bits <= most_bits <= {MOST_BITS:g}"
            raise ValueError(
                f"least_bits is {self.least_bits} and most_bits {self.most_bits}, {wanted}"
            )

    def __call__(self, device: DeviceRound) -> tuple[float, float] | None:
        """As its last turn says."""
        last = device.last
        if last is None or not last.step_link_seconds:
            return None
        scale = self.step_seconds / last.step_link_seconds
        return self._clipped(last.uplink_bits * scale), self._clipped(
            last.downlink_bits * scale
        )

    def _clipped(self, bits: float) -> float:
        return min(max(bits, self.least_bits), self.most_bits)


@dataclass(frozen=True)
class BudgetSchedule:
    """More bits in early rounds: a multiple of what each device would get, which becomes one.

    A round is what the strategy calls one, with devices in turn a turn of one device.
    No device gets more than 32 bits by it.

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
    >>> [rule(DeviceRound("3", server_round, 0.2, 0.4)) for server_round in (1, 2, 3, 4)]
    [(0.8, 0.8), (0.4, 0.4), (0.2, 0.4), (0.2, 0.4)]
    """

    uplink: str = ""
    downlink: str = ""

    def __post_init__(self) -> None:
        for name in ("uplink", "downlink"):
            try:
                _Ramp.parse(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}-schedule {error}") from None

    def __call__(self, device: DeviceRound) -> tuple[float, float] | None:
        """As its round says."""
        up = _Ramp.parse(self.uplink).applied(device.uplink_bits, device.server_round)
        return up, _Ramp.parse(self.downlink).applied(
            device.downlink_bits, device.server_round
        )


@dataclass(frozen=True)
class _Ramp:
    """A factor up to round `first`, one from round `last` on."""

    factor: float = 1.0
    first: int = 0
    last: int = 1
    geometric: bool = False

    @classmethod
    def parse(cls, text: str) -> "_Ramp":
        if not text:
            return cls()
        if match := _SCHEDULE.fullmatch(text):
            factor, last, is_warmup = (
                float(match["factor"]),
                int(match["last"]),
                match["shape"] == "warmup",
            )
            first = last if match["first"] is None else int(match["first"])
            if factor > 0 and (match["first"] is None if is_warmup else first < last):
                return cls(
                    factor, first, last + is_warmup, match["shape"] == "geometric"
                )
        raise ValueError(
            f"is {text!r}, wanted 'warmup 4x 20', 'linear 4x 5-20', 'geometric 4x 5-20' or ''"
        )

    def applied(self, bits: float, server_round: int) -> float:
        left = min(max((self.last - server_round) / (self.last - self.first), 0.0), 1.0)
        factor = (
            self.factor**left if self.geometric else 1.0 + (self.factor - 1.0) * left
        )
        return min(bits * float(factor), max(bits, MOST_BITS))


def budget_rules(text: str) -> list[BudgetRule]:
    """The rule that a run-config names: ``node-config``, ``throughput 0.05s``, ``throughput 0.05s 0.1-4`` or none.

    The second number and the third are the least and the most bits.

    >>> budget_rules("throughput 0.05s 0.1-4")
    [ThroughputBudgets(step_seconds=0.05, least_bits=0.1, most_bits=4.0)]
    """
    if not text:
        return []
    if text == "node-config":
        return [NodeConfigBudgets()]
    if match := _THROUGHPUT.fullmatch(text):
        try:
            return [
                ThroughputBudgets(
                    *(float(number) for number in match.groups() if number)
                )
            ]
        except ValueError as error:
            raise ValueError(f"device-budgets is {text!r}: {error}") from None
    wanted = "'node-config', 'throughput 0.05s', 'throughput 0.05s 0.1-4' or ''"
    raise ValueError(f"device-budgets is {text!r}, wanted {wanted}")
