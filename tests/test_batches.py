"""The batches of a turn, and what evaluation makes of the whole model."""

import math

import pytest
import torch
from torch import nn

from flwr_splitfc.vision import Batches, LabelledImages, evaluate, load_dataset


def images(num_samples: int) -> LabelledImages:
    """Each image is filled with its index, each label is the index."""
    index = torch.arange(num_samples)
    return LabelledImages(
        index.float().reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8), index, num_samples
    )


def test_epoch_holds_every_sample_once() -> None:
    batches = list(Batches(images(70), batch_size=32))
    assert [len(labels) for _, labels in batches] == [32, 32, 6]
    assert len(batches) == len(Batches(images(70), batch_size=32))
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() != list(range(70))
    assert labels.sort().values.tolist() == list(range(70))


def test_steps_per_turn_draws_with_replacement() -> None:
    batches = list(Batches(images(5), batch_size=32, steps=3))
    assert [tuple(pixels.shape) for pixels, _ in batches] == 3 * [(32, 1, 8, 8)]
    assert all(
        torch.equal(pixels[:, 0, 0, 0], labels.float()) for pixels, labels in batches
    )


@pytest.mark.parametrize("steps", [0, 3])
def test_batches_follow_the_global_generator(steps: int) -> None:
    loader = Batches(images(70), 8, steps)
    torch.manual_seed(5)
    first = torch.cat([labels for _, labels in loader])
    assert not torch.equal(torch.cat([labels for _, labels in loader]), first)
    torch.manual_seed(5)
    assert torch.equal(torch.cat([labels for _, labels in loader]), first)


def test_augmentation_changes_inputs_and_follows_the_global_generator() -> None:
    def draws() -> list[torch.Tensor]:
        torch.manual_seed(5)
        return [
            drawn
            for drawn, _ in Batches(images(70), 8, steps=3, augment=torch.rand_like)
        ]

    assert all(map(torch.equal, draws(), draws()))
    assert all(drawn.shape == (8, 1, 8, 8) for drawn in draws())
    assert not torch.equal(*draws()[:2])


def test_evaluate_is_independent_of_its_batches_and_keeps_the_mode() -> None:
    _, test = load_dataset("digits")
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)).train()
    whole, parts = evaluate(model, test), evaluate(model, test, batch_size=100)
    logits = model.eval()(test.images)
    assert (
        whole["accuracy"]
        == parts["accuracy"]
        == (logits.argmax(1) == test.labels).double().mean().item()
    )
    assert whole["loss"] == pytest.approx(parts["loss"])
    assert whole["loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, test.labels).item()
    )
    assert evaluate(model.train(), test)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_evaluate_takes_whole_numbers_of_any_kind(dtype: torch.dtype) -> None:
    test = images(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    small = LabelledImages(test.images, test.labels.to(dtype), 5)
    assert evaluate(model, small) == evaluate(model, test)


def test_no_label_that_counts_has_no_accuracy() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    unknown = LabelledImages(torch.zeros(3, 1, 8, 8), torch.full((3,), -100), 3)
    assert all(map(math.isnan, evaluate(model, unknown).values()))


def test_evaluate_counts_each_place_of_a_sample() -> None:
    class Places:
        """Samples of three places; the model scores them by place."""

        scores = torch.tensor([[2.0, 0.0, 5.0], [1.0, 3.0, 4.0]])  # (classes, places)

        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(index), 1), torch.tensor([0, 0, 0]).expand(
                len(index), 3
            )

    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Places.scores.expand(len(x), 2, 3)

    found = evaluate(Model(1, 1), Places(), batch_size=4)
    assert found["accuracy"] == 2 / 3
    assert found["loss"] == pytest.approx(
        -Places.scores.log_softmax(0)[0].mean().item()
    )


@pytest.mark.parametrize("mark", [-100, -1, 255])
def test_evaluate_leaves_ignored_labels_out(mark: int) -> None:
    """The last batch has none that counts."""
    labels = torch.tensor([0, mark, 0, 1, mark, mark])

    class Rows:
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones(len(index), 1), labels[index]

    model = nn.Linear(1, 2)
    nn.init.zeros_(model.weight)
    model.bias = nn.Parameter(torch.tensor([1.0, 0.0]))
    found = evaluate(model, Rows(), batch_size=2)
    assert found["accuracy"] == 2 / 3
    scores = model(torch.ones(6, 1))
    assert found["loss"] == pytest.approx(
        nn.functional.cross_entropy(scores, labels, ignore_index=mark).item()
    )
