"""A run goes on from whatever it writes, and does not begin where it could not."""

import datetime
from collections import defaultdict, deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import RoundRobin, SplitLearning
from flwr_splitfc.strategy import CheckpointError
from flwr_splitfc.strategy.checkpoint import load_checkpoint
from tests.halves import ServerHalf, seeded
from tests.strategy.test_checkpoint import run

MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class WithBuffer(ServerHalf):
    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.register_buffer("extra", buffer)


class WithExtraState(ServerHalf):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class WithSparseGradient(ServerHalf):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        words = (10 * flat.detach().sum(1)).long() % 50
        return super().forward(flat + self.embedding(words))


class Shift(ServerHalf):
    """The gradient of a sum is one entry, shown as many."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift.sum()


def strategy(
    folder: Path | None, half: Any, optimizer: Any = MOMENTUM, **options: Any
) -> SplitLearning:
    return SplitLearning(
        seeded(half),
        nn.CrossEntropyLoss(),
        optimizer,
        device="cpu",
        devices=RoundRobin(min_available_nodes=3, fraction_evaluate=0.0),
        checkpoint=folder,
        **options,
    )


def dense(tensor: Tensor) -> Tensor:
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor.to_dense().double()


def goes_on(folder: Path, half: Any, **options: Any) -> None:
    """The run that is begun again ends as the one that was not stopped."""
    wanted, _ = run(strategy(None, half, **options), 4)
    run(strategy(folder, half, **options), 2)
    got, _ = run(strategy(folder, half, **options), 4)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(dense(got[name]), dense(tensor)), name


# with 4, the gradients of two mini-batches wait when the run is stopped
@pytest.mark.parametrize("accumulate_steps", [1, 4])
@pytest.mark.parametrize("half", [WithSparseGradient, Shift])
def test_sparse_and_expanded_gradients_are_carried(
    half: Any, accumulate_steps: int, tmp_path: Path
) -> None:
    goes_on(tmp_path, half, accumulate_steps=accumulate_steps)


BUFFERS = {
    "coo": lambda: torch.eye(4).to_sparse(),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "csc": lambda: torch.eye(4).to_sparse_csc(),
    "expanded": lambda: torch.ones(1).expand(1000),
    "float8": lambda: torch.ones(4).to(torch.float8_e4m3fn),
    "quint8": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
}


@pytest.mark.parametrize("make_buffer", BUFFERS.values(), ids=BUFFERS)
def test_buffers_of_any_kind_are_carried(make_buffer: Any, tmp_path: Path) -> None:
    def half() -> nn.Module:
        return WithBuffer(make_buffer())

    goes_on(tmp_path / "checkpoint", half, save_to=tmp_path / "out")


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (np.ones(3), "numpy.ndarray"),
        (np.float64(1), "numpy.float64"),
        (Path("x"), "pathlib.*Path"),
        (datetime.datetime(2026, 1, 1), "datetime.datetime"),
        (deque([1]), "collections.deque"),
        (defaultdict(int), "collections.defaultdict"),
        (frozenset([1]), "builtins.frozenset"),
        (slice(1), "builtins.slice"),
        (lambda: 1, "builtins.function"),
    ],
)
def test_what_does_not_come_back_is_named_before_the_first_round(
    state: Any, name: str, tmp_path: Path
) -> None:
    half = partial(WithExtraState, {"kept": [1, state]})
    refused = strategy(tmp_path, half)
    place = r"state\['half'\]\['model'\]\['_extra_state'\]\['kept'\]\[1\]"
    with pytest.raises(CheckpointError, match=f"checkpoint= .*: {place} is a {name}"):
        run(refused, 2)
    assert not refused.progress.rounds
    assert load_checkpoint(tmp_path) is None
    run(strategy(None, half), 1)


class NeverSet(ServerHalf):
    def get_extra_state(self) -> int:
        return 3


def test_so_is_what_a_module_does_not_take_back(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"carry this run: .*_extra_state"):
        run(strategy(tmp_path, NeverSet), 1)


class Counting(torch.optim.SGD):
    """Has state from its first step on, and no tensor."""

    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["seen"] = np.float64(1)
        return super().step(closure)


def test_an_optimizer_s_state_is_named_after_the_first_round(tmp_path: Path) -> None:
    refused = strategy(tmp_path, ServerHalf, partial(Counting, lr=0.1))
    with pytest.raises(CheckpointError, match=r"\['seen'\] is a numpy.float64"):
        run(refused, 5)
    assert len(refused.progress.rounds) == 1
