"""What a comparison shows while it runs."""

from io import StringIO

from rich.console import Console

from flwr_splitfc.compare.display import Display
from flwr_splitfc.compare.runs import Outcome, Run
from flwr_splitfc.compare.workers.pool import RoundFinished, RunEnded, RunStarted
from flwr_splitfc.run import Round
from tests.compare.conftest import row

FIRST, SECOND, THIRD = (
    Run("splitfc", {"seed": seed}, (0.1, 0.2), "") for seed in range(3)
)


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
        finished = Round.from_json(row(number, 0.5, 1.5, seconds=2.0))
        display.show(RoundFinished(FIRST, finished, 10))
    shown = screen(display)
    # 8 rounds of 2 s of the first, and one run as long as the mean of 20 s and 20 s
    assert "1 of 4 runs, about 0:00:18 to go" in shown
    assert "splitfc 0.1/0.2 seed 0" in shown
    assert "2/10" in shown
    assert "50.0%" in shown
    assert "3.00" in shown
    assert "starting" in shown


def test_lines_tell_how_runs_ended() -> None:
    display = Display(3, {}, console=Console(file=StringIO(), width=200))
    ends = [
        Outcome("finished"),
        Outcome("failed", "OSError: no space"),
        Outcome("impossible", "too small"),
    ]
    for run, outcome in zip((FIRST, SECOND, THIRD), ends, strict=True):
        display.show(RunStarted(run))
        display.show(RoundFinished(run, Round.from_json(row(1, 0.25, 1.0)), 1))
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
    assert "[2/3] splitfc 0.1/0.2 seed 1: FAILED: OSError: no space" in lines
    assert "[3/3] splitfc 0.1/0.2 seed 2: too small" in lines
