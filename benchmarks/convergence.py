"""Training to convergence: final accuracy over all bytes at the cut, codec by codec.

    python benchmarks/convergence.py runs.jsonl --data-dir ~/data --app cnn
    python benchmarks/convergence.py runs.jsonl --data-dir ~/data --app vgg11 \\
        --methods float32,splitfc-rd --epochs 5
    python benchmarks/convergence.py runs.jsonl --plot convergence.svg

Both halves are in one process, and what crosses the cut goes through a codec: the
training of split learning without its messages, so that thirty epochs take minutes.
Runs that the file already has are not repeated. `benchmarks/README.md` has the
numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written import add_row, read_rows

from flwr_splitfc.codec import CutCodec, cut_codec
from flwr_splitfc.codec.quality import feature_error, gradient_error
from flwr_splitfc.compare.report.looks import looks_of, picture_of
from flwr_splitfc.vision import LabelledImages, load_dataset, partition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path += [str(EXAMPLES / "cifar10"), str(EXAMPLES / "mnist")]

DEVICES = 30
MEASURED_STEPS = 20  # one step in so many has its error measured
LEAST_SPAN = 5  # points of accuracy that an axis shows
METHODS = "float32,splitfc-rd,splitfc-rd@0.2/0.4,splitfc@0.2/0.4"

Halves = tuple[nn.Module, nn.Module]


# What is trained


@dataclass(frozen=True)
class App:
    """A model, its data and how it is trained, as the example of its name.

    Parameters
    ----------
    dataset : str
        As the key ``dataset`` of the examples.
    halves : callable
        Makes both halves for a data set.
    partitioner : str
        How thirty devices share the training set.
    batch_size : int
    epochs : int
    augment : bool
        Whether images are cropped and mirrored at random.
    """

    dataset: str
    halves: Callable[[LabelledImages], Halves]
    partitioner: str
    batch_size: int
    epochs: int
    augment: bool


def mnist_halves(train: LabelledImages) -> Halves:
    from splitmnist.task import DeviceHalf, ServerHalf

    spec = train.spec
    return (
        DeviceHalf(spec.channels, spec.image_size),
        ServerHalf(spec.image_size, spec.num_classes),
    )


def cnn_halves(train: LabelledImages) -> Halves:
    from splitcifar.task import halves

    return halves(train.spec, {"model": "cnn"})


def vgg11_halves(train: LabelledImages) -> Halves:
    from splitcifar.task import halves

    return halves(train.spec, {"model": "vgg11", "width": 0.25})


CIFAR10 = "torchvision.datasets.CIFAR10"
APPS = {
    "mnist": App("torchvision.datasets.MNIST", mnist_halves, "shards", 256, 20, False),
    "cnn": App(CIFAR10, cnn_halves, "iid", 128, 30, True),
    "vgg11": App(CIFAR10, vgg11_halves, "iid", 128, 30, True),
}


def batches(
    train: LabelledImages, shares: Sequence[np.ndarray], app: App, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch: each device's share in mini-batches, the devices in turn.

    A mini-batch has samples of one device. Turns of one mini-batch come in a random
    order; the few samples that do not fill a mini-batch are left out of the epoch.
    """
    from splitcifar.task import crop_and_flip

    draw = np.random.default_rng(seed)
    turns: list[Tensor] = []
    for share in shares:
        order = torch.from_numpy(draw.permutation(share))
        turns += order.split(app.batch_size)
    full = [turn for turn in turns if len(turn) == app.batch_size]
    for number in draw.permutation(len(full)):
        images, labels = train[full[number]]
        yield (crop_and_flip(images) if app.augment else images), labels


# The cut


@dataclass
class Cut:
    """What crosses the cut of a run, and how much of it was lost.

    Parameters
    ----------
    codec : CutCodec
    draw : torch.Generator
    up_bytes, down_bytes : int
        All payloads so far.
    entries : int
        Of all features so far.
    feature_errors, gradient_errors : list of float
        Of one step in `MEASURED_STEPS`.
    """

    codec: CutCodec
    draw: torch.Generator
    up_bytes: int = 0
    down_bytes: int = 0
    entries: int = 0
    steps: int = 0
    feature_errors: list[float] = field(default_factory=list)
    gradient_errors: list[float] = field(default_factory=list)

    def train(
        self, halves: Halves, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
    ) -> float:
        """Do one step of split learning; return the loss."""
        device_half, server_half = halves
        features = device_half(x)
        exact = features.detach()
        up, link = self.codec.encode_features(exact, generator=self.draw)
        flat, server_link = self.codec.decode_features(
            up, expect=(len(exact), exact[0].numel())
        )
        seen = flat.view_as(exact).requires_grad_()
        scores = server_half(server_link.sent_rows(seen))
        loss = F.cross_entropy(scores, server_link.sent_rows(y))
        optimizer.zero_grad()
        loss.backward()
        assert seen.grad is not None
        down = self.codec.encode_gradient(seen.grad, server_link)
        gradient = self.codec.decode_gradient(down, link).view_as(exact)
        features.backward(gradient)
        optimizer.step()

        self.up_bytes += len(up.data)
        self.down_bytes += len(down.data)
        self.entries += exact.numel()
        if self.steps % MEASURED_STEPS == 0:
            rows = server_link.sent_rows(exact).flatten(1)
            self.feature_errors.append(feature_error(rows, server_link.sent_rows(flat)))
            # as the server sees it: of the kept columns, without dropout's scale
            decoded = self.codec.decode_gradient(down, server_link)
            self.gradient_errors.append(
                gradient_error(
                    server_link.restrict(seen.grad.flatten(1)),
                    server_link.restrict(decoded),
                )
            )
        self.steps += 1
        return loss.item()


def codec_of(method: str) -> CutCodec:
    """Return the codec of ``NAME``, ``NAME@QUALITY`` in dB or ``NAME@UP/DOWN`` bits.

    ``NAME@UP/DOWN/REDUCTION`` says how many columns dropout keeps.
    """
    name, _, setting = method.partition("@")
    keys = ["quality"]
    if "/" in setting:
        keys = ["uplink_bits", "downlink_bits", "reduction"]
    values = map(float, setting.split("/")) if setting else ()
    return cut_codec(name, **dict(zip(keys, values, strict=False)))


# Runs


@dataclass(frozen=True)
class Run:
    """One training, and where it stood after each epoch.

    Parameters
    ----------
    app, method : str
    seed, epochs : int
    accuracies : list of float
        On the whole test set after each epoch, in %.
    moved_bytes : list of int
        All payloads, both directions, until then.
    uplink_bits, downlink_bits : float
        Per entry of the features.
    feature_error, gradient_error : float
        Means over the measured steps; 1 is the variance of what was sent.
    seconds : float
        All of it, evaluation included.
    """

    app: str
    method: str
    seed: int
    epochs: int
    accuracies: list[float]
    moved_bytes: list[int]
    uplink_bits: float
    downlink_bits: float
    feature_error: float
    gradient_error: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What two runs have in common if one need not be done."""
        return self.app, self.method, self.seed, self.epochs


def train(name: str, method: str, seed: int, epochs: int, data_dir: str) -> Run:
    """Train an app's model from its start, and say after each epoch how it stands.

    Adam on both halves; the learning rate falls along a cosine from 1e-3 to zero.
    """
    app = APPS[name]
    train_set, test_set = load_dataset(app.dataset, data_dir)
    shares = partition(train_set.labels, DEVICES, app.partitioner, seed=seed)
    torch.manual_seed(seed)
    halves = app.halves(train_set)
    for half in halves:
        # three fifths of the time on a CPU, and the same results up to rounding
        half.to(memory_format=torch.channels_last)
    parameters = [*halves[0].parameters(), *halves[1].parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    cut = Cut(codec_of(method), torch.Generator().manual_seed(seed))

    start = time.perf_counter()
    accuracies = []
    moved_bytes = []
    for epoch in range(epochs):
        for x, y in batches(train_set, shares, app, seed=1000 * seed + epoch):
            loss = cut.train(halves, optimizer, x, y)
        falls.step()
        accuracies.append(accuracy(halves, test_set))
        moved_bytes.append(cut.up_bytes + cut.down_bytes)
        print(
            f"{name} {method} seed {seed}: epoch {epoch + 1} of {epochs}, "
            f"loss {loss:.3f}, accuracy {accuracies[-1]:.2f} %, "
            f"{moved_bytes[-1] / 1e6:,.0f} MB, {time.perf_counter() - start:,.0f} s",
            flush=True,
        )
    return Run(
        app=name,
        method=method,
        seed=seed,
        epochs=epochs,
        accuracies=accuracies,
        moved_bytes=moved_bytes,
        uplink_bits=8 * cut.up_bytes / cut.entries,
        downlink_bits=8 * cut.down_bytes / cut.entries,
        feature_error=float(np.mean(cut.feature_errors)),
        gradient_error=float(np.mean(cut.gradient_errors)),
        seconds=time.perf_counter() - start,
    )


@torch.no_grad()
def accuracy(halves: Halves, test_set: LabelledImages) -> float:
    """Return how many of the test images the float32 halves get right, in %."""
    device_half, server_half = halves
    for half in halves:
        half.eval()
    right = 0
    for first in range(0, len(test_set), 500):
        images, labels = test_set[first : first + 500]
        guesses = server_half(device_half(images)).argmax(1)
        right += int((guesses == labels).sum())
    for half in halves:
        half.train()
    return 100 * right / len(test_set)


# Figure


def draw(runs: Sequence[Run]) -> Figure:
    """Draw each app's final accuracies over the bytes that they took."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter

    apps = list(dict.fromkeys(run.app for run in runs))
    looks = looks_of(run.method for run in runs)
    figure = Figure(figsize=(3.6 * len(apps), 3.6), layout="constrained")
    panels = figure.subplots(1, len(apps), sharex=True, squeeze=False)[0]
    for panel, app in zip(panels, apps, strict=True):
        panel.set_title(f"{app}, {APPS[app].dataset.rpartition('.')[2]}")
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
        for run in runs:
            if run.app == app:
                megabytes = run.moved_bytes[-1] / 1e6
                panel.plot([megabytes], [run.accuracies[-1]], **looks[run.method])
        # a point of accuracy is small, also where the methods are close
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, high - LEAST_SPAN), high)
    figure.supxlabel("MB at the cut in the whole training, both directions")
    figure.supylabel("accuracy after the last epoch, %")
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside right upper")
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
    parser.add_argument("--batch-size", type=int, help="instead of the app's")
    parser.add_argument(
        "--methods",
        default=METHODS,
        help="by comma: a codec, with @QUALITY in dB, or with @UP/DOWN in bits per "
        "entry, after which /REDUCTION may follow "
        "(default: %(default)s)",
    )
    parser.add_argument("--seeds", default="0", help="by comma (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="default: 30, for MNIST 20")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, help="where the figure goes, an SVG")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.app is not None:
        train_all(options)
    runs = read_rows(options.runs, Run)
    for run in runs:
        print(
            f"{run.app:8}{run.method:22}{run.seed:3}{run.epochs:4} epochs"
            f"{run.accuracies[-1]:8.2f} %{run.moved_bytes[-1] / 1e6:10,.1f} MB"
            f"{run.uplink_bits:8.3f} /{run.downlink_bits:7.3f} bits"
            f"{100 * run.feature_error:8.1f} /{100 * run.gradient_error:6.1f} % error"
        )
    if options.plot:
        figure = picture_of("convergence", "Final accuracy", lambda: draw(runs))
        options.plot.write_text(figure.svg)


def train_all(options: argparse.Namespace) -> None:
    """Do the runs that the file does not have; each is written when it ends."""
    app = APPS[options.app]
    APPS[options.app] = replace(
        app,
        dataset=options.dataset or app.dataset,
        batch_size=options.batch_size or app.batch_size,
        epochs=options.epochs or app.epochs,
    )
    epochs = APPS[options.app].epochs
    done = {run.key for run in read_rows(options.runs, Run)}
    for seed in map(int, options.seeds.split(",")):
        for method in options.methods.split(","):
            if (options.app, method, seed, epochs) in done:
                continue
            run = train(options.app, method, seed, epochs, options.data_dir)
            add_row(options.runs, run)


if __name__ == "__main__":
    main()
