"""Simulated links between devices and server, and the time that a round takes on them. Nothing sleeps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from math import isfinite
from random import Random

from flwr_splitfc.compare.flower_app import SettingsError

_DISTRIBUTIONS: dict[str, tuple[int, Callable[..., float]]] = {
    "constant": (1, lambda random, value: value),
    "uniform": (2, lambda random, low, high: random.uniform(low, high)),
    "lognormal": (
        2,
        lambda random, median, sigma: median * random.lognormvariate(0.0, sigma),
    ),
}
"""How many numbers describe each, and how one is drawn."""
_MOST_SIGMA = 10  # one device in six has then more than e^10 times the median
_WANTED = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA, with numbers from 0"


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
        """From ``10``, ``uniform:2:20`` or ``lognormal:10:0.5``.

        >>> Draw.parse("10"), Draw.parse("uniform:2:20")
        (Draw(kind='constant', numbers=(10.0,)), Draw(kind='uniform', numbers=(2.0, 20.0)))
        """
        kind, *numbers = text.split(":") if ":" in text else ("constant", text)
        try:
            draw = cls(kind, tuple(map(float, numbers)))
        except ValueError as error:
            raise SettingsError(f"{text!r} is not {_WANTED}") from error
        count, _ = _DISTRIBUTIONS.get(kind, (0, None))
        if count != len(numbers) or not all(
            isfinite(number) and number >= 0 for number in draw.numbers
        ):
            raise SettingsError(f"{text!r} is not {_WANTED}")
        if kind == "uniform" and draw.numbers[0] > draw.numbers[1]:
            raise SettingsError(f"{text!r} has LOW above HIGH")
        if kind == "lognormal" and draw.numbers[1] > _MOST_SIGMA:
            raise SettingsError(f"{text!r} has SIGMA above {_MOST_SIGMA}")
        return draw

    def of(self, random: Random) -> float:
        """The number that `random` gives."""
        return _DISTRIBUTIONS[self.kind][1](random, *self.numbers)

    def __str__(self) -> str:
        numbers = [f"{number:g}" for number in self.numbers]
        return ":".join(numbers if self.kind == "constant" else [self.kind, *numbers])


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
        """From ``up=10,down=50,rtt=40,seed=0`` in any order; what is not given is as here.

        >>> str(RadioLink.parse("up=lognormal:10:0.5,rtt=20"))
        'up=lognormal:10:0.5,down=50,rtt=20,seed=0'
        """
        parts = [part.partition("=") for part in text.replace(" ", "").split(",")]
        given = {key: value for key, _, value in parts}
        if len(given) < len(parts) or not given.keys() <= {
            field.name for field in fields(cls)
        }:
            raise SettingsError(
                f"a link is written like {cls()}, nothing twice, got {text!r}"
            )
        if not (seed := given.pop("seed", "0")).isdecimal():
            raise SettingsError(f"a link's seed is a whole number, got {seed!r}")
        link = cls(
            **{key: Draw.parse(value) for key, value in given.items()}, seed=int(seed)
        )
        if not (link.up.numbers[0] > 0 and link.down.numbers[0] > 0):
            raise SettingsError(f"a link has rates above 0, got {text!r}")
        return link

    def seconds(
        self,
        device: str,
        uplink_bytes: float,
        downlink_bytes: float,
        round_trips: float,
    ) -> float:
        """How long a device's traffic takes, one thing after another.

        >>> RadioLink().seconds("0", uplink_bytes=1_250_000, downlink_bytes=6_250_000, round_trips=100)
        6.0
        """
        up, down, rtt = _drawn(self, device)
        return (
            8 * uplink_bytes / (up * 1e6)
            + 8 * downlink_bytes / (down * 1e6)
            + round_trips * rtt / 1e3
        )

    def round_s(self, links: Mapping[str, Mapping[str, Sequence[float]]]) -> float:
        """How long a round takes, of which `links` stand in its row (`Progress`).

        Devices work side by side and the round waits for the slowest; evaluation comes
        after training.
        """
        return sum(
            max(
                (self.seconds(device, *moved) for device, moved in devices.items()),
                default=0.0,
            )
            for devices in links.values()
        )

    def __str__(self) -> str:
        return ",".join(
            f"{field.name}={getattr(self, field.name)}" for field in fields(self)
        )


@cache
def _drawn(link: RadioLink, device: str) -> tuple[float, float, float]:
    """Rates and round trip of a device, each from a generator of its own: another `up` leaves `rtt` as it was."""
    up, down, rtt = (
        getattr(link, key).of(Random(f"{link.seed}/{key}/{device}"))
        for key in ("up", "down", "rtt")
    )
    return up, down, rtt
