"""What a process takes, over time: memory, threads and file descriptors."""

import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 2.0
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    seconds: float
    leg: str
    rss_bytes: int
    threads: int
    descriptors: int


class Watch:
    """Takes samples of a process until `stop`."""

    def __init__(self, pid: int) -> None:
        self.samples: list[Sample] = []
        self.leg = ""
        self._process = Path("/proc") / str(pid)
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            try:
                self.samples.append(self._sample())
            except OSError:
                return

    def _sample(self) -> Sample:
        pages = int((self._process / "statm").read_text().split()[1])
        return Sample(
            seconds=time.monotonic() - self._begun,
            leg=self.leg,
            rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            threads=len(list((self._process / "task").iterdir())),
            descriptors=len(list((self._process / "fd").iterdir())),
        )


def growth(samples: list[Sample], what: str) -> float:
    """How much more is taken between attacks in the last quarter than in the one before.

    Between attacks: the lowest tenth, as an attack takes what it takes while it is on.
    The second half: allocators and thread pools grow until they have seen the worst.
    """
    quarter = len(samples) // 4
    values = [float(getattr(sample, what)) for sample in samples]
    before = _lowest_tenth(values[2 * quarter : 3 * quarter])
    return _lowest_tenth(values[3 * quarter :]) - before


def _lowest_tenth(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[0]


def plot(samples: list[Sample], path: Path) -> None:
    """Draw them, one axis each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(9, 7))
    minutes = [sample.seconds / 60 for sample in samples]
    shown = [
        ("resident memory, MiB", [sample.rss_bytes / MIB for sample in samples]),
        ("threads", [sample.threads for sample in samples]),
        ("file descriptors", [sample.descriptors for sample in samples]),
    ]
    for axis, (label, values) in zip(axes, shown, strict=True):
        axis.plot(minutes, values, linewidth=0.8)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_title("The server's process; 6 of 20 devices misbehave")
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
