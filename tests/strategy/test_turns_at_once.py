"""Turns of several devices at once: all from the same device half, and their changes added."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn

from flwr_splitfc import RoundRobin, RunFailed, SplitClientApp, SplitLearning
from tests.apps import server_runs
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import App, LocalGrid

SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
CROSS_ENTROPY = nn.CrossEntropyLoss()
DEVICES = 5


def data_of(device: int) -> list[tuple[Tensor, Tensor]]:
    return batches(1, seed=device)


def load_data(context: Context) -> Any:
    data = data_of(context.node_config["partition-id"])
    return data, data


def failing(client: App, failed: set[int]) -> App:
    """An app some of whose devices fail in training."""

    def app(message: Message, context: Context) -> Message:
        device = context.node_config["partition-id"]
        if message.metadata.message_type == "train" and device in failed:
            raise ZeroDivisionError(f"the fault of device {device}")
        return client(message, context)

    return app


def trained(
    rounds: int,
    turns_at_once: int,
    *,
    half: Callable[[], nn.Module] = DeviceHalf,
    optimizer: Any = SGD,
    failed: set[int] = frozenset(),
    devices: int = DEVICES,
    **options: Any,
) -> tuple[SplitLearning, dict[str, Tensor], list[int]]:
    """A run's strategy, its device half, and the devices in the order of their turns."""
    in_turn = RoundRobin(
        turns_at_once=turns_at_once, min_available_nodes=devices, fraction_evaluate=0.0
    )
    run = SplitLearning(
        seeded(ServerHalf), CROSS_ENTROPY, SGD, devices=in_turn, device="cpu", **options
    )
    client = SplitClientApp(half, load_data, optimizer)
    grid = LocalGrid(failing(client, failed), devices, workers=0)
    result = run.start(grid, ArrayRecord(seeded(half).state_dict()), rounds)
    return run, dict(result.arrays.to_torch_state_dict()), grid.trained


def reference(
    rounds: list[list[int]],
    half: Callable[[], nn.Module] = DeviceHalf,
    optimizer: Any = SGD,
) -> tuple[nn.Module, nn.Module]:
    """Both halves in one process: of each round the devices that train at once."""
    device_half, server_half = seeded(half), seeded(ServerHalf)
    server_optimizer = SGD(server_half.parameters())
    state = None
    for devices in rounds:
        start = weights(device_half)
        models = {device: seeded(half) for device in devices}
        states = {}
        for device, model in models.items():
            model.load_state_dict(start)
            own = optimizer(model.parameters())
            if state is not None:
                own.load_state_dict(deepcopy(state))
            for x, y in data_of(device):
                own.zero_grad()
                server_optimizer.zero_grad()
                CROSS_ENTROPY(server_half(model(x)), y).backward()
                own.step()
                server_optimizer.step()
            states[device] = own.state_dict()
        state = states[max(states)]
        ends = [weights(models[device]) for device in sorted(models)]
        device_half.load_state_dict(
            {
                name: before + sum(end[name] - before for end in ends)
                for name, before in start.items()
            }
        )
    return device_half, server_half


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "relayed-momentum"])
@pytest.mark.parametrize(
    ("turns_at_once", "rounds"),
    [
        (1, [[0], [1], [2], [3], [4], [0]]),
        (2, [[0, 1], [2, 3], [4, 0], [1, 2]]),
        (3, [[0, 1, 2], [3, 4, 0], [1, 2, 3]]),
        (9, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
    ],
)
def test_devices_start_alike_and_their_changes_are_added(
    turns_at_once: int, rounds: list[list[int]], optimizer: Any
) -> None:
    run, half, order = trained(len(rounds), turns_at_once, optimizer=optimizer)
    half_wanted, server_wanted = reference(rounds, optimizer=optimizer)
    assert order == [device for devices in rounds for device in devices]
    torch.testing.assert_close(half, weights(half_wanted))
    torch.testing.assert_close(weights(run.server_model), weights(server_wanted))
    assert [row["steps"] for row in run.progress.rows] == [len(each) for each in rounds]


def test_a_device_alone_trains_as_without_it() -> None:
    at_once, half, _ = trained(4, 3, devices=1, optimizer=MOMENTUM)
    alone, half_wanted, _ = trained(4, 1, devices=1, optimizer=MOMENTUM)
    assert same(half, half_wanted)
    assert same(weights(at_once.server_model), weights(alone.server_model))


def test_a_device_that_fails_loses_its_turn() -> None:
    run, half, _ = trained(3, 2, failed={1, 4})
    half_wanted, _ = reference([[0], [2, 3], [0]])
    torch.testing.assert_close(half, weights(half_wanted))
    failed = [list(row["failures"]) for row in run.progress.rows]
    assert failed == [["1"], [], ["4"]]


def test_the_run_ends_when_each_device_had_its_turn_and_failed() -> None:
    # five devices, two at once: three rounds
    with pytest.raises(RunFailed, match="every device failed in rounds 1 to 3"):
        trained(9, 2, failed=set(range(DEVICES)))


class HalfWithBuffers(DeviceHalf):
    """A half with batch normalisation, a mask and a truth value."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("is_new", torch.tensor(True))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.is_new.fill_(False)
        return super().forward(self.norm(x)) + self.mask[0]


def test_statistics_of_batches_are_averaged_and_counts_added() -> None:
    _, half, _ = trained(1, 3, half=HalfWithBuffers)
    pictures = [data_of(device)[0][0] for device in range(3)]
    means = torch.stack([picture.mean() for picture in pictures])
    variances = torch.stack([picture.var() for picture in pictures])
    # batch normalisation's momentum is 0.1
    torch.testing.assert_close(half["norm.running_mean"], 0.1 * means.mean()[None])
    torch.testing.assert_close(
        half["norm.running_var"], 0.9 + 0.1 * variances.mean()[None]
    )
    assert half["norm.num_batches_tracked"] == 3
    assert half["mask"].tolist() == [0.0, float("-inf")]
    assert not half["is_new"]


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(
    tmp_path: Path,
) -> None:
    _, wanted, order_wanted = trained(5, 2, optimizer=MOMENTUM)
    _, _, before = trained(2, 2, optimizer=MOMENTUM, checkpoint=tmp_path)
    _, half, after = trained(5, 2, optimizer=MOMENTUM, checkpoint=tmp_path)
    assert before + after == order_wanted
    assert same(half, wanted)


def test_coded_changes_are_added_to_the_exact_half() -> None:
    _, coded, _ = trained(3, 2, model_bits=8)
    _, exact, _ = trained(3, 2)
    start = weights(seeded(DeviceHalf))
    for name, entries in exact.items():
        error = (coded[name] - entries).norm()
        # at most 0.09 over ten seeds; 0.4 if the way down left its errors in the half
        assert error < 0.1 * (entries - start[name]).norm()


def test_the_run_config_names_it(tmp_path: Path) -> None:
    results = server_runs.run(
        tmp_path, strategy="splitfc", num_rounds=3, steps_per_turn=2, turns_at_once=2
    )
    rows = results["rounds"]
    assert [row["steps"] for row in rows] == [4, 4, 4]
    trained = [list(row["links"]["train"]) for row in rows]
    assert trained == [["0", "1"], ["2", "0"], ["1", "2"]]


def test_none_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="turns_at_once is 0, wanted 1 or more"):
        RoundRobin(turns_at_once=0)


@pytest.mark.parametrize(
    "config",
    [
        {"strategy": "fedavg"},
        {"strategy": "fedavg", "devices": "round-robin"},
        {"strategy": "splitfed-v2"},
        {"devices": "fedavg"},
    ],
)
def test_a_run_config_without_devices_in_turn_is_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="turns-at-once is 2, and strategy is"):
        server_runs.run(tmp_path, turns_at_once=2, **config)
