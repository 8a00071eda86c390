"""What a comparison shows while it runs."""

from io import StringIO

from rich.console import Console

from flwr_splitfc.compare.display import Display
from flwr_splitfc.compare.runs import Outcome, Run
from flwr_splitfc.compare.workers.messages import RoundReport
from flwr_splitfc.compare.workers.pool import RoundFinished, RunEnded, RunStarted
from flwr_splitfc.run import Round
from tests.compare.conftest import row

FIRST, SECOND, THIRD = (
    Run("splitfc", {"seed": seed}, (0.1, 0.2), "") for seed in range(3)
)


def finished(
    run: Run, number: int, of: int, *, accuracy: float = 0.5, megabytes: float = 1.5
) -> RoundFinished:
    """A round of 2 s, after others like it."""
    done = Round.from_json(row(number, accuracy, megabytes, seconds=2.0))
    report = RoundReport(done, of, number * done.moved_bytes, number * done.seconds)
    return RoundFinished(run, report)


def screen(display: Display) -> str:
    """What the terminal shows below the lines."""
    display.console.print(display.table())
    output = display.console.file
    assert isinstance(output, StringIO)
    return output.getvalue()


def test_runs_to_come_take_as_long_as_those_that_are_known() -> None:
    display = Display(
        4, {"one before": 20.0}, jobs=2, console=Console(file=StringIO(), width=120)
    )
    display.show(RunStarted(FIRST))
    display.show(RunStarted(SECOND))
    assert "about 0:00:10 to go" in screen(display)  # one run of 20 s in two workers
    for number in (1, 2):
        display.show(finished(FIRST, number, 10))
    shown = screen(display)
    # 8 rounds of 2 s of the first, and one run as long as the mean of 20 s and 20 s
    assert "1 of 4 runs, about 0:00:18 to go" in shown
    assert "splitfc 0.1/0.2 seed 0" in shown
    assert "2/10" in shown
    assert "50.0%" in shown
    assert "3.00" in shown
    assert "starting" in shown


def test_a_run_that_goes_on_counts_what_came_before() -> None:
    display = Display(3, {}, console=Console(file=StringIO(), width=120))
    display.show(RunStarted(FIRST))
    display.show(finished(FIRST, 9, 10))
    shown = screen(display)
    assert "round 9/10, accuracy 50.0%, 13.50 MB" in shown
    # a round of 2 s, and two runs of 10 rounds
    assert "0 of 3 runs, about 0:00:42 to go" in shown


def test_lines_tell_how_runs_ended() -> None:
    display = Display(3, {}, console=Console(file=StringIO(), width=200))
    ends = [
        Outcome("finished"),
        Outcome("failed", "OSError: no space"),
        Outcome("impossible", "too small"),
    ]
    for run, outcome in zip((FIRST, SECOND, THIRD), ends, strict=True):
        display.show(RunStarted(run))
        display.show(finished(run, 1, 1, accuracy=0.25, megabytes=1.0))
        display.show(RunEnded(run, outcome))
    lines = [
        line
        for line in screen(display).splitlines()
        if "seed" in line and "started" not in line
    ]
    assert (
        "[1/3] splitfc 0.1/0.2 seed 0: finished in 0:00:00, round 1/1, "
        "accuracy 25.0%, 1.00 MB" in lines
    )
    log = f"(all output: runs/{SECOND.id}/log.txt)"
    assert f"[2/3] splitfc 0.1/0.2 seed 1: FAILED: OSError: no space {log}" in lines
    assert "[3/3] splitfc 0.1/0.2 seed 2: too small" in lines
