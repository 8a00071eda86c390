"""What the codecs cost and what they save, beside what one would pick instead.

    python benchmarks/codecs.py python benchmarks/codecs.py --shapes 256x1152 --codecs
    splitfc,splitfc-power --json codecs.json python benchmarks/codecs.py --shapes
    256x1024,256x16384,256x262144 --plot scaling.svg

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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from constriction import stream
from torch import Tensor
from torch.nn.functional import avg_pool2d

from flwr_splitfc.codec import CutCodec, Link, codec_names, cut_codec
from flwr_splitfc.codec.arrays import Symbols
from flwr_splitfc.codec.format.symbols import Model, SymbolReader

T = TypeVar("T")
Shape = tuple[int, int]
Runs = list[tuple[Symbols, Model]]

FEWEST_ROUNDS, MOST_ROUNDS = 5, 200


@dataclass(frozen=True)
class Batch:
    """Features of a convolution after its ReLU and a gradient by them, both (B, D), with `channels` of equal size."""

    features: Tensor
    gradient: Tensor
    channels: int

    @property
    def shape(self) -> Shape:
        rows, columns = self.features.shape
        return rows, columns

    @classmethod
    def like_convolution(cls, rows: int, columns: int, seed: int = 0) -> Batch:
        side = next(side for side in (6, 8, 4, 1) if columns % (side * side) == 0)
        channels, draw = columns // (side * side), torch.Generator().manual_seed(seed)
        noise = torch.randn(rows, channels, side, side, generator=draw)
        smooth = avg_pool2d(noise, 3, 1, 1) if side > 1 else noise
        scale = torch.randn(channels, side, side, generator=draw).div_(2).exp_()
        features = (
            (smooth + torch.randn(channels, 1, 1, generator=draw).div_(3))
            .mul_(scale)
            .relu_()
        )
        errors = (
            torch.randn(rows, 32, generator=draw)
            * torch.rand(rows, 1, generator=draw)
            / rows
        )
        gradient = (errors @ torch.randn(32, columns, generator=draw)).mul_(
            scale.reshape(-1)
        )
        return cls(features.reshape(rows, columns), gradient, channels)


@dataclass(frozen=True)
class Outcome:
    """What one mini-batch gave: four times in ms, two sizes in bytes, two relative errors."""

    steps_ms: list[float]
    payload_bytes: tuple[int, int]
    relative_errors: tuple[float, float]


class Zlib:
    """The bytes of the float32 matrix, deflated at the default level."""

    def encode(self, matrix: Tensor) -> bytes:
        return zlib.compress(matrix.numpy().tobytes())

    def decode(self, data: bytes, shape: Shape) -> Tensor:
        return torch.frombuffer(
            bytearray(zlib.decompress(data)), dtype=torch.float32
        ).view(shape)


PLAIN: dict[str, Zlib] = {"zlib": Zlib()}


def timed(step: Callable[..., T], *arguments: Any, **options: Any) -> tuple[T, float]:
    """The result of a call, and its ms."""
    start = time.perf_counter()
    result = step(*arguments, **options)
    return result, 1e3 * (time.perf_counter() - start)


def relative_error(seen: Tensor, sent: Tensor) -> float:
    return float((seen - sent).norm() / sent.norm())


def plain_batch(coder: Zlib, batch: Batch) -> Outcome:
    shape = batch.shape
    up, encode_up = timed(coder.encode, batch.features)
    seen, decode_up = timed(coder.decode, up, shape)
    down, encode_down = timed(coder.encode, batch.gradient)
    gradient, decode_down = timed(coder.decode, down, shape)
    errors = (
        relative_error(seen, batch.features),
        relative_error(gradient, batch.gradient),
    )
    return Outcome(
        [encode_up, decode_up, encode_down, decode_down], (len(up), len(down)), errors
    )


def codec_batch(cut: CutCodec, batch: Batch, generator: torch.Generator) -> Outcome:
    (up, link), encode_up = timed(
        cut.encode_features,
        batch.features,
        generator=generator,
        channels=batch.channels,
    )
    (seen, server_link), decode_up = timed(cut.decode_features, up, expect=batch.shape)
    down, encode_down = timed(cut.encode_gradient, batch.gradient, server_link)
    gradient, decode_down = timed(cut.decode_gradient, down, link)
    errors = (
        kept_error(seen, batch.features, link),
        kept_error(gradient, batch.gradient, link),
    )
    return Outcome(
        [encode_up, decode_up, encode_down, decode_down],
        (len(up.data), len(down.data)),
        errors,
    )


def kept_error(seen: Tensor, matrix: Tensor, link: Link) -> float:
    """Error of the kept columns as they were sent; that dropout loses the others is not counted."""
    kept = link.restrict(matrix)
    return relative_error(
        link.restrict(seen), kept if link.scale is None else kept * link.scale
    )


@contextmanager
def symbols_read() -> Iterator[Runs]:
    """Collects the symbols of every payload that is decoded meanwhile."""
    runs: Runs = []
    read = SymbolReader.read

    def collecting(reader: SymbolReader, count: int, levels: Model) -> Symbols:
        symbols = read(reader, count, levels)
        runs.append((symbols, levels))
        return symbols

    SymbolReader.read = collecting  # type: ignore[assignment,method-assign]
    try:
        yield runs
    finally:
        SymbolReader.read = read  # type: ignore[method-assign]


def range_code(runs: Runs) -> None:
    """Nothing but the range coder, both ways."""
    encoder = stream.queue.RangeEncoder()
    for symbols, levels in runs:
        encoder.encode(symbols, *model(levels))
    decoder = stream.queue.RangeDecoder(encoder.get_compressed())
    for symbols, levels in runs:
        decoder.decode(
            *model(levels), *([] if isinstance(levels, np.ndarray) else [len(symbols)])
        )


def model(levels: Model) -> list[Any]:
    if isinstance(levels, np.ndarray):
        return [stream.model.Uniform(), levels]
    return [stream.model.Uniform(levels) if isinstance(levels, int) else levels]


@dataclass(frozen=True)
class Row:
    """Medians over all rounds of one codec and shape."""

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
        up, down = self.payload_bytes
        return 8 * up / (self.rows * self.columns), 8 * down / (
            self.rows * self.columns
        )


def measure(name: str, batch: Batch, seconds: float) -> Row:
    """Rounds of a copy, the four steps and the range coder alone, for `seconds` or a few rounds."""
    run = runner(name, batch)
    with symbols_read() as runs:
        run()
    outcomes: list[Outcome] = []
    copies_ms, coding_ms = [], []
    end = time.perf_counter() + seconds
    while len(outcomes) < FEWEST_ROUNDS or (
        time.perf_counter() < end and len(outcomes) < MOST_ROUNDS
    ):
        copies_ms.append(timed(batch.features.clone)[1])
        outcomes.append(run())
        coding_ms.append(timed(range_code, runs)[1])
    copy_ms = median(copies_ms)
    return Row(
        name,
        *batch.shape,
        len(outcomes),
        [
            median(steps)
            for steps in zip(*(outcome.steps_ms for outcome in outcomes), strict=True)
        ],
        median(sum(outcome.steps_ms) for outcome in outcomes),
        copy_ms,
        4 * copy_ms + median(coding_ms),
        sum(len(symbols) for symbols, _ in runs),
        outcomes[-1].payload_bytes,
        outcomes[-1].relative_errors,
    )


def runner(name: str, batch: Batch) -> Callable[[], Outcome]:
    if name in PLAIN:
        return lambda: plain_batch(PLAIN[name], batch)
    cut, generator = affordable_cut(name, *batch.shape), torch.Generator()
    return lambda: codec_batch(cut, batch, generator.manual_seed(1))


def affordable_cut(name: str, rows: int, columns: int) -> CutCodec:
    """With its default budgets, or the smallest that work where they do not."""
    cut = cut_codec(name)
    up, down = cut.smallest_bits(rows, columns)
    return cut_codec(
        name,
        uplink_bits=max(cut.uplink_bits, up),
        downlink_bits=max(cut.downlink_bits, down),
    )


HEADINGS = (
    "codec", "enc F", "dec F", "enc G", "dec G", "sum ms", "/copy", "floor", "/floor",
    "F bytes", "G bytes", "F bits", "G bits", "F error", "G error",
)  # fmt: skip


def cells(row: Row) -> list[str]:
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
    lines = [HEADINGS, *map(cells, rows)]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(first),
                *(
                    text.rjust(width)
                    for text, width in zip(line[1:], others, strict=True)
                ),
            ]
        )
        for line in lines
    )


def machine(threads: int) -> dict[str, str]:
    """What the numbers depend on."""
    models = [
        line.partition(":")[2].strip()
        for line in cpu_lines()
        if line.startswith("model name")
    ]
    packages = {
        name: version(name)
        for name in ("flwr-splitfc", "torch", "numpy", "constriction")
    }
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": str(threads),
        "python": platform.python_version(),
        **packages,
    }


def cpu_lines() -> list[str]:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text().splitlines()
    return []


def keep_freed_memory() -> None:
    """Stop glibc from returning memory to the system: the page faults to get it back would be most of the time."""
    trim_threshold, most_mapped, never, none = -1, -4, -1, 0
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, never)
        libc.mallopt(most_mapped, none)


COLOURS = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
"""Okabe and Ito's, which colour-blind readers tell apart; the markers do too."""


def plot(rows: Sequence[Row], path: Path) -> None:
    """Time of the four steps over columns, beside copies and a line of slope one."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    columns = sorted({row.columns for row in rows})
    slowest = max(rows, key=lambda row: row.sum_ms)
    guide = [1.7 * slowest.sum_ms * count / slowest.columns for count in columns]
    axes.loglog(columns, guide, "--", color="0.45", label="proportional to D")
    names = dict.fromkeys(row.codec for row in rows)
    for name, colour, marker in zip(
        names, cycle(COLOURS), cycle("soD^vPX*"), strict=False
    ):
        ours = [
            next(
                row.sum_ms for row in rows if (row.codec, row.columns) == (name, count)
            )
            for count in columns
        ]
        axes.loglog(columns, ours, marker=marker, color=colour, label=name)
    copies = [
        4 * median(row.copy_ms for row in rows if row.columns == count)
        for count in columns
    ]
    axes.loglog(columns, copies, ":", color="0.45", label="four copies of the matrix")
    axes.set_xticks(columns, [f"{count:,}" for count in columns])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("columns D at the cut")
    axes.set_ylabel("time of all four steps (ms)")
    axes.set_title(
        f"One mini-batch of {slowest.rows} rows: encode and decode features and gradient"
    )
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def shape(text: str) -> Shape:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--shapes",
        default="256x1152,256x8192",
        help="rows x columns, several by comma (default: %(default)s)",
    )
    add(
        "--codecs",
        default=",".join([*codec_names(), *PLAIN]),
        help="by comma (default: %(default)s)",
    )
    add("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=3.0,
        help="for each codec and shape (default: %(default)s)",
    )
    add("--page-faults", action="store_true", help="leave malloc as it is")
    add("--json", type=Path, metavar="FILE", help="write all numbers there too")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw time over columns, as .svg or .png",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if not args.page_faults:
        keep_freed_memory()
    facts, rows = machine(args.threads), []
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    for size in map(shape, args.shapes.split(",")):
        batch = Batch.like_convolution(*size)
        own = [measure(name, batch, args.seconds) for name in args.codecs.split(",")]
        copy_ms = median(row.copy_ms for row in own)
        print(
            f"\n{size[0]} x {size[1]}, a copy {copy_ms:.3f} ms\n{table(own)}",
            flush=True,
        )
        rows += own
    if args.json:
        args.json.write_text(
            json.dumps(
                {"machine": facts, "rows": [asdict(row) for row in rows]}, indent=1
            )
        )
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
