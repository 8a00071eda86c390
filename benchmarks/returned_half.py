"""What the device half gives away that goes back after a turn, under noise on features.

    python benchmarks/returned_half.py --dataset torchvision.datasets.MNIST --data-dir ~/data

The server has the half before and after a turn, and each gradient ``d`` that it sent.
Of a first linear layer with plain SGD, ``W_before - W_after = rate * sum(d^T x)``, and
Adam's first moment tells the same sum after one step. The pseudoinverse of all ``d^T``
gives the inputs: exactly, if a turn has no more of them than the layer has outputs.
Above that stands what `flwr_splitfc.leakage` makes of the features alone.

A server that chooses its gradients solves for nothing: with a gradient for one sample at
each output, and none for all others, each row of ``W`` changes by ``rate * x``.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from flwr_splitfc import ModelCodec
from flwr_splitfc.apps.run_defence import clip
from flwr_splitfc.codec import cut_codec
from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.leakage import AttackSettings, reconstruct, released, scores_of
from flwr_splitfc.vision import load_dataset

ROWS, WIDTH = 64, 128  # of a batch; of the first layer's output
MOST, MOST_STEPS = 4000, 20  # samples in all, steps of a turn
NORM, RATE, BETA = 10.0, 0.05, 0.9  # the last is Adam's
TOKENS, CODEC = 1000, cut_codec("float32")
Batches = list[tuple[Tensor, Tensor]]


class Setting(NamedTuple):
    noise: float = 0.5
    steps: int = 1
    bits: int = 32
    norm: float = NORM
    nopeek: float = 0.0
    adam: bool = False
    relu: bool = False


SETTINGS = [Setting(steps=steps) for steps in (1, 2, 3, 5, 10, MOST_STEPS)]
SETTINGS += [Setting(bits=bits) for bits in (6, 5, 4)]
SETTINGS += [Setting(nopeek=nopeek) for nopeek in (0.1, 0.5, 2.0)]
SETTINGS += [Setting(adam=True), Setting(norm=1.0), Setting(noise=0.1, relu=True)]


def half_of(inputs: Tensor, relu: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(inputs[0].numel(), WIDTH)]
    return nn.Sequential(*layers, *[nn.ReLU()] * relu)


def attacked(private: Batches, mean: Tensor, setting: Setting) -> Tensor:
    """Train for a turn, and return its inputs (N, D) by what the server has then."""
    half = half_of(private[0][0], setting.relu)
    last = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 10))
    kind = torch.optim.Adam if setting.adam else torch.optim.SGD
    optimizer = kind(half.parameters(), RATE)
    defence = FeatureDefence(setting.norm, setting.noise, setting.nopeek)
    without_noise = FeatureDefence(setting.norm, nopeek=setting.nopeek)
    before, sent = ArrayRecord(half.state_dict()), []
    for x, y in private:
        optimizer.zero_grad()
        features = defence(x, half(x))
        features.retain_grad()
        nn.functional.cross_entropy(last(features.relu()), y).backward()
        sent.append(features.grad)
        optimizer.step()
    codec = ModelCodec.of(setting.bits)
    coded = codec.encode_changes(ArrayRecord(half.state_dict()), before)
    after = codec.decode_changes(coded, before).to_torch_state_dict()
    half.load_state_dict(before.to_torch_state_dict())
    summed = (half[1].weight.detach() - after["1.weight"]) / RATE
    if setting.adam:
        summed = optimizer.state[half[1].weight]["exp_avg"] / (1 - BETA)
    guess = mean.expand(ROWS * len(sent), -1)
    for _ in range(50):
        outputs = half[1](guess.clamp(0, 1)).detach().requires_grad_()
        # a ReLU, clipping and NoPeek's gradient as they would be for the guess
        without_noise(guess, half[2:](outputs)).backward(torch.cat(sent))
        gradient = outputs.grad.double()
        # of all inputs with this sum those nearest to the mean
        left = summed.double() - gradient.sum(0).outer(mean.double())
        guess = mean + (torch.linalg.pinv(gradient.T, rcond=1e-7) @ left).float()
    return guess


def by_features(batches: Batches, noise: float) -> str:
    """Return what the leakage command's attacks get of the first batch's features."""
    half = half_of(batches[0][0])
    defence = FeatureDefence(NORM, noise)

    def features(x: Tensor) -> Tensor:
        return defence(x, half(x))

    # the attacker knows the half and the norm, and trains on the other batches
    clip(half, defence)
    known = released(features, CODEC, batches[1:], samples=MOST)
    private = released(features, CODEC, batches[:1], samples=MOST)
    settings = AttackSettings(steps=300, width=32)
    found = reconstruct(known, private, settings, half=half)
    return f"{told(found.inputs, found.guesses)} by {found.attack}"


def chosen_gradients(private: Batches, kernel: int) -> str:
    """Train for a turn by gradients that the server chooses, and read inputs.

    With a kernel as large as the picture the convolution is a linear layer.
    """
    channels, height, width = private[0][0].shape[1:]
    layer = nn.Conv2d(channels, WIDTH, kernel)
    # the server hands out a half that is open for all inputs, and shorter than the norm
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 0.01)
    half = nn.Sequential(layer, nn.ReLU())
    defence = FeatureDefence(NORM, noise=8.0)
    optimizer = torch.optim.SGD(half.parameters(), RATE)
    top, left = (height - kernel) // 2, (width - kernel) // 2

    # sample n of the turn at output n, as long as there are outputs
    chosen = torch.eye(ROWS * len(private), WIDTH)
    for (x, _), gradient in zip(private, chosen.split(ROWS), strict=True):
        optimizer.zero_grad()
        features = defence(x, half(x))
        features[:, :, top, left].backward(gradient)
        optimizer.step()

    inputs = torch.cat([x for x, _ in private])[:WIDTH]
    patches = inputs[:, :, top : top + kernel, left : left + kernel]
    read = -layer.weight.detach() / RATE
    scores = scores_of(patches, read.clamp(0, 1), 1.0)
    return f"{scores.psnr:.1f} dB, {len(patches)} of {kernel} x {kernel} pixels"


def embedding(draw: torch.Generator) -> str:
    """Train an embedding for a turn, and name its tokens by the rows that moved."""
    steps, texts, words = 5, 8, 16
    tokens = nn.Embedding(TOKENS, 32)
    half = nn.Sequential(tokens, nn.Linear(32, 32), nn.GELU())
    server = nn.Linear(32, 2)
    defence = FeatureDefence(NORM, noise=4.0)
    before = tokens.weight.detach().clone()
    optimizer = torch.optim.SGD(half.parameters(), lr=0.1)

    # word n comes with a share of 1 / n, about as in a language
    shares = 1 / torch.arange(1, TOKENS + 1)
    count = steps * texts * words
    drawn = shares.multinomial(count, replacement=True, generator=draw)
    for x in drawn.reshape(steps, texts, words):
        optimizer.zero_grad()
        features = defence(x, half(x))
        labels = x[:, 0] % 2
        nn.functional.cross_entropy(server(features.mean(dim=1)), labels).backward()
        optimizer.step()

    has_moved = (tokens.weight != before).any(dim=1)
    moved = set(has_moved.nonzero().flatten().tolist())
    true = set(drawn.tolist())
    return f"{len(moved & true)} of {len(true)} named, {len(moved - true)} wrongly"


def told(inputs: Tensor, guesses: Tensor) -> str:
    scores = scores_of(inputs, guesses.clamp(0, 1).reshape(inputs.shape), 1.0)
    return f"{scores.psnr:.1f} dB, SSIM {scores.ssim:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="digits", help="as `load_dataset` has it")
    parser.add_argument("--data-dir", default="", help="of a torchvision data set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    train, _ = load_dataset(options.dataset, options.data_dir)
    order = torch.randperm(len(train), generator=draw)[:MOST]
    batches = [train[rows] for rows in order.split(ROWS)]
    mean = torch.cat([x for x, _ in batches[MOST_STEPS:]]).mean(0).flatten()
    print("the mean picture:", told(batches[0][0], mean.expand(ROWS, -1)))
    for noise in (0.0, 0.1, 0.5):
        print(f"features alone, noise={noise}:", by_features(batches, noise))
    for setting in SETTINGS:
        private = batches[: setting.steps]
        inputs = torch.cat([x for x, _ in private])
        print(f"{setting}:", told(inputs, attacked(private, mean, setting)))
    private = batches[:MOST_STEPS]
    for kernel in (private[0][0].shape[-1], 3):
        found = chosen_gradients(private, kernel)
        print(f"chosen gradients, noise=8, {MOST_STEPS} steps:", found)
    print("embedding, noise=4, 5 steps:", embedding(draw))


if __name__ == "__main__":
    main()
