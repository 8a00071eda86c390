"""What callbacks hear of a run, and how they end it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from flwr_splitfc import (
    HeadAndTail,
    RoundRobin,
    SplitClientApp,
    SplitFedV2,
    SplitLearning,
)
from flwr_splitfc.callbacks import (
    BestModel,
    Callback,
    EarlyStopping,
    RunSoFar,
    TargetAccuracy,
    TensorBoard,
)
from flwr_splitfc.exchange import Ledger, Traffic, TrainedStep
from flwr_splitfc.run import Progress, Round
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded
from tests.local_grid import LocalGrid

ADAM = partial(torch.optim.Adam, lr=1e-2)
STEPS = 3
RISING_THEN_NOT = [0.1, 0.4, 0.7, 0.6, 0.7, 0.5, 0.7, 0.9]


class Recorder(Callback):
    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.ended: list[RunSoFar] = []

    def on_start(self, run: RunSoFar) -> None:
        self.heard.append(("start", len(run.rounds)))

    def on_step(self, step: TrainedStep, run: RunSoFar) -> None:
        self.heard.append((run.steps, step))

    def on_round(self, done: Round, run: RunSoFar) -> None:
        self.heard.append(done)
        assert run.rounds[-1] is done

    def on_end(self, run: RunSoFar) -> None:
        self.ended.append(run)

    def steps(self) -> list[TrainedStep]:
        return [
            each[1]
            for each in self.heard
            if isinstance(each, tuple) and isinstance(each[1], TrainedStep)
        ]


def accuracies(values: list[float]) -> Any:
    """An evaluation on the server that finds these, round by round."""

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord(
            {"accuracy": values[server_round - 1], "f1": -values[server_round - 1]}
        )

    return evaluate


def start(
    callbacks: list[Callback],
    rounds: int = 8,
    values: list[float] = RISING_THEN_NOT,
    kind: type[SplitLearning] = SplitLearning,
    **options: Any,
) -> tuple[SplitLearning, Any]:
    options.setdefault(
        "devices", RoundRobin(min_available_nodes=3, fraction_evaluate=0.0)
    )
    strategy = kind(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        device="cpu",
        callbacks=callbacks,
        **options,
    )
    app = SplitClientApp(DeviceHalf, lambda context: (batches(STEPS), []), ADAM)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    result = strategy.start(
        LocalGrid(app, 3), arrays, rounds, evaluate_fn=accuracies(values)
    )
    return strategy, result


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Those of callbacks."""
    warnings = [each for each in caplog.records if each.levelname == "WARNING"]
    return [each.message for each in warnings if "the run goes on" in each.message]


def test_what_a_callback_hears_and_when() -> None:
    recorder = Recorder()
    strategy, _ = start([recorder], rounds=2)
    rounds = strategy.progress.rounds
    kinds = [each if isinstance(each, tuple) else each.round for each in recorder.heard]
    assert kinds[0] == ("start", 0)
    assert [kind for kind in kinds if isinstance(kind, int)] == [1, 2]
    assert kinds[4] == 1, "after the steps of the round"
    assert [number for number, _ in kinds[1:4]] == [1, 2, 3]
    steps = recorder.steps()
    assert [(step.server_round, step.step) for step in steps] == [
        (each, step) for each in (1, 2) for step in (1, 2, 3)
    ]
    assert {step.device for step in steps[:STEPS]} == set(rounds[0].links["train"])
    assert {step.rows for step in steps} == {16}
    assert {step.uplink_bits_per_entry for step in steps} == {32.0}
    assert {step.downlink_bits_per_entry for step in steps} == {32.0}
    losses = [step.loss for step in steps[:STEPS]]
    assert sum(losses) / STEPS == pytest.approx(rounds[0].loss)
    (ended,) = recorder.ended
    assert (ended.stopped, ended.error, ended.steps) == ("", None, 2 * STEPS)


def test_steps_of_devices_at_once_are_told_one_at_a_time() -> None:
    class Alone(Callback):
        inside = 0
        numbers: list[int]

        def on_step(self, step: TrainedStep, run: RunSoFar) -> None:
            self.inside += 1
            assert self.inside == 1
            torch.randn(100, 100) @ torch.randn(100, 100)  # lets go of Python's lock
            self.numbers.append(run.steps)
            self.inside -= 1

    alone = Alone()
    alone.numbers = []
    start([alone], rounds=2, kind=SplitFedV2, devices=None)
    assert alone.numbers == list(range(1, 2 * 3 * STEPS + 1))


def test_labels_that_stay_on_devices_leave_no_loss() -> None:
    recorder = Recorder()
    middle = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
    strategy = SplitLearning(
        middle, None, ADAM, callbacks=[recorder], codec="float16", device="cpu"
    )
    app = SplitClientApp(
        DeviceHalf,
        lambda context: (batches(STEPS), []),
        ADAM,
        tail=partial(nn.Linear, 16, 4),
        loss_fn=nn.CrossEntropyLoss(),
    )
    arrays = ArrayRecord(HeadAndTail(DeviceHalf(), nn.Linear(16, 4)).state_dict())
    strategy.start(LocalGrid(app, 2), arrays, 1)
    steps = recorder.steps()
    assert [step.loss for step in steps] == STEPS * [None]
    assert {step.uplink_bits_per_entry for step in steps} == {16.0}
    assert {step.downlink_bits_per_entry for step in steps} == {16.0}


def test_a_callback_cannot_take_rounds_away() -> None:
    class Greedy(Callback):
        def on_round(self, done: Round, run: RunSoFar) -> None:
            run.rounds.clear()  # type: ignore[attr-defined]

    strategy, _ = start([Greedy()], rounds=2)
    assert [done.round for done in strategy.progress.rounds] == [1, 2]


@pytest.mark.parametrize("hook", ["on_start", "on_step", "on_round", "on_end"])
def test_an_error_of_a_callback_is_a_warning_and_the_run_goes_on(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no route to the tracker")

    class Broken(Callback):
        pass

    setattr(Broken, hook, fail)
    recorder = Recorder()
    strategy, result = start([Broken(), recorder])
    assert warnings_in(caplog) == [
        f"Broken.{hook} failed, and the run goes on: OSError('no route to the tracker')"
    ]
    assert len(strategy.progress.rounds) == 8
    assert len(recorder.steps()) == 8 * STEPS, "others hear all the same"
    _, undisturbed = start([])
    assert same(
        result.arrays.to_torch_state_dict(), undisturbed.arrays.to_torch_state_dict()
    )


def test_a_run_that_fails_tells_its_end() -> None:
    recorder = Recorder()
    strategy = SplitLearning(
        seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, callbacks=[recorder]
    )

    def no_data(context: Any) -> Any:
        raise FileNotFoundError("no pictures here")

    app = SplitClientApp(DeviceHalf, no_data, ADAM)
    with pytest.raises(RuntimeError) as failed:
        strategy.start(LocalGrid(app, 2), ArrayRecord(DeviceHalf().state_dict()), 2)
    assert recorder.ended[0].error is failed.value


@pytest.mark.parametrize(
    ("callback", "rounds", "reason"),
    [
        (
            TargetAccuracy(0.7),
            3,
            "the accuracy of round 3 is 70.0%, and the target 70.0%",
        ),
        (TargetAccuracy(0.95), 8, ""),
        (
            EarlyStopping(2),
            5,
            "the highest accuracy was 0.7 in round 3, and 2 rounds have not improved it",
        ),
        (EarlyStopping(5), 8, ""),
        (
            EarlyStopping(4, least_change=0.3),
            6,
            "the highest accuracy was 0.4 in round 2, ",
        ),
        (EarlyStopping(3, "lowest f1"), 6, "the lowest f1 was -0.7 in round 3, "),
    ],
)
def test_a_run_ends_early(callback: Callback, rounds: int, reason: str) -> None:
    strategy, result = start([callback])
    assert len(strategy.progress.rounds) == rounds
    assert strategy.stopped.startswith(reason)
    assert bool(strategy.stopped) == bool(reason)
    assert list(result.train_metrics_clientapp) == list(range(1, rounds + 1))
    assert list(result.evaluate_metrics_serverapp)[-1] == rounds
    assert f"\n{rounds:>7} " in strategy.progress.table(), "the last row is there"
    _, whole = start([], rounds)
    assert same(result.arrays.to_torch_state_dict(), whole.arrays.to_torch_state_dict())


def test_the_last_row_is_in_the_table_where_it_was_not_evaluated() -> None:
    class Stop(Callback):
        def on_round(self, done: Round, run: RunSoFar) -> None:
            if done.round == 5:
                run.stop("enough")

    strategy, _ = start([Stop()], evaluate_every=2)
    lines = strategy.progress.table().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["2", "4", "5"]


def test_a_stopped_run_that_is_started_again_trains_no_further(tmp_path: Path) -> None:
    """And goes on where there is more to reach; as an undisturbed run would."""

    def go_on(target: float) -> tuple[SplitLearning, Any]:
        return start([TargetAccuracy(target)], checkpoint=tmp_path)

    _, first = go_on(0.4)
    again, result = go_on(0.4)
    assert (len(again.progress.rounds), bool(again.stopped)) == (2, True)
    assert same(first.arrays.to_torch_state_dict(), result.arrays.to_torch_state_dict())
    further, _ = go_on(0.7)
    assert len(further.progress.rounds) == 3


def test_early_stopping_after_a_kill_stops_where_it_would_have(tmp_path: Path) -> None:
    start([EarlyStopping(2)], rounds=4, checkpoint=tmp_path)
    resumed, _ = start([EarlyStopping(2)], rounds=8, checkpoint=tmp_path)
    assert len(resumed.progress.rounds) == 5


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The whole model; the files of its halves are of the same round."""
    joined: dict[str, torch.Tensor] = torch.load(
        folder / "joined.pt", weights_only=True
    )
    for half in ("device", "server"):
        for name, value in torch.load(folder / f"{half}.pt", weights_only=True).items():
            assert torch.equal(joined[f"{half}.{name}"], value)
    return joined


def after(rounds: int, folder: Path) -> dict[str, torch.Tensor]:
    start([], rounds=rounds, save_to=folder)
    return saved(folder)


def best_round(best: BestModel) -> int:
    assert best.best is not None
    return best.best.round


def told_of_best(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each for each in caplog.messages if "The model of round" in each]


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    best = BestModel(tmp_path / "best")
    values = [0.1, 0.6, 0.4, 0.6]
    start([best], rounds=4, values=values, save_to=tmp_path / "last")
    assert (best_round(best), best.is_kept) == (2, True)
    assert (tmp_path / "best" / "round.txt").read_text() == "2\n"
    assert same(saved(tmp_path / "best"), after(2, tmp_path / "second"))
    assert not same(saved(tmp_path / "best"), saved(tmp_path / "last"))
    assert not [path for path in (tmp_path / "best").iterdir() if "new" in path.name]


class InRound(Callback):
    """Does something at the end of a round, before or after the callbacks beside it."""

    def __init__(self, number: int, act: Any) -> None:
        self.number = number
        self.act = act

    def on_round(self, done: Round, run: RunSoFar) -> None:
        if done.round == self.number:
            self.act()


def fill_disk(folder: Path) -> None:
    """Let the second file of the best model be one that cannot be written."""
    # what a file is written to before it takes its place
    (folder / "full" / ".server.pt.new").mkdir(parents=True)
    (folder / "best" / ".new").symlink_to(folder / "full")


def free_disk(folder: Path) -> None:
    (folder / "best" / ".new").unlink()


def test_where_the_best_model_cannot_be_written_the_one_before_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = BestModel(tmp_path / "best")
    full = InRound(2, partial(fill_disk, tmp_path))
    free = InRound(3, partial(free_disk, tmp_path))
    start([full, best, free], rounds=4, values=[0.1, 0.9, 0.4, 0.6])
    assert (best_round(best), best.is_kept) == (2, False)
    assert (tmp_path / "best" / "round.txt").read_text() == "1\n"
    assert same(saved(tmp_path / "best"), after(1, tmp_path / "first"))
    then, at_end = told_of_best(caplog)
    assert then.startswith("The model of round 2 is the best so far, and could not be")
    assert f"(highest accuracy: 0.9), but {tmp_path / 'best'} does not have" in at_end


def test_a_disk_that_has_space_again_at_the_end_gets_the_best_model(
    tmp_path: Path,
) -> None:
    best = BestModel(tmp_path / "best")
    full = InRound(2, partial(fill_disk, tmp_path))
    free = InRound(2, partial(free_disk, tmp_path))
    start([full, best, free], rounds=2, values=[0.1, 0.9])
    assert (best_round(best), best.is_kept) == (2, True)
    assert same(saved(tmp_path / "best"), after(2, tmp_path / "second"))


def test_a_best_model_that_a_kill_left_out_is_written_when_the_run_goes_on(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {
        "values": [0.1, 0.9, 0.4],
        "checkpoint": tmp_path / "checkpoint",
    }
    start([BestModel(tmp_path / "best")], rounds=1, **options)
    # as if killed between the checkpoint and the files
    start([], rounds=2, **options)
    best = BestModel(tmp_path / "best")
    start([best], rounds=3, **options)
    assert (best_round(best), best.is_kept) == (2, True)
    assert same(saved(tmp_path / "best"), after(2, tmp_path / "second"))


def test_a_new_run_does_not_take_another_s_model_for_its_own(tmp_path: Path) -> None:
    start([BestModel(tmp_path / "best")], rounds=1)
    best = BestModel(tmp_path / "best")
    full = InRound(1, partial(fill_disk, tmp_path))
    start([full, best], rounds=2, values=[0.9, 0.1])
    assert (best_round(best), best.is_kept) == (1, False)


def test_a_run_that_goes_on_keeps_the_best_model_of_before(tmp_path: Path) -> None:
    values = [0.1, 0.9, 0.4, 0.6]
    first = BestModel(tmp_path / "best")
    start([first], rounds=2, values=values, checkpoint=tmp_path / "checkpoint")
    saved_at = (tmp_path / "best" / "joined.pt").stat().st_mtime_ns
    second = BestModel(tmp_path / "best")
    start([second], rounds=4, values=values, checkpoint=tmp_path / "checkpoint")
    assert second.best == first.best
    assert second.is_kept
    assert (tmp_path / "best" / "joined.pt").stat().st_mtime_ns == saved_at


def test_a_best_model_of_before_is_not_said_to_be_in_a_new_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"values": [0.9, 0.4, 0.6], "checkpoint": tmp_path / "checkpoint"}
    start([BestModel(tmp_path / "best")], rounds=2, **options)
    caplog.clear()
    with caplog.at_level("INFO", logger="flwr"):
        start([BestModel(tmp_path / "best-2")], rounds=3, **options)
    at_start, at_end = told_of_best(caplog)
    assert at_start == at_end
    assert at_end.startswith(
        "The model of round 1 is the best (highest accuracy: 0.9), "
        f"but {tmp_path / 'best-2'} does not have it: "
    )


def test_files_that_a_kill_left_half_way_are_not_said_to_be_the_best_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"values": [0.9, 0.4, 0.6], "checkpoint": tmp_path / "checkpoint"}
    start([BestModel(tmp_path / "best")], rounds=2, **options)
    (tmp_path / "best" / "round.txt").unlink()
    best = BestModel(tmp_path / "best")
    start([best], rounds=3, **options)
    assert not best.is_kept
    assert "does not have it" in told_of_best(caplog)[-1]


def test_a_metric_that_no_round_has_is_named(caplog: pytest.LogCaptureFixture) -> None:
    strategy, _ = start([EarlyStopping(1, "highest acuracy")], rounds=3)
    assert len(strategy.progress.rounds) == 3
    (warning,) = warnings_in(caplog)
    assert "on: no round has 'acuracy'; this one has f1, round, loss, acc" in warning
    assert warning.endswith("EarlyStopping, best-metric in a run-config")
    (record,) = [each for each in caplog.records if each.message == warning]
    assert not record.exc_info, "one sentence, no traceback"


def losses(
    values: list[float],
    *,
    name: str = "loss",
    every: int = 1,
    training: Callable[[int], float] = lambda number: 10.0 / number,
) -> Progress:
    """Rounds that are evaluated now and then; the training loss falls, or is as said."""
    progress = Progress(len(values), Ledger(), evaluate_every=every)
    for number, loss in enumerate(values, start=1):
        trained = Traffic(loss_sum=training(number), loss_rows=1)
        progress.ledger.add(number, "train", trained, "0")
        found = {name: loss} if progress.due(number) else {}
        progress.end_round(number, found, {})
    return progress


def heard(callback: Callback, progress: Progress) -> tuple[RunSoFar, list[int]]:
    """What a callback makes of rounds, and after which of them it saves the model."""
    saved: list[int] = []
    so_far = Progress(progress.num_rounds, progress.ledger)
    so_far.evaluate_every = progress.evaluate_every
    run = RunSoFar(so_far, ArrayRecord(), lambda *_: saved.append(len(so_far.rounds)))
    callback.on_start(run)
    for number, done in enumerate(progress.rounds, start=1):
        so_far.resume(progress.rounds[:number])
        callback.on_round(done, run)
    return run, saved


def test_a_metric_of_evaluation_goes_before_training_s_of_the_same_name() -> None:
    progress = losses([2.0, 3.0, 4.0])
    best = BestModel("best", "lowest loss")
    _, saved = heard(best, progress)
    assert (best.best, saved) == (progress.rounds[0], [1])
    run, _ = heard(EarlyStopping(2, "lowest loss"), progress)
    assert run.stopped.startswith("the lowest loss was 2 in round 1, and 2 rounds")


def test_training_s_metric_does_not_stand_in_where_a_round_is_not_evaluated() -> None:
    progress = losses([0.0, 3.0, 0.0, 4.0, 0.0, 2.0], every=2)
    best = BestModel("best", "lowest loss")
    _, saved = heard(best, progress)
    assert best.best == progress.rounds[5]
    assert saved == [1, 2, 6], "the first before an evaluation gave a loss"
    run, _ = heard(EarlyStopping(2, "lowest loss"), losses([0.0, 3.0] * 3, every=2))
    assert run.stopped.startswith("the lowest loss was 3 in round 2, and 2 rounds")


def test_no_run_ends_by_training_s_loss_before_evaluation_can_give_one() -> None:
    progress = losses([0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 2.0], every=4, training=float)
    run, _ = heard(EarlyStopping(2, "lowest loss"), progress)
    assert not run.stopped
    # where it gives none, rounds without evaluation count
    progress = losses([0.0, 0.0, 0.0, 3.0], every=4, training=float, name="rmse")
    run, _ = heard(EarlyStopping(3, "lowest loss"), progress)
    assert run.stopped.startswith("the lowest loss was 1 in round 1, and 3 rounds")


def test_training_s_loss_counts_where_evaluation_gives_none() -> None:
    progress = Progress(2, Ledger())
    for number, loss in ((1, 5.0), (2, 4.0)):
        progress.ledger.add(number, "train", Traffic(loss_sum=loss, loss_rows=1), "0")
        progress.end_round(number, {"accuracy": 0.5}, {})
    best = BestModel("best", "lowest loss")
    assert heard(best, progress)[1] == [1, 2]


def test_the_loss_of_devices_evaluation_is_a_metric() -> None:
    stopping = EarlyStopping(9, "lowest eval_loss")
    strategy = SplitFedV2(
        seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, callbacks=[stopping]
    )
    data = batches(STEPS)
    app = SplitClientApp(
        DeviceHalf, lambda context: (data, data), ADAM, loss_fn=nn.CrossEntropyLoss()
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    result = strategy.start(LocalGrid(app, 2), arrays, 2)
    told = [found["eval_loss"] for found in result.evaluate_metrics_clientapp.values()]
    assert stopping.metric.of(strategy.progress.rounds) == told
    # the exchange's counts are none of the app's metrics
    assert strategy.progress.rows[0]["evaluation"].keys() == {"eval_loss", "eval_acc"}


def test_tensorboard_has_both_losses(tmp_path: Path) -> None:
    callback = TensorBoard(tmp_path)
    heard(callback, losses([2.0, 3.0]))
    callback.on_end(RunSoFar(Progress(1, Ledger()), ArrayRecord(), lambda *_: None))
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag, values in (("round/loss", [10.0, 5.0]), ("evaluation/loss", [2.0, 3.0])):
        assert [event.value for event in events.Scalars(tag)] == values


def test_tensorboard_keeps_the_rounds_of_a_run_with_fewer_steps(tmp_path: Path) -> None:
    """As where all devices failed in some of them."""
    progress = losses([2.0, 3.0, 4.0])
    first = TensorBoard(tmp_path)
    run, _ = heard(first, progress)
    first.on_end(run)
    again = TensorBoard(tmp_path)
    again.on_start(run)
    again.on_end(run)
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag in ("round/loss", "evaluation/loss"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    start([TensorBoard(tmp_path)], rounds=3, checkpoint=tmp_path / "checkpoint")
    resumed, _ = start(
        [TensorBoard(tmp_path)], rounds=4, checkpoint=tmp_path / "checkpoint"
    )
    events = EventAccumulator(str(tmp_path)).Reload()

    def scalars(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(tag)]

    assert scalars("round/loss") == [
        (done.round, pytest.approx(done.loss)) for done in resumed.progress.rounds
    ]
    assert [value for _, value in scalars("round/f1")] == pytest.approx(
        [-value for value in RISING_THEN_NOT[:4]]
    )
    assert [step for step, _ in scalars("step/loss")] == list(range(1, 4 * STEPS + 1))
    assert {value for _, value in scalars("step/uplink_bits_per_entry")} == {32.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping(0), "patience is 0, wanted 1 or more"),
        (
            lambda: EarlyStopping(1, "accuracy"),
            "'accuracy' is no metric, wanted such as 'highest accuracy'",
        ),
        (lambda: EarlyStopping(1, least_change=float("nan")), "least_change is nan"),
        (lambda: TensorBoard("x", every_steps=0), "every_steps is 0, wanted 1 or more"),
        (
            lambda: TargetAccuracy(90),
            "the target accuracy is 90, wanted above 0 and at most 1",
        ),
        (
            lambda: start([BestModel("x")], save_to="y/../x"),
            "the folder of a BestModel is 'x', into which goes the last model, by save",
        ),
        (
            lambda: start([BestModel("x"), BestModel("x", "lowest loss")]),
            "is 'x', into which goes the model of another BestModel, too",
        ),
        (lambda: start(TargetAccuracy(0.9)), "callbacks is one, wanted a list"),  # type: ignore[arg-type]
        (
            lambda: start([TargetAccuracy]),
            "callbacks has <class .*TargetAccuracy'>, wanted objects",
        ),  # type: ignore[list-item]
    ],
)
def test_what_is_wrong_is_named_before_training(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
