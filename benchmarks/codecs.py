"""The time that codecs take and the bytes that they save, beside simpler ways.

    python benchmarks/codecs.py
    python benchmarks/codecs.py --shapes 256x1152 --codecs splitfc,splitfc-power \\
        --json codecs.json
    python benchmarks/codecs.py --shapes 256x1024,256x16384,256x262144 \\
        --plot scaling.svg

`benchmarks/README.md` says what the columns mean. `--plot` needs ``pip install
matplotlib``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from range_coder import Runs, range_decode, range_encode, symbols_read
from torch import Tensor
from torch.nn.functional import avg_pool2d

from flwr_splitfc.codec import CutCodec, Link, codec_names, cut_codec

T = TypeVar("T")
Shape = tuple[int, int]

# bits per entry, or more where a codec needs more
UPLINK_BITS, DOWNLINK_BITS = 0.2, 0.4

FEWEST_ROUNDS = 5
MOST_ROUNDS = 200


# Mini-batches


@dataclass(frozen=True)
class Batch:
    """Features like those of a convolution and its ReLU, and a gradient by them.

    Parameters
    ----------
    features, gradient : Tensor of shape (B, D)
    channels : int
        How many channels of equal size the columns are.
    """

    features: Tensor
    gradient: Tensor
    channels: int

    @property
    def shape(self) -> Shape:
        rows, columns = self.features.shape
        return rows, columns

    @classmethod
    def like_convolution(cls, rows: int, columns: int, seed: int = 0) -> Batch:
        """Draw smooth maps of 6 x 6, 8 x 8, 4 x 4 or single places."""
        side = map_side(columns)
        channels = columns // (side * side)
        draw = torch.Generator().manual_seed(seed)

        noise = torch.randn(rows, channels, side, side, generator=draw)
        smooth = avg_pool2d(noise, 3, 1, 1) if side > 1 else noise
        # columns of very different ranges, and channels that are rarely or often zero
        scale = torch.randn(channels, side, side, generator=draw).div_(2).exp_()
        offset = torch.randn(channels, 1, 1, generator=draw).div_(3)
        features = (smooth + offset).mul_(scale).relu_()

        gradient = low_rank_gradient(rows, columns, draw)
        gradient.mul_(scale.reshape(-1))
        return cls(features.reshape(rows, columns), gradient, channels)


def map_side(columns: int) -> int:
    """Return the side of a channel's square map, which divides the columns evenly."""
    for side in (6, 8, 4):
        if columns % (side * side) == 0:
            return side
    return 1


def low_rank_gradient(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """Draw a gradient of rank 32, with rows of different norms."""
    rank = 32
    errors = torch.randn(rows, rank, generator=draw)
    norms = torch.rand(rows, 1, generator=draw)
    weights = torch.randn(rank, columns, generator=draw)
    return (errors * norms / rows) @ weights


# One mini-batch through a codec


@dataclass(frozen=True)
class Outcome:
    """The results of one mini-batch.

    Parameters
    ----------
    steps_ms : list of float
        Times to encode and decode the features, and to encode and decode the gradient.
    payload_bytes : tuple of int
        Up and down.
    relative_errors : tuple of float
        Of the features and of the gradient.
    """

    steps_ms: list[float]
    payload_bytes: tuple[int, int]
    relative_errors: tuple[float, float]


class Zlib:
    """The bytes of the float32 matrix, deflated at the default level."""

    def encode(self, matrix: Tensor) -> bytes:
        return zlib.compress(matrix.numpy().tobytes())

    def decode(self, data: bytes, shape: Shape) -> Tensor:
        entries = bytearray(zlib.decompress(data))
        return torch.frombuffer(entries, dtype=torch.float32).view(shape)


PLAIN: dict[str, Zlib] = {"zlib": Zlib()}
"""What is measured beside the codecs, by name."""


def timed(step: Callable[..., T], *arguments: Any, **options: Any) -> tuple[T, float]:
    """Return the result of a call, and its ms."""
    start = time.perf_counter()
    result = step(*arguments, **options)
    return result, 1e3 * (time.perf_counter() - start)


def relative_error(seen: Tensor, sent: Tensor) -> float:
    error = (seen - sent).norm()
    return float(error / sent.norm())


def plain_batch(coder: Zlib, batch: Batch) -> Outcome:
    """Send a mini-batch through a coder that knows nothing but bytes."""
    shape = batch.shape
    up, encode_up_ms = timed(coder.encode, batch.features)
    seen, decode_up_ms = timed(coder.decode, up, shape)
    down, encode_down_ms = timed(coder.encode, batch.gradient)
    gradient, decode_down_ms = timed(coder.decode, down, shape)
    return Outcome(
        steps_ms=[encode_up_ms, decode_up_ms, encode_down_ms, decode_down_ms],
        payload_bytes=(len(up), len(down)),
        relative_errors=(
            relative_error(seen, batch.features),
            relative_error(gradient, batch.gradient),
        ),
    )


def codec_batch(cut: CutCodec, batch: Batch, generator: torch.Generator) -> Outcome:
    """Send a mini-batch through a codec, as a device and a server do."""
    (up, link), encode_up_ms = timed(
        cut.encode_features,
        batch.features,
        generator=generator,
        channels=batch.channels,
    )
    (seen, server_link), decode_up_ms = timed(
        cut.decode_features, up, expect=batch.shape
    )
    down, encode_down_ms = timed(cut.encode_gradient, batch.gradient, server_link)
    gradient, decode_down_ms = timed(cut.decode_gradient, down, link)
    return Outcome(
        steps_ms=[encode_up_ms, decode_up_ms, encode_down_ms, decode_down_ms],
        payload_bytes=(len(up.data), len(down.data)),
        relative_errors=(
            kept_error(seen, batch.features, link),
            kept_error(gradient, batch.gradient, link),
        ),
    )


def kept_error(seen: Tensor, matrix: Tensor, link: Link) -> float:
    """Return the error of the kept columns, relative to what was sent of them.

    That dropout loses the other columns is not counted.
    """
    sent = link.restrict(matrix)
    if link.scale is not None:
        sent = sent * link.scale
    return relative_error(link.restrict(seen), sent)


# The range coder alone


def range_code(runs: Runs) -> None:
    range_decode(range_encode(runs), runs)


# Measuring


@dataclass(frozen=True)
class Row:
    """One codec at one shape; times are medians over all rounds.

    Parameters
    ----------
    codec : str
    rows, columns : int
    rounds : int
        How often the mini-batch was sent.
    steps_ms : list of float
        As in `Outcome`.
    sum_ms : float
        All four steps.
    copy_ms : float
        One copy of the matrix.
    floor_ms : float
        Four copies, and the range coder for as many symbols both ways.
    symbols : int
        Up and down together.
    payload_bytes : tuple of int
    relative_errors : tuple of float
    """

    codec: str
    rows: int
    columns: int
    rounds: int
    steps_ms: list[float]
    sum_ms: float
    copy_ms: float
    floor_ms: float
    symbols: int
    payload_bytes: tuple[int, int]
    relative_errors: tuple[float, float]

    @property
    def bits_per_entry(self) -> tuple[float, float]:
        entries = self.rows * self.columns
        up, down = self.payload_bytes
        return 8 * up / entries, 8 * down / entries


def measure(name: str, batch: Batch, seconds: float) -> Row:
    """Measure a codec for `seconds`, or for a few rounds if these take longer.

    A copy, the four steps and the range coder take turns, so that a noisy machine slows
    all of them.
    """
    send = sender(name, batch)
    with symbols_read() as runs:
        send()
    outcomes: list[Outcome] = []
    copies_ms = []
    coding_ms = []
    end = time.perf_counter() + seconds
    while goes_on(len(outcomes), end):
        copies_ms.append(timed(batch.features.clone)[1])
        outcomes.append(send())
        coding_ms.append(timed(range_code, runs)[1])
    copy_ms = median(copies_ms)
    rows, columns = batch.shape
    return Row(
        codec=name,
        rows=rows,
        columns=columns,
        rounds=len(outcomes),
        steps_ms=median_steps_ms(outcomes),
        sum_ms=median(sum(outcome.steps_ms) for outcome in outcomes),
        copy_ms=copy_ms,
        floor_ms=4 * copy_ms + median(coding_ms),
        symbols=sum(len(symbols) for symbols, _ in runs),
        payload_bytes=outcomes[-1].payload_bytes,
        relative_errors=outcomes[-1].relative_errors,
    )


def goes_on(rounds: int, end: float) -> bool:
    """Say whether another round is due, after so many and until that time."""
    if rounds < FEWEST_ROUNDS:
        return True
    return rounds < MOST_ROUNDS and time.perf_counter() < end


def median_steps_ms(outcomes: Sequence[Outcome]) -> list[float]:
    by_step = zip(*(outcome.steps_ms for outcome in outcomes), strict=True)
    return [median(step_ms) for step_ms in by_step]


def sender(name: str, batch: Batch) -> Callable[[], Outcome]:
    """Return what sends the mini-batch; each call draws the same random numbers."""
    if name in PLAIN:
        return lambda: plain_batch(PLAIN[name], batch)
    rows, columns = batch.shape
    cut = affordable_cut(name, rows, columns)
    generator = torch.Generator()
    return lambda: codec_batch(cut, batch, generator.manual_seed(1))


def affordable_cut(name: str, rows: int, columns: int) -> CutCodec:
    """Return the codec at its quality, or with budgets that work."""
    codec, _, quality = name.partition("@")
    if quality:
        return cut_codec(codec, quality=float(quality))
    up, down = cut_codec(codec).smallest_bits(rows, columns)
    return cut_codec(
        codec, uplink_bits=max(UPLINK_BITS, up), downlink_bits=max(DOWNLINK_BITS, down)
    )


def machine(threads: int) -> dict[str, str]:
    """Return what the numbers depend on."""
    facts = {
        "cpu": cpu_name(),
        "threads": str(threads),
        "python": platform.python_version(),
    }
    for package in ("flwr-splitfc", "torch", "numpy", "numba", "constriction"):
        facts[package] = version(package)
    return facts


def cpu_name() -> str:
    # only Linux has this file
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.startswith("model name"):
                return value.strip()
    return platform.processor()


def keep_freed_memory() -> None:
    """Stop glibc from returning freed memory to the system.

    Page faults to get it back would be most of the time.
    """
    # numbers of parameters, from malloc.h
    trim_threshold = -1
    most_mapped = -4
    never = -1
    none = 0
    # other systems have another libc
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, never)
        libc.mallopt(most_mapped, none)


# What is printed and drawn

HEADINGS = (
    "codec", "enc F", "dec F", "enc G", "dec G", "sum ms", "/copy", "floor", "/floor",
    "F bytes", "G bytes", "F bits", "G bits", "F error", "G error",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """Return the texts of a row, one for each heading."""
    return [
        row.codec,
        *(f"{ms:.2f}" for ms in row.steps_ms),
        f"{row.sum_ms:.2f}",
        f"{row.sum_ms / row.copy_ms:.1f}",
        f"{row.floor_ms:.2f}",
        f"{row.sum_ms / row.floor_ms:.2f}",
        *(f"{size:,}" for size in row.payload_bytes),
        *(f"{bits:.3f}" for bits in row.bits_per_entry),
        *(f"{error:.4f}" for error in row.relative_errors),
    ]


def table(rows: Sequence[Row]) -> str:
    """Return a table whose first column is flush left and whose others are right."""
    lines = [HEADINGS, *map(cells, rows)]
    name_width, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    texts = []
    for name, *numbers in lines:
        padded = [name.ljust(name_width)]
        for number, width in zip(numbers, widths, strict=True):
            padded.append(number.rjust(width))
        texts.append("  ".join(padded))
    return "\n".join(texts)


COLOURS = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
"""Okabe and Ito's, which colour-blind readers tell apart; the markers differ, too."""

MARKERS = "soD^vPX*"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the time of the four steps over columns, beside copies and a line in D."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    columns = sorted({row.columns for row in rows})
    slowest = max(rows, key=lambda row: row.sum_ms)

    # above all others, so that it crosses none of them
    ms_per_column = 1.7 * slowest.sum_ms / slowest.columns
    guide_ms = [ms_per_column * count for count in columns]
    axes.loglog(columns, guide_ms, "--", color="0.45", label="proportional to D")

    names = dict.fromkeys(row.codec for row in rows)
    styles = zip(names, cycle(COLOURS), cycle(MARKERS), strict=False)
    for name, colour, marker in styles:
        sums_ms = {row.columns: row.sum_ms for row in rows if row.codec == name}
        own_ms = [sums_ms[count] for count in columns]
        axes.loglog(columns, own_ms, marker=marker, color=colour, label=name)

    copies_ms = [4 * median_copy_ms(rows, count) for count in columns]
    label = "four copies of the matrix"
    axes.loglog(columns, copies_ms, ":", color="0.45", label=label)

    axes.set_xticks(columns, [f"{count:,}" for count in columns])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("columns D at the cut")
    axes.set_ylabel("time of all four steps (ms)")
    axes.set_title(
        f"One mini-batch of {slowest.rows} rows: "
        "encode and decode features and gradient"
    )
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def median_copy_ms(rows: Sequence[Row], columns: int) -> float:
    return median(row.copy_ms for row in rows if row.columns == columns)


# The command


def parse_shape(text: str) -> Shape:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes",
        default="256x1152,256x8192",
        help="rows x columns, several by comma (default: %(default)s)",
    )
    parser.add_argument(
        "--codecs",
        default=",".join([*codec_names(), *PLAIN]),
        help="by comma; splitfc-rd@20 is at a quality of 20 dB, and splitfc-rd@0 at "
        "the automatic one (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="for each codec and shape (default: %(default)s)",
    )
    parser.add_argument(
        "--page-faults", action="store_true", help="leave malloc as it is"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all numbers there, too"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw time over columns, as .svg or .png",
    )
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """Measure all codecs at all shapes, and print a table for each shape."""
    names = options.codecs.split(",")
    for text in options.shapes.split(","):
        rows, columns = parse_shape(text)
        batch = Batch.like_convolution(rows, columns)
        own = [measure(name, batch, options.seconds) for name in names]
        copy_ms = median_copy_ms(own, columns)
        print(f"\n{rows} x {columns}, a copy {copy_ms:.3f} ms")
        print(table(own), flush=True)
        yield from own


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if not options.page_faults:
        keep_freed_memory()
    facts = machine(options.threads)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    rows = list(measured(options))
    if options.json:
        results = {"machine": facts, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(results, indent=1))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
