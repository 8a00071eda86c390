"""Coverage-guided fuzzing of checkpoints. In the repository's root, after ``pip install atheris``:

    python -m fuzz.fuzz_checkpoints -max_total_time=300

An input decides on a run that left a checkpoint, and on changes of it: of the state in
it, of the archive under the right checksum, or of the file. The run is then resumed.
An error that is not a `CheckpointError` or a `RunFailed` is reported as a crash, and so is a server half
that a refused checkpoint changed, or a run that goes on from one and cannot. Other
options are libFuzzer's.
"""

from __future__ import annotations

import io
import tempfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fuzz.choices import Choices
from fuzz.fuzzing import fuzz, instrumented, watched_log
from fuzz.mutations import changed_bytes, changed_tree

with instrumented("flwr_splitfc.strategy", "flwr_splitfc.exchange.server"):
    import torch
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAdam, FedAvg
    from torch import nn

    from flwr_splitfc import RoundRobin, SplitClientApp, SplitLearning
    from flwr_splitfc.strategy import CheckpointError, RunFailed
    from flwr_splitfc.strategy.checkpoint import checkpoint_path, load_checkpoint
    from tests.halves import batches, same, seeded, weights
    from tests.local_grid import LocalGrid

ADAM = partial(torch.optim.Adam, lr=1e-2)
ROUNDS = 2
HEAD = b"flwr-splitfc checkpoint\n"


def device_half() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))


def server_half() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))


HONEST = SplitClientApp(
    device_half, lambda context: (batches(1, rows=4), batches(1, rows=4)), ADAM
)
HALF = ArrayRecord(seeded(device_half).state_dict())
GRID = LocalGrid(HONEST, 2, workers=0)


@dataclass(frozen=True)
class Run:
    """A kind of run, and what its checkpoint holds."""

    devices: type[FedAvg]
    optimizer_state: str

    def strategy(self, folder: Path) -> SplitLearning:
        return SplitLearning(
            seeded(server_half),
            nn.CrossEntropyLoss(),
            ADAM,
            device="cpu",
            devices=self.devices(min_available_nodes=2, fraction_evaluate=0.0),
            optimizer_state=self.optimizer_state,
            scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=3),
            checkpoint=folder,
        )

    def state(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder, watched_log():
            self.strategy(Path(folder)).start(GRID, HALF, ROUNDS)
            state = load_checkpoint(Path(folder))
        assert state is not None
        return state


RUNS = [Run(RoundRobin, "relay"), Run(FedAvg, "per-device"), Run(FedAdam, "fresh")]
STATES = [run.state() for run in RUNS]


def answer(data: bytes) -> None:
    """One input."""
    choices = Choices(data)
    number = choices.below(len(RUNS))
    with tempfile.TemporaryDirectory() as folder:
        write_changed(Path(folder), STATES[number], choices)
        # what is done is not done again, and nothing trains
        rounds = ROUNDS + choices.one_in(8)
        with watched_log():
            resume(RUNS[number].strategy(Path(folder)), Path(folder), rounds)


def resume(strategy: SplitLearning, folder: Path, rounds: int) -> None:
    before = weights(strategy.server_model)
    file = checkpoint_path(folder).read_bytes()
    try:
        result = strategy.start(GRID, HALF, rounds)
    except CheckpointError:
        assert same(weights(strategy.server_model), before), "it changed the half"
        assert checkpoint_path(folder).read_bytes() == file, "it changed the file"
        return
    except RunFailed:
        # finite, and so that no step is possible: the first one says it
        return
    for name, tensor in result.arrays.to_torch_state_dict().items():
        assert tensor.isfinite().all(), f"{name} is not finite"
    for name, tensor in weights(strategy.server_model).items():
        assert tensor.isfinite().all(), f"{name} is not finite"


def write_changed(folder: Path, state: Any, choices: Choices) -> None:
    """Write a checkpoint whose state, archive or file differs from the right one."""
    layer = choices.of(["state", "state", "state", "archive", "file"])
    if layer == "state":
        state = changed_tree(state, choices)
        while choices.one_in(2):
            state = changed_tree(state, choices)
    body = archive_of(state)
    if layer == "archive":
        body = some_changes(body, choices)
    data = HEAD + zlib.crc32(body).to_bytes(4, "little") + body
    if layer == "file":
        data = some_changes(data, choices)
    checkpoint_path(folder).write_bytes(data)


def archive_of(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def some_changes(data: bytes, choices: Choices) -> bytes:
    data = changed_bytes(data, choices)
    while choices.one_in(2):
        data = changed_bytes(data, choices)
    return data


if __name__ == "__main__":
    fuzz(answer)
