"""What `SplitClientApp` takes from a user's functions, and from a strategy's messages."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flwr_splitfc import (
    HeadAndTail,
    JoinedModel,
    RunFailed,
    SplitClientApp,
    SplitFedV2,
    SplitLearning,
    split_at,
)
from flwr_splitfc.apps.accuracy import accuracy
from flwr_splitfc.apps.client_turn import ClientTurn
from flwr_splitfc.apps.local_session import LocalSession
from flwr_splitfc.codec import CutCodec, cut_codec
from flwr_splitfc.codec.quality import automatic_quality
from flwr_splitfc.exchange import EndpointConfig
from flwr_splitfc.run import Round
from tests.apps.server_runs import CROSS_ENTROPY, run
from tests.halves import CLASSES, DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import LocalGrid

ADAM = torch.optim.Adam
DATA = batches(4)
X, Y = DATA[0]
TOO_FEW = DataLoader(TensorDataset(X, Y), batch_size=len(X) + 1, drop_last=True)


def round_of(
    data: Any = (DATA, DATA),
    *,
    devices: FedAvg | None = None,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Round:
    """The one round of a run whose devices get `data` from their function."""
    strategy = SplitFedV2(
        seeded(ServerHalf), CROSS_ENTROPY, ADAM, devices=devices, device="cpu"
    )
    app = SplitClientApp(DeviceHalf, lambda context: data, ADAM, **options)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(
        LocalGrid(app, 2), arrays, 1, train_config=ConfigRecord(config or {})
    )
    return strategy.progress.rounds[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DATA,
            r"load_data\(context\) returned a list of 4, wanted two: batches to train",
        ),
        (None, r"load_data\(context\) returned None, wanted two"),
        (
            (None, DATA),
            r"load_data\(context\) returned None as the batches to train on",
        ),
        (
            ([{"img": X, "label": Y}], DATA),
            r"is a dict with 'img', 'label', .*, such as \(batch\['img'\], batch\['labe",
        ),
        (([(X, Y, Y)], DATA), "a batch of load_data is a tuple of 3, wanted a pair"),
        (
            ([X], DATA),
            r"a batch of load_data is a Tensor of shape \(16, .* wanted a pair",
        ),
        (
            ([(X.numpy(), Y)], DATA),
            r"x of a batch of load_data has a ndarray of shape \(16, .* torch.as_tensor",
        ),
        (([(X, Y.tolist())], DATA), "y of a batch of load_data has a int, wanted"),
        (([], DATA), r"load_data\(context\) gave no batches to train on \(an empty"),
        (
            (TOO_FEW, DATA),
            r"gave no batches to train on \(an empty share, or drop_last",
        ),
    ],
)
def test_wrong_data_is_described(data: Any, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        round_of(data)


def test_batches_that_are_gone_after_one_pass_are_told() -> None:
    """As many as there are may be asked for."""
    message: Any = None
    turn = ClientTurn(message, LocalSession(CROSS_ENTROPY, 0), DeviceHalf(), 0)
    assert len(list(turn.batches(iter(DATA), len(DATA)))) == len(DATA)
    with pytest.raises(ValueError, match="a list_iterator, which can be gone through"):
        list(turn.batches(iter(DATA), len(DATA) + 1))
    with pytest.raises(ValueError, match="gave no batches to train on"):
        list(turn.batches([], 1))


def test_batches_to_evaluate_on_may_be_missing_where_nobody_asks_for_them() -> None:
    alone = FedAvg(fraction_evaluate=0.0)
    assert round_of((DATA, None), devices=alone).failures == {}
    failures = round_of((DATA, None)).failures.values()
    assert all("returned None as the batches to evaluate on" in why for why in failures)
    assert len(failures) == 2


def test_a_device_without_batches_to_evaluate_on_says_so() -> None:
    """It trains all the same."""
    done = round_of((DATA, []))
    why = "load_data(context) gave no batches to evaluate on (an empty share, or"
    assert [why in failure for failure in done.failures.values()] == [True, True]
    assert done.loss > 0


@pytest.mark.parametrize(
    "half", [torch.tensor(0.5), np.float32(0.5), np.array(0.5), 0.5]
)
def test_metrics_may_be_numbers_of_torch_and_numpy(half: Any) -> None:
    done = round_of(metrics_fn=lambda outputs, labels: {"half": half})
    assert (done.failures, done.evaluation) == ({}, {"half": 0.5})


WRONG_METRICS = [
    (None, "returned None, wanted a dict of numbers, such as {'accuracy': 0.9}"),
    (0.5, "returned a float, wanted a dict of numbers"),
    ({"m": None}, "returned None as 'm', wanted a number"),
    ({"m": torch.zeros(3)}, "returned a Tensor of shape (3,) as 'm', wanted a number"),
]


@pytest.mark.parametrize(("returned", "message"), WRONG_METRICS)
def test_wrong_metrics_are_described(returned: Any, message: str) -> None:
    done = round_of(metrics_fn=lambda outputs, labels: returned)
    why = f"ValueError: metrics_fn(outputs, labels) {message}"
    assert all(why in failure for failure in done.failures.values())
    assert len(done.failures) == 2


@pytest.mark.parametrize("found", [torch.tensor(0.5), np.float32(0.5), 0.5])
def test_the_servers_evaluation_may_give_numbers_of_torch_and_numpy(
    found: Any, tmp_path: Any
) -> None:
    def evaluate(model: nn.Module, context: Context) -> Any:
        return {"accuracy": found, "by class": [0.25, 0.75]}

    results = run(tmp_path, num_rounds=1, evaluate=evaluate)
    assert results["rounds"][0]["accuracy"] == 0.5


@pytest.mark.parametrize(("returned", "message"), WRONG_METRICS)
def test_wrong_results_of_the_servers_evaluation_are_described(
    returned: Any, message: str, tmp_path: Any
) -> None:
    why = re.escape(f"evaluate(joined_model, context) {message}")
    with pytest.raises(ValueError, match=f"^{why}"):
        run(tmp_path, num_rounds=1, evaluate=lambda model, context: returned)


@pytest.mark.parametrize("key", ["config", "mine"])
def test_the_config_counts_under_any_key(key: str) -> None:
    """And with a record beside it, in which the ticket then is not."""
    devices = FedAvg(configrecord_key=key, fraction_evaluate=0.0)
    done = round_of(devices=devices, config={"steps-per-turn": 3})
    assert done.steps == 2 * 3

    class WithAnother(FedAvg):
        def configure_train(self, *arguments: Any) -> Any:
            messages = list(super().configure_train(*arguments))
            messages[0].content["another"] = ConfigRecord({"steps-per-turn": 1})
            return messages

    devices = WithAnother(configrecord_key=key, fraction_evaluate=0.0)
    done = round_of(devices=devices, config={"steps-per-turn": 3})
    assert done.steps == 2 * 3


@pytest.mark.parametrize("steps", [0, -1, "many", 2.5, True])
def test_a_number_of_steps_that_is_none_is_told(steps: Any) -> None:
    with pytest.raises(
        RunFailed, match=f"has steps-per-turn {steps!r}, wanted a whole number of 1"
    ):
        round_of(config={"steps-per-turn": steps})


def test_a_key_of_the_message_with_underscores_is_told() -> None:
    with pytest.raises(RunFailed, match="has 'steps_per_turn': write steps-per-turn"):
        round_of(config={"steps_per_turn": 1})


def test_more_threads_than_torch_stands_are_refused() -> None:
    with pytest.raises(RunFailed, match="torch-threads is 100000, wanted 1 to 1024"):
        round_of(config={"torch-threads": 100_000})


def test_structures_of_tensors_are_batches() -> None:
    class Half(DeviceHalf):
        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return super().forward(x["pixels"])

    data = [[{"pixels": x, "unused": None}, y] for x, y in DATA]
    strategy = SplitFedV2(seeded(ServerHalf), CROSS_ENTROPY, ADAM, device="cpu")
    app = SplitClientApp(Half, lambda context: (data, data), ADAM)
    arrays = ArrayRecord(seeded(Half).state_dict())
    strategy.start(LocalGrid(app, 2), arrays, 1)
    assert strategy.progress.rounds[0].failures == {}


# -- the default metric ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "labels", "found"),
    [
        ([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]], [0, 1, -100], {"eval_acc": 1.0}),
        ([[2.0, 1.0], [1.0, 2.0]], [-1, -1], {}),
        ([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]], [0, 1, 255], {"eval_acc": 1.0}),
        ([[2.0, 1.0], [1.0, 2.0]], [2, 1], {"eval_acc": 1.0}),
        ([[[1.0, 2.0], [2.0, 1.0]]], [[1, -100]], {"eval_acc": 1.0}),
        # one score a sample, and classes last
        ([[2.0], [-1.0]], [1, 0], {}),
        ([[[1.0, 2.0, 3.0], [2.0, 1.0, 0.0]]], [[2, 0]], {}),
        ([2.0, -1.0], [1, 0], {}),
        ([[2.0, 1.0]], [0.5], {}),
    ],
)
def test_accuracy_is_of_class_indices_that_count(
    outputs: Any, labels: Any, found: dict[str, float]
) -> None:
    assert accuracy(torch.tensor(outputs), torch.tensor(labels)) == found


def test_labels_of_a_byte_are_class_indices_like_others() -> None:
    """Of 300 classes, and -100 is 156 in a byte."""
    outputs = torch.eye(300)[[155, 156]]
    labels = torch.tensor([155, 156], dtype=torch.uint8)
    assert accuracy(outputs, labels) == {"eval_acc": 1.0}


@pytest.mark.parametrize("transport", ["stream", "messages"])
def test_evaluation_is_over_the_labels_that_count(transport: Any) -> None:
    """Of batches one has few of them, and one has none; without a ticket it is the same."""
    few, none = Y.clone(), torch.full_like(Y, -100)
    few[3:] = -100
    data = [(X, few), (X, none), DATA[1]]
    app = SplitClientApp(
        DeviceHalf,
        lambda context: (DATA, data),
        ADAM,
        server_model=ServerHalf,
        loss_fn=CROSS_ENTROPY,
    )
    halves = seeded(DeviceHalf), seeded(ServerHalf)
    endpoint = EndpointConfig(transport=transport)
    split = SplitFedV2(
        halves[1],
        CROSS_ENTROPY,
        ADAM,
        codec=cut_codec("float32", evaluation="float32"),
        device="cpu",
        devices=FedAvg(fraction_train=0.0),
        endpoint=endpoint,
    )
    whole = JoinedModel(*halves).eval()
    labels = torch.cat([y for _, y in data])
    outputs = whole(torch.cat([x for x, _ in data]))
    wanted = {
        "eval_loss": CROSS_ENTROPY(outputs, labels).item(),
        **accuracy(outputs, labels),
    }
    for strategy, model in ((split, halves[0]), (FedAvg(fraction_train=0.0), whole)):
        arrays = ArrayRecord(model.state_dict())
        result = strategy.start(LocalGrid(app, 2), arrays, 1)
        found = result.evaluate_metrics_clientapp[1]
        assert {key: found[key] for key in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize(
    "loss_fn_of", [nn.CrossEntropyLoss, partial(partial, nn.functional.cross_entropy)]
)
@pytest.mark.parametrize("ignored", [255, 0])
def test_evaluation_leaves_out_what_the_loss_ignores(
    ignored: int, loss_fn_of: Callable[..., Any]
) -> None:
    """A mark that is no class, or one of the classes; training means over the same."""
    loss_fn = loss_fn_of(ignore_index=ignored)
    few, none = Y.clone(), torch.full_like(Y, ignored)
    few[3:] = ignored
    data = [(X, few), (X, none), DATA[1]]
    app = SplitClientApp(
        DeviceHalf,
        lambda context: (data, data),
        partial(torch.optim.SGD, lr=0.0),
        server_model=ServerHalf,
        loss_fn=loss_fn,
    )
    halves = seeded(DeviceHalf), seeded(ServerHalf)
    split = SplitFedV2(
        halves[1],
        loss_fn,
        ADAM,
        codec=cut_codec("float32", evaluation="float32"),
        device="cpu",
        devices=FedAvg(fraction_train=0.0),
    )
    whole = JoinedModel(*halves).eval()
    labels = torch.cat([y for _, y in data])
    outputs = whole(torch.cat([x for x, _ in data]))
    loss = loss_fn(outputs, labels).item()
    counted = labels != ignored
    right = (outputs.argmax(1) == labels)[counted]
    wanted = {"eval_loss": loss, "eval_acc": right.float().mean().item()}
    for strategy, model in ((split, halves[0]), (FedAvg(), whole)):
        arrays = ArrayRecord(model.state_dict())
        result = strategy.start(LocalGrid(app, 2), arrays, 1)
        found = result.evaluate_metrics_clientapp[1]
        assert {key: found[key] for key in wanted} == pytest.approx(wanted)
    assert result.train_metrics_clientapp[1]["train_loss"] == pytest.approx(loss)


def test_training_with_last_layers_means_over_the_labels_that_count() -> None:
    loss_fn = nn.CrossEntropyLoss(ignore_index=255)
    few = Y.clone()
    few[3:] = 255
    data = [(X, few), DATA[1]]
    tail = nn.Linear(CLASSES, CLASSES)
    app = SplitClientApp(
        DeviceHalf,
        lambda context: (data, data),
        partial(torch.optim.SGD, lr=0.0),
        tail=lambda: tail,
        loss_fn=loss_fn,
    )
    device_half, middle = seeded(DeviceHalf), seeded(ServerHalf)
    strategy = SplitFedV2(
        middle,
        None,
        partial(torch.optim.SGD, lr=0.0),
        codec=cut_codec("float32"),
        output_codec=cut_codec("float32"),
        device="cpu",
        devices=FedAvg(fraction_evaluate=0.0),
    )
    model = HeadAndTail(device_half, tail)
    outputs = tail(middle(device_half(torch.cat([x for x, _ in data]))))
    loss = loss_fn(outputs, torch.cat([y for _, y in data])).item()
    arrays = ArrayRecord(model.state_dict())
    result = strategy.start(LocalGrid(app, 2), arrays, 1)
    found = result.train_metrics_clientapp[1]
    assert found["train_loss"] == pytest.approx(loss)


@pytest.mark.parametrize("transport", ["stream", "messages"])
def test_labels_of_each_place_are_counted_for_last_layers(transport: str) -> None:
    """A sample has 16: 4 entries of its features to each, and 2 of the output."""
    dense = [(x, x[:, :, ::2, ::2]) for x, _ in DATA]
    tail = partial(nn.Conv2d, 2, 1, 1)

    def digest(codec: CutCodec, output_codec: CutCodec) -> str:
        app = SplitClientApp(
            DeviceHalf,
            lambda context: (dense, dense),
            ADAM,
            tail=tail,
            loss_fn=nn.MSELoss(),
        )
        strategy = SplitLearning(
            seeded(partial(nn.Conv2d, 4, 2, 3, padding=1)),
            None,
            ADAM,
            codec=codec,
            output_codec=output_codec,
            device="cpu",
            evaluate_every=2,
            endpoint=EndpointConfig(transport=transport),
        )
        model = HeadAndTail(seeded(DeviceHalf), seeded(tail))
        arrays = ArrayRecord(model.state_dict())
        strategy.start(LocalGrid(app, 2), arrays, 1)
        return strategy.ledger.digest()

    automatic = cut_codec("splitfc-rd")
    wanted = [automatic_quality(entries) for entries in (4, 2)]
    told = [cut_codec("splitfc-rd", quality=quality) for quality in wanted]
    assert digest(automatic, automatic) == digest(*told)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [(1, 3, None), (0, 3, "after '0', and .* '1'"), (1, 4, "after '3', and .* '4'")],
)
def test_parts_that_do_not_meet_are_told(
    first: int, second: int, told: str | None
) -> None:
    """Layers in between without entries would run nowhere, or twice."""

    def parts(first: int, second: int) -> list[nn.Module]:
        layers = [DeviceHalf(), nn.ReLU(), ServerHalf(), nn.ReLU(), nn.ReLU()]
        whole = nn.Sequential(*layers, nn.Linear(CLASSES, CLASSES))
        head, rest = split_at(whole, first)
        return [head, *split_at(rest, str(second))]

    head, middle, tail = parts(1, 3)
    app = SplitClientApp(
        lambda: parts(first, second)[0],
        lambda context: (DATA, DATA),
        ADAM,
        tail=lambda: parts(first, second)[2],
        loss_fn=CROSS_ENTROPY,
    )
    strategy = SplitFedV2(middle, None, ADAM, device="cpu")
    arrays = ArrayRecord(HeadAndTail(head, tail).state_dict())
    if told is None:
        strategy.start(LocalGrid(app, 2), arrays, 1)
        return
    with pytest.raises(RunFailed, match=told):
        strategy.start(LocalGrid(app, 2), arrays, 1)
