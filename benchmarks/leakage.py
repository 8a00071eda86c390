"""What features give away, over their bits: a reconstruction attack, codec by codec.

    python benchmarks/leakage.py runs.jsonl --data-dir ~/data --app mnist
    python benchmarks/leakage.py runs.jsonl --data-dir ~/data --app mnist \\
        --cuts example --methods float32,float32+clip=10+noise=0.1,float32+nopeek=1
    python benchmarks/leakage.py runs.jsonl --plot leakage.svg --pictures leakage.png

Each run trains both halves in one process, what crosses the cut through a codec and a
defence. Then an attacker that has the device half and the data of half of the devices
learns the way from features to images, by a network or by ridge regression, inverts the
device half, or weighs the images that it has, whichever is best, and applies it to
images of the other devices. Runs that the file already has are not repeated.
`docs/results/leakage.md` has the numbers.
"""

from __future__ import annotations

import argparse
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from convergence import APPS, DEVICES, App, Cut, Halves, accuracy, batches, codec_of
from torch import Tensor, nn
from written import add_row, read_rows

from flwr_splitfc.compare.report.looks import looks_of, picture_of
from flwr_splitfc.defence import FeatureDefence, distance_correlation
from flwr_splitfc.leakage import AttackSettings, Reconstruction, reconstruct, released
from flwr_splitfc.vision import LabelledImages, load_dataset, partition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = (
    "float32,int8,splitfc@0.1/0.2,splitfc@0.2/0.4,splitfc@0.8/1.6,splitfc-rd,"
    "splitfc-rd@5,splitfc-rd@0.2/0.4"
)
PICTURES = 8
CORRELATED_ROWS = 256


# What is trained


class Defended(nn.Module):
    """A device half with its defence; without training, its features are clipped."""

    def __init__(self, half: nn.Module, defence: FeatureDefence) -> None:
        super().__init__()
        self.device = half
        self.defence = defence

    def forward(self, x: Tensor) -> Tensor:
        features = self.device(x)
        if not self.training:
            return self.defence.clipped(features)
        return self.defence(x, features)


def cut_at(halves: Halves, cut: str) -> Halves:
    """Cut a model after the example's device half, or in that after its first stage.

    A stage ends with the pooling that halves the image.
    """
    device, server = halves
    if cut == "example":
        return halves
    pools = [
        number
        for number, layer in enumerate(device)
        if any(isinstance(module, nn.MaxPool2d) for module in layer.modules())
    ]
    first = pools[0] + 1
    layers = list(device)
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:], server)


def method_parts(method: str) -> tuple[str, FeatureDefence]:
    """Return the codec and the defence of ``CODEC+clip=10+noise=0.1+nopeek=1``."""
    codec, *settings = method.split("+")
    names = {"clip": "clip_norm", "noise": "noise", "nopeek": "nopeek"}
    values = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        values[names[name]] = float(value)
    return codec, FeatureDefence(**values)


# Runs


@dataclass(frozen=True)
class Run:
    """One training, and what an attack on its features came to.

    Parameters
    ----------
    app, cut, method : str
    seed, steps : int
        Mini-batches of training.
    attack : dict
        The attacker's settings.
    known, attacked : int
        Images that it has, and that it reconstructs.
    columns : int
        At the cut.
    uplink_bits : float
        Per entry, of the features that are attacked.
    accuracy : float
        On the first images of the test set, in %, of the joined model: exact features,
        clipped.
    noisy_accuracy : float
        The same with the defence's noise, if there is any.
    correlation : float
        Distance correlation of images and features, in batches of 256.
    mse, psnr, ssim : float
        Of the reconstructions.
    trivial_mse, trivial_psnr, trivial_ssim : float
        Of the mean image.
    feature_norm : float
        The median length of a sample's features.
    shape : list of int
        Of an image.
    images, guesses : str
        The first eight and their reconstructions, bytes in base 64.
    seconds : float
    by : str
        The attack that was used; earlier runs, which do not say it, had the network.
    releases : int
        Of each sample, linked: what is attacked is the mean of its features.
    """

    app: str
    cut: str
    method: str
    seed: int
    steps: int
    attack: dict[str, float]
    known: int
    attacked: int
    columns: int
    uplink_bits: float
    accuracy: float
    noisy_accuracy: float
    correlation: float
    mse: float
    psnr: float
    ssim: float
    trivial_mse: float
    trivial_psnr: float
    trivial_ssim: float
    feature_norm: float
    shape: list[int]
    images: str
    guesses: str
    seconds: float
    by: str = "network"
    releases: int = 1

    @property
    def key(self) -> tuple[str, str, str, int, int, int]:
        """What two runs have in common if one need not be done."""
        about = self.app, self.cut, self.method
        return *about, self.seed, self.steps, self.releases


def run(
    name: str, cut_name: str, method: str, options: argparse.Namespace, seed: int
) -> Run:
    """Train, attack, and say how both went."""
    start = time.perf_counter()
    app = APPS[name]
    app = replace(
        app,
        dataset=options.dataset or app.dataset,
        batch_size=options.batch_size or app.batch_size,
        augment=False,  # what is reconstructed are the images themselves
    )
    train_set, test_set = load_dataset(app.dataset, options.data_dir)
    test_set = test_set.subset(np.arange(min(options.tested, len(test_set))))
    shares = partition(train_set.labels, DEVICES, app.partitioner, seed=seed)
    codec_name, defence = method_parts(method)
    codec = codec_of(codec_name)

    torch.manual_seed(seed)
    device, server = cut_at(app.halves(train_set), cut_name)
    halves = Defended(device, defence), server
    cut = Cut(codec, torch.Generator().manual_seed(seed))
    parameters = [*device.parameters(), *server.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for x, y in islice(epochs(train_set, shares, app, seed), options.steps):
        loss = cut.train(halves, optimizer, x, y)

    settings = AttackSettings(
        steps=options.attack_steps, width=options.width, seed=seed
    )
    parts = []
    for devices, samples in (
        (shares[: DEVICES // 2], options.known),
        (shares[DEVICES // 2 :], options.attacked),
    ):
        parts.append(
            released(
                lambda x: _mean_of_releases(halves[0], x, options.releases),
                codec,
                epochs(train_set, devices, app, seed),
                samples=samples,
                generator=cut.draw,
            )
        )
    known, attacked = parts
    outcome = reconstruct(known, attacked, settings, half=halves[0])
    exact = torch.cat([halves[0].device(x) for x, _ in _some(test_set)]).detach()
    images = torch.cat([x for x, _ in _some(test_set)])
    with torch.no_grad():
        correlation = distance_correlation(images, defence.clipped(exact)).item()
    joined_accuracy = accuracy(halves, test_set)
    made = Run(
        app=name,
        cut=cut_name,
        method=method,
        seed=seed,
        steps=options.steps,
        attack={"steps": settings.steps, "width": settings.width},
        known=len(known.inputs),
        attacked=len(attacked.inputs),
        columns=exact[0].numel(),
        uplink_bits=attacked.bits_per_entry,
        accuracy=joined_accuracy,
        noisy_accuracy=_noisy_accuracy(halves, test_set) or joined_accuracy,
        correlation=correlation,
        feature_norm=exact.flatten(1).norm(dim=1).median().item(),
        seconds=time.perf_counter() - start,
        releases=options.releases,
        **_numbers(outcome),
    )
    print(
        f"{name} {cut_name} {method} seed {seed}: loss {loss:.3f}, accuracy "
        f"{made.accuracy:.1f} %, {made.uplink_bits:.3f} bits, SSIM {made.ssim:.3f} "
        f"by {made.by}, {made.seconds:.0f} s",
        flush=True,
    )
    return made


def _mean_of_releases(half: nn.Module, x: Tensor, releases: int) -> Tensor:
    """Return the mean of features (B, ...) that were released so many times."""
    return sum(half(x) for _ in range(releases)) / releases


def epochs(
    train: LabelledImages, shares: Sequence[np.ndarray], app: App, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mini-batches without end."""
    if max(map(len, shares)) < app.batch_size:
        raise ValueError(
            f"no device has a batch of {app.batch_size} samples: "
            "give a smaller --batch-size"
        )
    epoch = 0
    while True:
        yield from batches(train, shares, app, seed=1000 * seed + epoch)
        epoch += 1


def _some(test: LabelledImages) -> list[tuple[Tensor, Tensor]]:
    return [test[torch.arange(min(CORRELATED_ROWS, len(test)))]]


@torch.no_grad()
def _noisy_accuracy(halves: Halves, test: LabelledImages) -> float:
    """Return the accuracy of features that are defended as in training, in %."""
    defended, server = halves
    if not defended.defence.noise:
        return 0.0
    half = defended.device.eval()
    server.eval()
    right = 0
    for rows in torch.arange(len(test)).split(500):
        images, labels = test[rows]
        scores = server(defended.defence(images, half(images)))
        right += int((scores.argmax(1) == labels).sum())
    return 100 * right / len(test)


def _numbers(outcome: Reconstruction) -> dict[str, object]:
    scores = outcome.scores
    trivial = outcome.trivial
    return {
        "mse": scores.mse,
        "psnr": scores.psnr,
        "ssim": scores.ssim,
        "trivial_mse": trivial.mse,
        "trivial_psnr": trivial.psnr,
        "trivial_ssim": trivial.ssim,
        "shape": list(outcome.inputs.shape[1:]),
        "images": _bytes_of(outcome.inputs[:PICTURES]),
        "guesses": _bytes_of(outcome.guesses[:PICTURES]),
        "by": outcome.attack,
    }


def _bytes_of(images: Tensor) -> str:
    levels = (255 * images.clamp(0, 1)).round().to(torch.uint8)
    return b64encode(levels.numpy().tobytes()).decode()


# Figures


def draw(runs: Sequence[Run]) -> Figure:
    """Draw SSIM over bits per entry, a panel for each app and cut."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels_of = list(dict.fromkeys((run.app, run.cut) for run in runs))
    looks = looks_of(run.method for run in runs)
    columns = min(2, len(panels_of))
    lines = -(-len(panels_of) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False).flat
    for panel, (app, cut) in zip(panels, panels_of, strict=False):
        mine = [run for run in runs if (run.app, run.cut) == (app, cut)]
        dataset = APPS[app].dataset.rpartition(".")[2]
        panel.set_title(f"{dataset}, {cut} cut, {mine[0].columns:,} columns")
        panel.set_xscale("log")
        panel.set_ylim(0, 1.02)
        panel.axhline(mine[0].trivial_ssim, color="#888888", linestyle=":")
        panel.annotate(
            "the mean image",
            (1, mine[0].trivial_ssim),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
        )
        for run in mine:
            panel.plot([run.uplink_bits], [run.ssim], **looks[run.method])
            panel.annotate(
                f"{run.accuracy:.0f} %",
                (run.uplink_bits, run.ssim),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    figure.supxlabel("bits per entry of the features; beside each point the accuracy")
    figure.supylabel("SSIM of the reconstructions: 1 is the image")
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    for handle in handles:
        handle.set_linestyle("")
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def draw_pictures(runs: Sequence[Run]) -> Figure:
    """Draw images, and below them what each method's features gave away."""
    from matplotlib.figure import Figure

    lines = [("", "the images", runs[0].shape, runs[0].images)]
    for run in runs:
        label = f"{run.cut} cut, {run.method}"
        lines.append((label, f"SSIM {run.ssim:.2f}", run.shape, run.guesses))
    figure = Figure(figsize=(PICTURES + 2.6, 1.02 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), PICTURES, squeeze=False)
    for places, (method, score, shape, data) in zip(grid, lines, strict=True):
        levels = np.frombuffer(b64decode(data), np.uint8)
        images = levels.reshape(PICTURES, *shape).transpose(0, 2, 3, 1)
        for place, image in zip(places, images, strict=True):
            place.imshow(image.repeat(3 // image.shape[2], axis=2))
            place.set_xticks([])
            place.set_yticks([])
            place.grid(visible=False)
        text = f"{method}\n{score}".strip()
        places[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    return figure


# Command


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="file of JSON lines, one a run")
    parser.add_argument("--app", choices=APPS, help="what to train")
    parser.add_argument("--data-dir", default="", help="of the torchvision data set")
    parser.add_argument("--dataset", help="instead of the app's, such as digits")
    parser.add_argument(
        "--cuts", default="shallow,example", help="by comma (default: %(default)s)"
    )
    parser.add_argument(
        "--methods",
        default=METHODS,
        help="by comma: a codec, with @QUALITY in dB or @UP/DOWN in bits per entry, "
        "and +clip=C, +noise=Z or +nopeek=W (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, help="instead of the app's")
    parser.add_argument("--seeds", default="0", help="by comma (default: %(default)s)")
    for option, default in {
        "--steps": 400,
        "--attack-steps": 500,
        "--width": 32,
        "--known": 4000,
        "--attacked": 500,
        "--tested": 10000,
        "--releases": 1,
    }.items():
        parser.add_argument(
            option, type=int, default=default, help="(default: %(default)s)"
        )
    parser.add_argument("--plot", type=Path, help="where the figure goes, an SVG")
    parser.add_argument(
        "--pictures", type=Path, help="where pictures of --app go, a PNG"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    if options.app is not None and not options.pictures:
        make_missing(options)
    runs = read_rows(options.runs, Run)
    for run in runs:
        print(
            f"{run.app:6}{run.cut:8} {run.method:34}{run.seed:2}"
            f"{run.uplink_bits:8.3f} bits{run.accuracy:7.1f} %"
            f"{run.noisy_accuracy:7.1f} %{run.releases:4} releases  {run.by:13}"
            f"MSE {run.mse:.4f} PSNR {run.psnr:5.2f} "
            f"SSIM {run.ssim:.3f} ({run.trivial_ssim:.3f})  dCor {run.correlation:.2f} "
            f"norm {run.feature_norm:.1f}"
        )
    if options.plot:
        figure = picture_of("leakage", "Leakage", lambda: draw(runs))
        options.plot.write_text(figure.svg)
    if options.pictures:
        chosen = [run for run in runs if run.app == options.app]
        figure = picture_of("pictures", "Pictures", lambda: draw_pictures(chosen))
        options.pictures.write_bytes(figure.png)


def make_missing(options: argparse.Namespace) -> None:
    """Make the runs that the file does not have; each is written when it ends."""
    done = {run.key for run in read_rows(options.runs, Run)}
    for seed in map(int, options.seeds.split(",")):
        for cut in options.cuts.split(","):
            for method in options.methods.split(","):
                key = (options.app, cut, method, seed, options.steps, options.releases)
                if key in done:
                    continue
                made = run(options.app, cut, method, options, seed)
                add_row(options.runs, made)


if __name__ == "__main__":
    main()
