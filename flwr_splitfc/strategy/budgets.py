"""Ready-made rules for budgets: what a device's node config says, what its link bears.

By throughput, a device's bits in both directions are its last turn's times

    step_seconds / (seconds that the frames of a step were on their way in that turn),

between the least and the most bits that a device may get.
"""

import re
from dataclasses import dataclass

from flwr_splitfc.exchange.server.accounts.budget_rules import (
    MOST_BITS,
    BudgetRule,
    DeviceRound,
    is_budget,
)
from flwr_splitfc.settings import check_dashes

_NUMBER = r"\d{1,6}(?:\.\d{1,6})?"
_THROUGHPUT = re.compile(
    rf"throughput ({_NUMBER})s(?: ({_NUMBER})-({_NUMBER}))?", re.ASCII
)


@dataclass(frozen=True)
class NodeConfigBudgets:
    """The bits that a device's node config asks for, under the keys of a run-config.

    ``--node-config "partition-id=3 uplink-bits=0.1"``; ``uplink-bits`` and
    ``downlink-bits``, and for the second cut of U-shaped split learning
    ``output-uplink-bits`` and ``output-downlink-bits``. A direction without a key is
    left as it is.

    Raises
    ------
    ValueError
        When asked about a device whose value is no number above 0 and at most 32, or
        whose key is written with underscores.

    Examples
    --------
    >>> device = DeviceRound("3", 1, 0.2, 0.4, node_config={"uplink-bits": 0.1})
    >>> NodeConfigBudgets()(device)
    (0.1, 0.4)
    """

    def __call__(self, device: DeviceRound) -> tuple[float, float] | None:
        """Return the bits that the device's node config names."""
        prefix = "" if device.cut == "features" else "output-"
        uplink = _configured_bits(device, f"{prefix}uplink-bits", device.uplink_bits)
        downlink = _configured_bits(
            device, f"{prefix}downlink-bits", device.downlink_bits
        )
        return uplink, downlink


def _configured_bits(device: DeviceRound, key: str, default: float) -> float:
    check_dashes(device.node_config, [key])
    if key not in device.node_config:
        return default
    value = device.node_config[key]
    if not is_budget(value):
        # a device may tell a text of any length
        raise ValueError(
            f"{key} is {value!r:.100}, "
            f"wanted a number above 0 and at most {MOST_BITS:g}"
        )
    return float(value)


@dataclass(frozen=True)
class ThroughputBudgets:
    """As many bits as let the frames of a step be on their way for a given time.

    The device's last turn decides. Both directions are scaled alike, by the time wanted
    over the time measured: what a step moves beside features and gradient, and round
    trips, only slow the approach. Without a measurement, as in a first turn, budgets
    are left as they are.

    Parameters
    ----------
    step_seconds : float
        Up and down together, so that either takes less.
    least_bits, most_bits : float
        What no device gets less or more than.

    Examples
    --------
    >>> from flwr_splitfc.exchange.server.accounts.budget_rules import LastTurn
    >>> slow = LastTurn(
    ...     uplink_bits=0.2,
    ...     downlink_bits=0.4,
    ...     steps=10,
    ...     uplink_bytes=20_000,
    ...     downlink_bytes=40_000,
    ...     link_seconds=4.0,
    ... )
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
            raise ValueError(
                f"least_bits is {self.least_bits} and most_bits {self.most_bits}, "
                f"wanted 0 < least_bits <= most_bits <= {MOST_BITS:g}"
            )

    def __call__(self, device: DeviceRound) -> tuple[float, float] | None:
        """Return the bits that its last turn allows."""
        last = device.last
        # not measured: a first turn, or frames that travel in messages
        if last is None or not last.step_link_seconds:
            return None
        scale = self.step_seconds / last.step_link_seconds
        return (
            self._clipped(last.uplink_bits * scale),
            self._clipped(last.downlink_bits * scale),
        )

    def _clipped(self, bits: float) -> float:
        return min(max(bits, self.least_bits), self.most_bits)


def budget_rules(text: str) -> list[BudgetRule]:
    """Return the rule that a run-config's ``device-budgets`` names.

    It is ``node-config``, ``throughput 0.05s``, ``throughput 0.05s 0.1-4``, whose
    second and third number are the least and the most bits, or nothing for no rule.

    >>> budget_rules("throughput 0.05s 0.1-4")
    [ThroughputBudgets(step_seconds=0.05, least_bits=0.1, most_bits=4.0)]
    """
    if not text:
        return []
    if text == "node-config":
        return [NodeConfigBudgets()]
    match = _THROUGHPUT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"device-budgets is {text!r}, wanted 'node-config', 'throughput 0.05s', "
            "'throughput 0.05s 0.1-4' or ''"
        )
    numbers = [float(number) for number in match.groups() if number is not None]
    try:
        return [ThroughputBudgets(*numbers)]
    except ValueError as error:
        raise ValueError(f"device-budgets is {text!r}: {error}") from None
