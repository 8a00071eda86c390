"""Draw what SplitFC drops and how it quantises one batch, for docs/splitfc.md.

    python docs/figures/splitfc_batch.py

The device half of examples/mnist is trained on scikit-learn's digits for a minute or
less, in this process and without a codec. The features of one more batch then go
through `splitfc`, and what was sent is read back from the payload.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flwr_splitfc.codec import CutCodec, cut_codec
from flwr_splitfc.codec.channels import Channels
from flwr_splitfc.codec.format.column_sets import unpack_selection
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.feature.endpoints import Intervals
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    unpack_quant_header,
)
from flwr_splitfc.codec.quantisers.feature.upgrades import column_levels
from flwr_splitfc.codec.selectors.feature_dropout import keep_probabilities
from flwr_splitfc.codec.statistics import column_deviations, column_extremes
from flwr_splitfc.compare.report.looks import picture_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "mnist"))

from splitmnist.task import DeviceHalf, ServerHalf  # noqa: E402

ROWS, STEPS, LEARNING_RATE = 256, 100, 1e-3
REDUCTION, UPLINK_BITS = 8, 0.1

SHOWN_ROWS = 64
"""Samples whose entries are shown; the batch has four times as many."""

Scale: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]

KEPT, DROPPED, MEAN = "#0072B2", "#999999", "#E69F00"


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch's features and what became of them.

    Parameters
    ----------
    sigma, keep : ndarray
        Dispersion and keep probability of each column, (D,).
    kept : ndarray
        The kept columns, from wide to narrow.
    sent, decoded : ndarray
        The kept columns as they were sent, scaled, and as the server sees them, (B, K).
    levels : ndarray
        Levels of each kept column; 0 where its mean stands for it.
    bits_per_entry : float
        Of the payload, per entry of the (B, D) features.
    """

    sigma: NDArray[np.float64]
    keep: NDArray[np.float64]
    kept: NDArray[np.int64]
    sent: NDArray[np.float32]
    decoded: NDArray[np.float32]
    levels: NDArray[np.int64]
    bits_per_entry: float


def trained_features() -> Tensor:
    """Features (B, 32, 6, 6) of a batch, after a few steps of ordinary training."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    labels = torch.from_numpy(digits.target).long()
    device_half, server_half = DeviceHalf(image_size=8), ServerHalf(image_size=8)
    model = nn.Sequential(device_half, server_half)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (ROWS,))
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        features: Tensor = device_half(images[:ROWS])
    return features


def levels_of(payload: memoryview, width: int) -> NDArray[np.int64]:
    """Levels of each kept column, in the payload's order; 0 for a mean-value column."""
    kept, rest = unpack_selection(payload, width)
    count = width if kept is None else len(kept)
    header, stream = unpack_quant_header(rest, count)
    symbols = SymbolReader(stream).read(2 * len(header.two_stage), ENDPOINT_LEVELS)
    spans = Intervals.from_symbols(symbols).spans
    levels = np.zeros(count, np.int64)
    levels[header.two_stage] = column_levels(spans, header.multiplier, header.upgrades)
    return levels


def encoded(cut: CutCodec, features: Tensor) -> Batch:
    """Send the features and look at what arrives."""
    generator = torch.Generator().manual_seed(0)
    array, link = cut.encode_features(features, generator=generator)
    seen, _ = cut.decode_features(array, expect=features.flatten(1).shape)
    matrix = features.flatten(1)
    spans = Channels.of(features.shape).spans(*column_extremes(matrix))
    sigma = column_deviations(matrix, spans)

    assert link.columns is not None
    assert link.scale is not None
    sent = (link.restrict(matrix) * link.scale).numpy()
    order = np.argsort(sent.min(0) - sent.max(0), kind="stable")
    return Batch(
        sigma=sigma.numpy(),
        keep=keep_probabilities(sigma, REDUCTION).numpy(),
        kept=link.columns.numpy()[order],
        sent=sent[:, order],
        decoded=link.restrict(seen).numpy()[:, order],
        levels=levels_of(memoryview(array.data), matrix.shape[1])[order],
        bits_per_entry=8 * len(array.data) / matrix.numel(),
    )


def draw(batch: Batch) -> Figure:
    """Draw dropout, the kept matrix and the levels, one below the other."""
    figure = pyplot.figure(figsize=(9, 8.6), layout="constrained")
    rows = figure.subplot_mosaic(
        [["dropout", "dropout"], ["sent", "decoded"], ["levels", "levels"]],
        height_ratios=[1, 1.35, 0.9],
    )
    draw_dropout(rows["dropout"], batch)
    draw_matrices(figure, rows["sent"], rows["decoded"], batch)
    draw_levels(rows["levels"], batch)
    return figure


def draw_dropout(axes: Axes, batch: Batch) -> None:
    """Draw the keep probabilities, and which columns were drawn."""
    order = np.argsort(-batch.sigma, kind="stable")
    keep = batch.keep[order]
    is_kept = np.isin(order, batch.kept)
    kept_places = np.flatnonzero(is_kept)
    # one broken line for all kept columns, and every eighth point: a small file
    gap = np.full(len(kept_places), np.nan)
    x = np.stack([kept_places, kept_places, gap], 1).ravel()
    y = np.stack([np.zeros_like(gap), keep[is_kept], gap], 1).ravel()
    axes.plot(x, y, color=KEPT, lw=0.9)
    places = np.arange(0, len(order), 8)
    axes.fill_between(places, keep[places], color=DROPPED, alpha=0.25, lw=0)
    axes.plot(places, keep[places], color=DROPPED, lw=1.2)
    axes.set_title(
        f"1. Dropout: {np.count_nonzero(is_kept)} of {len(order)} columns are kept, "
        f"{len(order) / REDUCTION:g} in expectation",
        loc="left",
    )
    axes.set_xlabel("columns, sorted by their standard deviation")
    axes.set_ylabel("keep probability")
    axes.text(
        0.99, 0.88, "blue: kept in this batch", color=KEPT, ha="right",
        transform=axes.transAxes,
    )  # fmt: skip
    axes.set_xlim(0, len(order))
    axes.set_ylim(0)

    deviation = axes.secondary_yaxis(
        "right", functions=deviation_scale(batch.sigma, batch.keep)
    )
    deviation.set_ylabel("standard deviation,\nin spans of the channel")
    axes.spines["right"].set_visible(True)


def deviation_scale(
    sigma: NDArray[np.float64], keep: NDArray[np.float64]
) -> tuple[Scale, Scale]:
    """The straight line from keep probability to standard deviation, and back."""
    slope, offset = np.polyfit(sigma, keep, 1)

    def to_deviation(probability: NDArray[np.float64]) -> NDArray[np.float64]:
        return (probability - offset) / slope

    def to_probability(deviation: NDArray[np.float64]) -> NDArray[np.float64]:
        return slope * deviation + offset

    return to_deviation, to_probability


def draw_matrices(figure: Figure, sent: Axes, decoded: Axes, batch: Batch) -> None:
    """Draw the kept matrix before and after, with a line before the mean columns."""
    top = float(np.percentile(batch.sent, 99.5))
    for axes, matrix, title in (
        (sent, batch.sent, "2. The kept columns, scaled by 1/(1-p) ..."),
        (decoded, batch.decoded, "... and as the server decodes them"),
    ):
        image = axes.imshow(
            matrix[:SHOWN_ROWS], aspect="auto", cmap="viridis", vmin=0, vmax=top,
            interpolation="none",
        )  # fmt: skip
        axes.set_title(title, loc="left")
        axes.set_xlabel("kept columns, from wide to narrow")
        axes.grid(False)
        axes.axvline(two_stage_count(batch) - 0.5, color="white", lw=1, ls="--")
    sent.set_ylabel(f"samples, the first {SHOWN_ROWS} of {len(batch.sent)}")
    figure.colorbar(image, ax=[sent, decoded], label="value", pad=0.01, extend="max")


def draw_levels(axes: Axes, batch: Batch) -> None:
    """Draw the levels of the two-stage columns, and where they end."""
    count, two_stage = len(batch.levels), two_stage_count(batch)
    top = batch.levels.max() + 1
    axes.stairs(batch.levels, np.arange(count + 1) - 0.5, fill=True, color=KEPT)
    axes.axvspan(two_stage - 0.5, count - 0.5, color=MEAN, alpha=0.3, lw=0)
    for start, end, text in (
        (0, two_stage, f"{two_stage} two-stage columns"),
        (two_stage, count, f"{count - two_stage} columns, only their mean is sent"),
    ):
        axes.text((start + end) / 2, top - 0.5, text, ha="center", va="center")
    axes.set_title(
        f"3. Levels of each column; the payload has {batch.bits_per_entry:.4f} bits "
        "per entry of all columns",
        loc="left",
    )
    axes.set_xlabel("kept columns, from wide to narrow")
    axes.set_ylabel("levels")
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(0, top)
    axes.set_yticks(range(0, int(top)))


def two_stage_count(batch: Batch) -> int:
    """Return M, the columns whose entries were sent."""
    return int(np.count_nonzero(batch.levels))


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "splitfc" / "one-batch.svg"
    )
    parser.add_argument("--png", type=Path, help="also write a PNG there")
    arguments = parser.parse_args()
    cut = cut_codec("splitfc", reduction=REDUCTION, uplink_bits=UPLINK_BITS)
    batch = encoded(cut, trained_features())
    picture = picture_of("splitfc-batch", "One batch", lambda: draw(batch))
    arguments.out.write_text(picture.svg)
    if arguments.png:
        arguments.png.write_bytes(picture.png)
    print(f"{arguments.out}: {len(picture.svg):,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
