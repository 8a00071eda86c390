"""Simulated links between devices and server, and the time a round takes on them.

Nothing sleeps: a device's time in a round is

    8 uplink_bytes / up + 8 downlink_bytes / down + round_trips rtt,

with ``up`` and ``down`` in bit/s. Steps under way at once share round trips, and while
features go up, gradients of earlier ones come down: of their bytes the slower direction
counts alone. The devices of a round work side by side, so that it
takes as long as its slowest one. See ``docs/compare.md``.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from math import isfinite
from random import Random

from flwr_splitfc.run.rounds import RoundLinks

_BITS_PER_MBIT = 1e6
_MS_PER_S = 1e3
_MOST_SIGMA = 10  # one device in six has then more than e^10 times the median
_WANTED = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA, with numbers from 0"


def _constant(random: Random, value: float) -> float:
    return value


def _uniform(random: Random, low: float, high: float) -> float:
    return random.uniform(low, high)


def _lognormal(random: Random, median: float, sigma: float) -> float:
    return median * random.lognormvariate(0.0, sigma)


@dataclass(frozen=True)
class _Distribution:
    """A kind of `Draw`: how many numbers describe one, and how it is drawn."""

    count: int
    draw: Callable[..., float]


_DISTRIBUTIONS = {
    "constant": _Distribution(1, _constant),
    "uniform": _Distribution(2, _uniform),
    "lognormal": _Distribution(2, _lognormal),
}


@dataclass(frozen=True)
class Draw:
    """A number that each device has: the same for all, or drawn.

    Parameters
    ----------
    kind : "constant", "uniform" or "lognormal"
    numbers : tuple of float
        The constant; low and high; the median, and the standard deviation of the
        logarithm.
    """

    kind: str
    numbers: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "Draw":
        """Read ``10``, ``uniform:2:20`` or ``lognormal:10:0.5``.

        >>> Draw.parse("10")
        Draw(kind='constant', numbers=(10.0,))
        >>> Draw.parse("uniform:2:20")
        Draw(kind='uniform', numbers=(2.0, 20.0))
        """
        kind, *texts = text.split(":") if ":" in text else ("constant", text)
        try:
            draw = cls(kind, tuple(float(number) for number in texts))
        except ValueError as error:
            raise ValueError(f"{text!r} is not {_WANTED}") from error
        draw._check(text)
        return draw

    def _check(self, text: str) -> None:
        distribution = _DISTRIBUTIONS.get(self.kind)
        if distribution is None or distribution.count != len(self.numbers):
            raise ValueError(f"{text!r} is not {_WANTED}")
        if not all(isfinite(number) and number >= 0 for number in self.numbers):
            raise ValueError(f"{text!r} is not {_WANTED}")
        if self.kind == "uniform":
            low, high = self.numbers
            if low > high:
                raise ValueError(f"{text!r} has LOW above HIGH")
        if self.kind == "lognormal":
            _, sigma = self.numbers
            if sigma > _MOST_SIGMA:
                raise ValueError(f"{text!r} has SIGMA above {_MOST_SIGMA}")

    def of(self, random: Random) -> float:
        """Return the number that `random` gives."""
        return _DISTRIBUTIONS[self.kind].draw(random, *self.numbers)

    def __str__(self) -> str:
        numbers = ":".join(f"{number:g}" for number in self.numbers)
        return numbers if self.kind == "constant" else f"{self.kind}:{numbers}"


@dataclass(frozen=True)
class RadioLink:
    """The links of all devices.

    What is drawn depends on the seed and on the device's name alone, so that every
    method and every run sees the same devices.

    Parameters
    ----------
    up, down : Draw
        Mbit/s.
    rtt : Draw
        The round trip in milliseconds.
    seed : int
    """

    up: Draw = Draw("constant", (10.0,))
    down: Draw = Draw("constant", (50.0,))
    rtt: Draw = Draw("constant", (40.0,))
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> "RadioLink":
        """Read ``up=10,down=50,rtt=40,seed=0`` in any order; the rest is as here.

        >>> str(RadioLink.parse("up=lognormal:10:0.5,rtt=20"))
        'up=lognormal:10:0.5,down=50,rtt=20,seed=0'
        """
        given = cls._parts(text)
        seed = given.pop("seed", "0")
        if not seed.isdecimal():
            raise ValueError(f"a link's seed is a whole number, got {seed!r}")
        draws = {key: Draw.parse(value) for key, value in given.items()}
        link = cls(**draws, seed=int(seed))
        # The smallest rate is a constant's only number, or LOW, or MEDIAN.
        if link.up.numbers[0] <= 0 or link.down.numbers[0] <= 0:
            raise ValueError(f"a link has rates above 0, got {text!r}")
        return link

    @classmethod
    def _parts(cls, text: str) -> dict[str, str]:
        known = {field.name for field in fields(cls)}
        parts: dict[str, str] = {}
        for part in text.replace(" ", "").split(","):
            key, _, value = part.partition("=")
            if key not in known or key in parts:
                raise ValueError(
                    f"a link is written like {cls()}, nothing twice, got {text!r}"
                )
            parts[key] = value
        return parts

    def seconds(
        self,
        device: str,
        uplink_bytes: float,
        downlink_bytes: float,
        round_trips: float,
        overlapping_up_bytes: float = 0,
        overlapping_down_bytes: float = 0,
    ) -> float:
        """Return how long a device's traffic takes, one thing after another.

        Of all bytes, those that overlap go up and come down at the same time.

        >>> RadioLink().seconds(
        ...     "0", uplink_bytes=1_250_000, downlink_bytes=6_250_000, round_trips=100
        ... )
        6.0
        """
        line = _line_of(self, device)
        up_bits_per_s = line.up * _BITS_PER_MBIT
        down_bits_per_s = line.down * _BITS_PER_MBIT
        up_s = 8 * uplink_bytes / up_bits_per_s
        down_s = 8 * downlink_bytes / down_bits_per_s
        waiting_s = round_trips * line.rtt / _MS_PER_S
        at_once_s = min(
            8 * overlapping_up_bytes / up_bits_per_s,
            8 * overlapping_down_bytes / down_bits_per_s,
        )
        return up_s + down_s + waiting_s - at_once_s

    def round_s(self, links: RoundLinks) -> float:
        """Return how long a round takes, of which `Round.links` are given.

        The round waits for its slowest device; evaluation comes after training.
        """
        total_s = 0.0
        for moved_by_device in links.values():
            times_s = [
                self.seconds(device, *moved)
                for device, moved in moved_by_device.items()
            ]
            total_s += max(times_s, default=0.0)
        return total_s

    def __str__(self) -> str:
        parts = [f"{field.name}={getattr(self, field.name)}" for field in fields(self)]
        return ",".join(parts)


@dataclass(frozen=True)
class _Line:
    """What a device has drawn: Mbit/s up and down, and ms of a round trip."""

    up: float
    down: float
    rtt: float


@cache
def _line_of(link: RadioLink, device: str) -> _Line:
    def drawn(key: str, draw: Draw) -> float:
        # A generator for each number: another `up` leaves `rtt` as it was.
        return draw.of(Random(f"{link.seed}/{key}/{device}"))

    return _Line(
        up=drawn("up", link.up),
        down=drawn("down", link.down),
        rtt=drawn("rtt", link.rtt),
    )
