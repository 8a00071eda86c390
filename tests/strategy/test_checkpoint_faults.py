"""Full disks, two runs in one folder, and checkpoints that no run wrote."""

import io
import json
import math
import zipfile
import zlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvgM

from flwr_splitfc import SplitClientApp, SplitLearning
from flwr_splitfc.run import held_folder
from flwr_splitfc.strategy import CheckpointError
from flwr_splitfc.strategy.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from flwr_splitfc.strategy.folder_lock import locked
from tests.halves import DeviceHalf, same, seeded, weights
from tests.local_grid import LocalGrid
from tests.strategy.test_checkpoint import ADAM, everyone, load_data, make, run

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def start(strategy: SplitLearning, rounds: int, evaluate_fn: Any = None) -> Any:
    grid = LocalGrid(SplitClientApp(DeviceHalf, load_data, ADAM), 3)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    return strategy.start(grid, arrays, rounds, evaluate_fn=evaluate_fn)


def fill_disk_under(path: Path) -> None:
    """Make the next file that replaces `path` find no space left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".{path.name}.new").symlink_to(FULL)


# -- two runs --------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(held_folder, "PATIENCE_S", 0.0)
    refusals = []

    def second(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 2:
            with pytest.raises(CheckpointError, match="another run") as raised:
                run(make(tmp_path), 5)
            refusals.append(raised.value)

    start(make(tmp_path), 4, second)
    assert len(refusals) == 1
    state = load_checkpoint(tmp_path)
    assert state["round"] == 4
    got, _ = run(make(tmp_path), 5)
    wanted, _ = run(make(None), 5)
    assert same(got, wanted)


def test_a_run_waits_for_the_last_process_of_a_killed_one(tmp_path):
    """Workers of a `DataLoader`, which share its lock, end a bit after it."""
    with ExitStack() as workers:
        workers.enter_context(locked(tmp_path))
        Timer(0.3, workers.close).start()
        _, result = run(make(tmp_path), 1)
    assert list(result.train_metrics_clientapp) == [1]


# -- wrong folders ---------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "checkpoint"])
def test_a_checkpoint_that_has_no_folder_is_refused_by_its_name(tmp_path, below):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below
    why = rf"^checkpoint \(checkpoint-dir\): {folder} is no folder to write into"
    with pytest.raises(CheckpointError, match=why):
        run(make(folder), 1)


def test_a_folder_in_the_place_of_a_checkpoint_is_refused(tmp_path):
    checkpoint_path(tmp_path).mkdir()
    with pytest.raises(
        CheckpointError, match=r"checkpoint.bin cannot be read: .*Is a d"
    ):
        run(make(tmp_path), 1)


def test_a_lock_that_is_none_is_refused(tmp_path):
    (tmp_path / ".checkpoint.lock").mkdir()
    with pytest.raises(CheckpointError, match=r"no folder to write into: .*lock"):
        run(make(tmp_path), 1)


@pytest.mark.parametrize("below", ["", "model"])
def test_a_model_that_has_no_folder_is_refused_before_the_run(tmp_path, below):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below
    strategy = make(None, save_to=folder)
    with pytest.raises(ValueError, match=f"^save_to: {folder} is no folder to write"):
        run(strategy, 1)
    assert not strategy.progress.rounds


# -- full disks ------------------------------------------------------------------------


@needs_full
def test_a_full_disk_is_said_and_training_goes_on(tmp_path, caplog):
    run(make(tmp_path), 1)
    rounds = {}

    def watch(server_round: int, arrays: ArrayRecord) -> None:
        # the round before is written by now, or was given up
        if server_round == 3:
            fill_disk_under(checkpoint_path(tmp_path))
        rounds[server_round] = load_checkpoint(tmp_path)["round"]

    start(make(tmp_path), 5, watch)
    assert "could not be written" in caplog.text
    assert "No space left on device" in caplog.text
    assert load_checkpoint(tmp_path)["round"] == 5
    got, _ = run(make(tmp_path), 6)
    wanted, _ = run(make(None), 6)
    assert same(got, wanted)


@needs_full
def test_a_disk_that_is_full_at_the_last_round_keeps_the_one_before(tmp_path, caplog):
    run(make(tmp_path), 3)
    before = checkpoint_path(tmp_path).read_bytes()
    fill_disk_under(checkpoint_path(tmp_path))
    result = start(make(tmp_path), 4)
    assert list(result.train_metrics_clientapp) == [1, 2, 3, 4]
    assert "round 4 could not be written" in caplog.text
    assert checkpoint_path(tmp_path).read_bytes() == before
    # what was half written takes no space
    assert [path.name for path in tmp_path.iterdir() if "new" in path.name] == []


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.pt")}


@needs_full
@pytest.mark.parametrize("name", ["device.pt", "server.pt", "joined.pt"])
def test_halves_are_saved_whole_and_a_full_disk_loses_no_result(tmp_path, name, caplog):
    run(make(None, save_to=tmp_path), 1)
    before = contents(tmp_path)
    fill_disk_under(tmp_path / name)
    strategy = make(None, save_to=tmp_path)
    result = start(strategy, 2)
    assert result.arrays
    assert "No space left on device" in caplog.text
    # none of them is of another round than the others
    assert contents(tmp_path) == before
    strategy.save(tmp_path, result.arrays)
    after = contents(tmp_path)
    assert not [each for each in before if after[each] == before[each]]
    fill_disk_under(tmp_path / name)
    with pytest.raises(OSError, match="No space left"):
        strategy.save(tmp_path, result.arrays)


# -- checkpoints that no run wrote -----------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    run(make(tmp_path), 2)
    state = load_checkpoint(tmp_path)
    assert state is not None
    return state


def refused(folder: Path, match: str = "") -> None:
    """The checkpoint is refused, and neither it nor the server half has changed."""
    before = checkpoint_path(folder).read_bytes()
    strategy = make(folder)
    half = weights(strategy.server_model)
    with pytest.raises(CheckpointError, match=match):
        run(strategy, 3)
    assert checkpoint_path(folder).read_bytes() == before
    assert same(weights(strategy.server_model), half)


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = math.nan


def halve_arrays(state: dict[str, Any]) -> None:
    name = next(iter(state["arrays"]))
    state["arrays"][name] = state["arrays"][name][:1]


def wrong_gradient(state: dict[str, Any]) -> None:
    state["half"]["gradients"][0] = torch.zeros(7)


def lost_line(state: dict[str, Any]) -> None:
    state["history"] = state["history"][:-1]


def nan_moment(state: dict[str, Any]) -> None:
    set_nan(state["half"]["optimizer"]["state"][0])


def expanded(state: dict[str, Any]) -> None:
    state["arrays"] = {"w": torch.zeros(1).expand(10_000_000)}


def expanded_values(state: dict[str, Any]) -> None:
    indices = torch.zeros(1, 10_000_000, dtype=torch.int64)
    values = torch.zeros(1).expand(10_000_000)
    state["half"]["gradients"][0] = torch.sparse_coo_tensor(indices, values, (3,))


def indices_beyond(state: dict[str, Any]) -> None:
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (3,))
    sparse._indices()[0, 0] = 10**6
    state["half"]["gradients"][0] = sparse


def tensor_rate(state: dict[str, Any]) -> None:
    state["half"]["optimizer"]["param_groups"][0]["lr"] = torch.ones(2)


def short_moment(state: dict[str, Any]) -> None:
    state["half"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)


def no_count(state: dict[str, Any]) -> None:
    _, _, counts = state["device_traffic"][0]
    counts["steps"] = []


def no_bytes(state: dict[str, Any]) -> None:
    _, _, counts = state["device_traffic"][0]
    counts["uplink_bytes"] = {"features": "many"}


def named(name: Any) -> Any:
    def change(state: dict[str, Any]) -> None:
        _, purpose, counts = state["device_traffic"][0]
        state["device_traffic"][0] = (name, purpose, counts)

    return change


def last_line(change: Any) -> Any:
    def change_state(state: dict[str, Any]) -> None:
        line = json.loads(state["history"][-1])
        change(line)
        state["history"][-1] = json.dumps(line)

    return change_state


def levels(votes: Any) -> Any:
    def change(state: dict[str, Any]) -> None:
        state["device_states"]["levels"] = votes

    return change


def update(*entry: Any) -> Any:
    def change(state: dict[str, Any]) -> None:
        state["half"]["updates"] = [entry]

    return change


def python_normal(number: Any) -> Any:
    def change(state: dict[str, Any]) -> None:
        version, internal, _ = state["random"]["python"]
        state["random"]["python"] = (version, internal, number)

    return change


def numpy_at(place: int, value: Any) -> Any:
    def change(state: dict[str, Any]) -> None:
        parts = list(state["random"]["numpy"])
        parts[place] = value
        state["random"]["numpy"] = tuple(parts)

    return change


CHANGES = {
    "device half is NaN": (lambda state: set_nan(state["arrays"]), "not finite"),
    "server half is NaN": (lambda state: set_nan(state["half"]["model"]), "not finite"),
    "optimizer is NaN": (nan_moment, "not finite"),
    "the learning rate is a tensor": (tensor_rate, "lr"),
    "a moment of another shape": (short_moment, "fit this run"),
    "round -5": (lambda state: state.update(round=-5), "round -5"),
    "round too large": (lambda state: state.update(round=7), "round 7"),
    "half a round": (lambda state: state.update(round=1.5), "round 1.5"),
    "steps -1": (lambda state: state["half"].update(steps=-1), "steps"),
    "a round is missing": (lost_line, "round"),
    "other arrays": (halve_arrays, "device half"),
    "other gradients": (wrong_gradient, "fit this run"),
    "expanded": (expanded, ""),
    "sparse values expanded": (expanded_values, "in the file"),
    "sparse indices beyond": (indices_beyond, "cannot be read"),
    "a count is none": (no_count, "steps"),
    "bytes are none": (no_bytes, "features"),
    "a device is a number": (named(7), "isdecimal"),
    "a device of 5,000 digits": (named("9" * 5000), "digits"),
    "a row is none": (last_line(lambda line: line["row"].update(loss="low")), "loss"),
    "metrics are none": (last_line(lambda line: line.update(train={"a": "b"})), "fit"),
    "steps 10**30": (lambda state: state["half"].update(steps=10**30), "steps"),
    "levels of tensor -1": (levels({-1: 10}), "tensor -1"),
    "levels of tensor 128": (levels({128: 10}), "tensor 128"),
    "levels of half a tensor": (levels({0.5: 10}), "tensor 0.5"),
    "levels of no turn": (levels({0: 0}), "0 turns"),
    "levels of half a turn": (levels({0: 1.5}), "1.5 turns"),
    "an update of no round": (update("x", "0", 1, 1), "an update"),
    "an update of no device": (update(1, 2, 1, 1), "an update"),
    "an update of step 0": (update(1, "0", 0, 1), "an update"),
    "an update of nothing": (update(), "fit this run"),
    "a normal number is a text": (python_normal("x"), "normal number"),
    "a normal number is infinite": (python_normal(math.inf), "normal number"),
    "NumPy's normal number is NaN": (numpy_at(4, math.nan), "normal number"),
    "NumPy is beyond its keys": (numpy_at(2, 10**6), "NumPy's generator is at"),
    "NumPy is before its keys": (numpy_at(2, -1), "NumPy's generator is at"),
}


@pytest.mark.parametrize(("change", "why"), CHANGES.values(), ids=CHANGES)
def test_states_that_no_run_leaves_are_refused(tmp_path, state, change, why):
    change(state)
    save_checkpoint(tmp_path, state)
    refused(tmp_path, why)


def lost_moment(moments: Any) -> Any:
    if isinstance(moments, dict):
        return dict(list(moments.items())[1:])
    return moments[1:]


def wide_moment(moments: Any) -> Any:
    if isinstance(moments, dict):
        return {key: torch.zeros(7) for key in moments}
    return [torch.zeros(7) for _ in moments]


def undefined_moment(moments: Any) -> Any:
    if isinstance(moments, dict):
        return {key: moment * math.nan for key, moment in moments.items()}
    return [moment * math.nan for moment in moments]


@pytest.mark.parametrize("change", [lost_moment, wide_moment, undefined_moment])
@pytest.mark.parametrize(
    ("devices", "name"),
    [
        (partial(everyone, FedAdam), "m_t"),
        (partial(everyone, FedAdam), "v_t"),
        (partial(everyone, FedAvgM, server_momentum=0.9), "momentum_vector"),
    ],
    ids=["FedAdam-m_t", "FedAdam-v_t", "FedAvgM"],
)
def test_what_a_strategy_remembers_is_of_the_device_half(
    devices: Any, name: str, change: Any, tmp_path: Path
) -> None:
    run(make(tmp_path, devices()), 2)
    state = load_checkpoint(tmp_path)
    assert state is not None
    run(make(tmp_path, devices()), 3)  # as it is, it is not refused
    state["devices"][name] = change(state["devices"][name])
    save_checkpoint(tmp_path, state)
    with pytest.raises(CheckpointError, match=name):
        run(make(tmp_path, devices()), 3)


WRONG: list[Any] = [None, -1, "x", [], {}, [3], {"x": None}, torch.zeros(2), math.nan]
KEYS = (
    "schema",
    "settings",
    "round",
    "arrays",
    "half",
    "device_states",
    "devices",
    "random",
    "history",
    "device_traffic",
)


@pytest.mark.parametrize("key", KEYS)
def test_no_state_raises_anything_else(tmp_path, state, key):
    """Whatever stands in a place, at the top or a level below, or if nothing does."""
    places: list[tuple[dict[Any, Any], Any]] = [(state, key)]
    if isinstance(state[key], dict):
        places += [(state[key], name) for name in state[key]]
    for holder, name in places:
        right = holder[name]
        for wrong in WRONG:
            holder[name] = wrong
            only_checkpoint_errors(tmp_path, state)
        del holder[name]
        only_checkpoint_errors(tmp_path, state)
        holder[name] = right


def only_checkpoint_errors(folder: Path, state: dict[str, Any]) -> None:
    save_checkpoint(folder, state)
    try:
        # what is done is not done again: nothing trains
        run(make(folder), 2)
    except CheckpointError:
        return


def test_lines_of_history_that_are_none_are_refused(tmp_path, state):
    for line in ("", "{}", "[]", "nonsense", json.dumps({"round": 2}), "[" * 100_000):
        save_checkpoint(tmp_path, {**state, "history": [*state["history"][:-1], line]})
        refused(tmp_path)


def test_a_checkpoint_that_inflates_is_refused(tmp_path, state):
    """A hundred megabytes of zeros, in a file of a hundred kilobytes."""
    state["arrays"] = {"w": torch.zeros(25_000_000)}
    save_checkpoint(tmp_path, state)
    path = checkpoint_path(tmp_path)
    write_body(path, deflated(body_of(path)))
    assert path.stat().st_size < 1_000_000
    refused(tmp_path, "compressed")


def body_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[data.index(b"\n") + 1 + 4 :]


def write_body(path: Path, body: bytes) -> None:
    """Put another body under the right checksum."""
    line = path.read_bytes().split(b"\n")[0] + b"\n"
    path.write_bytes(line + zlib.crc32(body).to_bytes(4, "little") + body)


def deflated(body: bytes) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(body)) as archive,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as smaller,
    ):
        for name in archive.namelist():
            smaller.writestr(name, archive.read(name))
    return out.getvalue()
