"""Labels that are not one class a sample: a class for each place, and numbers."""

from functools import partial

import pytest
import torch
from torch import nn

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange import LabelsRefused, SplitEndpoint, StepRefused
from tests.exchange.server_halves import ADAM, everything, shared_half
from tests.halves import same, seeded, weights
from tests.local_grid import ticket_message

CLASSES, PLACES = 5, 6


class Places(nn.Module):
    """Features (B, T, C) to scores (B, classes, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.scores(x).transpose(1, 2)


def numbers() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(PLACES * 8, 2))


def probabilities() -> nn.Module:
    return nn.Sequential(numbers(), nn.Sigmoid())


class Roots(nn.Module):
    """Gives NaN for negative numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = numbers()

    def forward(self, x):
        return self.numbers(x).sqrt()


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = numbers()

    def forward(self, x):
        return self.numbers(x), x.mean()


def features() -> torch.Tensor:
    return torch.randn(
        16, PLACES, 8, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()


def targets() -> torch.Tensor:
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(2))


def classes() -> torch.Tensor:
    return torch.arange(16 * PLACES).remainder(CLASSES).reshape(16, PLACES)


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
CROSS_ENTROPY = nn.CrossEntropyLoss()
MSE = nn.MSELoss()
BCE = nn.BCELoss()
MARGIN = nn.MultiMarginLoss()
MARGINS = nn.functional.multilabel_margin_loss
LOSSES = (
    MSE,
    nn.L1Loss(),
    nn.SmoothL1Loss(),
    nn.HuberLoss(),
    nn.PoissonNLLLoss(),
    nn.KLDivLoss(reduction="batchmean", log_target=True),
    nn.MultiLabelSoftMarginLoss(),
    nn.SoftMarginLoss(),
    nn.HingeEmbeddingLoss(),
    nn.functional.mse_loss,
    nn.functional.poisson_nll_loss,
    partial(nn.functional.kl_div, reduction="batchmean", log_target=True),
    nn.functional.multilabel_soft_margin_loss,
    nn.functional.soft_margin_loss,
    nn.functional.hinge_embedding_loss,
)
IGNORES_255 = partial(nn.functional.cross_entropy, ignore_index=255)
PROBABILITIES = torch.full((16, CLASSES, PLACES), 1 / CLASSES)
SOME_IGNORED = classes().where(classes() > 0, -100)


TWO_CLASSES = torch.arange(16).remainder(2)
# of the classes of each sample, and -1 after the last
LISTS = torch.tensor([[1, -1]] * 16)


@pytest.mark.parametrize(
    ("half", "loss_fn", "labels"),
    [
        (Places, CROSS_ENTROPY, classes()),
        (Places, CROSS_ENTROPY, SOME_IGNORED),
        (Places, IGNORES_255, classes().where(classes() > 0, 255)),
        (Places, CROSS_ENTROPY, PROBABILITIES),
        *((numbers, loss_fn, targets()) for loss_fn in LOSSES),
        (numbers, nn.BCEWithLogitsLoss(), targets().sigmoid()),
        (probabilities, BCE, targets().sigmoid()),
        (probabilities, BCE, (targets() > 0).float()),
        (numbers, MARGIN, TWO_CLASSES),
        (numbers, MARGINS, LISTS),
    ],
)
def test_loss_and_gradient_are_those_of_the_joined_model(half, loss_fn, labels):
    reference = seeded(half)
    x = features()
    wanted = loss_fn(reference(x), labels)
    wanted.backward()
    ADAM(reference.parameters()).step()
    trained = shared_half(seeded(half), loss_fn)
    with SplitEndpoint(trained, cut_codec("float32")) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            seen = features()
            loss = server.loss(seen, labels)
            loss.backward()
            assert server.metrics()["num-examples"] == 16
        assert torch.equal(loss, wanted)
        assert torch.equal(seen.grad, x.grad)
        assert same(weights(endpoint.halves.half.model), weights(reference))


@pytest.mark.parametrize("codec", ["splitfc", "top-s", "fedlite", "quant-only"])
def test_a_class_for_each_place_is_learned_through_every_kind_of_codec(codec):
    x, y = features(), classes()
    cut = cut_codec(codec, uplink_bits=8, downlink_bits=8)
    with SplitEndpoint(shared_half(seeded(Places)), cut) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            losses = [server.loss(x, y).item() for _ in range(40)]
        assert endpoint.ledger.of(1, "train").rows == 40 * 16
    # 0.59 to 0.89 over ten seeds and two thread counts
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def with_one(labels: torch.Tensor, value: float) -> torch.Tensor:
    labels = labels.clone()
    labels.view(-1)[5] = value
    return labels


PROBABLE = targets().sigmoid()
BEYOND_CLASSES = with_one(classes(), CLASSES)
BOTH_SHAPES = r"\(16,\), the outputs \(16, 2\)"


@pytest.mark.parametrize(
    ("half", "loss_fn", "labels", "error", "match"),
    [
        (Places, CROSS_ENTROPY, BEYOND_CLASSES, LabelsRefused, "5 is out of range"),
        (Places, IGNORES_255, BEYOND_CLASSES, LabelsRefused, "5 is out of range"),
        (Places, CROSS_ENTROPY, classes()[:, :-1], LabelsRefused, r"\(16, 5\)"),
        (Places, CROSS_ENTROPY, classes()[:-1], LabelsRefused, "wanted 16 rows"),
        (Places, CROSS_ENTROPY, classes()[:, 0], LabelsRefused, r"\(16,\)"),
        *(
            (numbers, loss, targets()[:, 0], LabelsRefused, BOTH_SHAPES)
            for loss in LOSSES
        ),
        *(
            (numbers, loss, targets()[:, :1], LabelsRefused, r"\(16, 1\)")
            for loss in LOSSES
        ),
        (probabilities, BCE, with_one(PROBABLE, 1.5), LabelsRefused, r"takes 0 to 1"),
        (probabilities, BCE, with_one(PROBABLE, torch.nan), LabelsRefused, "label nan"),
        (Roots, BCE, PROBABLE, LabelsRefused, "output .* nan is out of"),
        (numbers, MARGIN, with_one(TWO_CLASSES, -100), LabelsRefused, "takes 0 to 1"),
        (numbers, MARGINS, with_one(LISTS, 2), LabelsRefused, "takes -1 to 1"),
        (numbers, MARGINS, with_one(LISTS, -2), LabelsRefused, "takes -1 to 1"),
        (TwoOutputs, CROSS_ENTROPY, TWO_CLASSES, LabelsRefused, "outputs"),
        (numbers, MSE, targets()[:, :, None, None], LabelsRefused, r"\(16, 2, 1, 1\)"),
        (numbers, MSE, with_one(targets(), torch.nan), StepRefused, "not finite"),
        (numbers, MSE, with_one(targets(), torch.inf), StepRefused, "not finite"),
        (numbers, MSE, with_one(targets(), 1e30), StepRefused, "not finite"),
    ],
)
def test_hostile_labels_change_nothing(half, loss_fn, labels, error, match):
    trained = shared_half(seeded(half), loss_fn)
    with SplitEndpoint(trained, cut_codec("float32")) as endpoint:
        before = everything(endpoint)
        with (
            pytest.raises(error, match=match),
            connect(ticket_message(endpoint)) as server,
        ):
            server.loss(features(), labels)
        assert same(everything(endpoint), before)


@pytest.mark.parametrize(
    ("loss_fn", "mark"),
    [
        (CROSS_ENTROPY, -100),
        (IGNORES_255, 255),
        # one of a user's own may be torch's within
        (lambda outputs, y: CROSS_ENTROPY(outputs, y), -100),
    ],
)
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_batch_without_a_label_that_counts_teaches_nothing(
    loss_fn, mark, accumulate_steps
):
    empty = torch.full((16, PLACES), mark)
    labels = [classes(), empty, empty, classes()]
    half = shared_half(
        seeded(Places), loss_fn, optimizer=SGD, accumulate_steps=accumulate_steps
    )
    losses = []
    with SplitEndpoint(half, cut_codec("float32")) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            for y in labels:
                seen = features()
                loss = server.loss(seen, y)
                loss.backward()
                losses.append(loss.item())
                assert seen.grad.any() == (y is not empty)
            metrics = server.metrics()
        traffic = endpoint.ledger.of(1, "train")
    assert metrics["steps"] == 4
    assert metrics["num-examples"] == 64
    assert metrics["train_loss"] == pytest.approx((losses[0] + losses[3]) / 2)
    assert traffic.loss == pytest.approx(metrics["train_loss"])

    # the optimizer steps all the same, and momentum moves weights
    alone = seeded(Places)
    optimizer = SGD(alone.parameters())
    for number, y in enumerate(labels, start=1):
        (loss_fn(alone(features()), y) / accumulate_steps).backward()
        if number % accumulate_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
    for name, value in weights(half.half.model).items():
        torch.testing.assert_close(value, weights(alone)[name])


@pytest.mark.parametrize("codec", ["splitfc", "splitfc-rd", "top-s", "int8"])
def test_codecs_send_the_gradient_of_such_a_batch(codec):
    half = shared_half(seeded(Places), CROSS_ENTROPY)
    cut = cut_codec(codec, uplink_bits=4, downlink_bits=4)
    with SplitEndpoint(half, cut) as endpoint, connect(ticket_message(endpoint)) as it:
        seen = features()
        it.loss(seen, torch.full((16, PLACES), -100)).backward()
        assert not seen.grad.any()
        assert it.metrics()["train_loss"] == 0.0


def test_a_loss_of_nan_with_a_label_that_counts_is_refused():
    labels = torch.full((16, PLACES), -100)
    labels[0, 0] = 1
    weight = torch.ones(CLASSES)
    weight[1] = 0.0
    half = shared_half(seeded(Places), nn.CrossEntropyLoss(weight))
    with SplitEndpoint(half, cut_codec("float32")) as endpoint:
        message = ticket_message(endpoint)
        with pytest.raises(StepRefused, match="not finite"), connect(message) as server:
            server.loss(features(), labels)
