"""The command that compares strategies: runs them, and writes tables and pictures of accuracy against bytes."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flwr_splitfc.compare.display import Display
from flwr_splitfc.compare.flower_app import (
    FlowerApp,
    Settings,
    SettingsError,
    parse_setting,
    read_settings,
)
from flwr_splitfc.compare.plan import expand, parse_budget
from flwr_splitfc.compare.report.output import write
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.runs import Outcome, Run, RunFolder, package_digest
from flwr_splitfc.compare.workers.federation import Federation
from flwr_splitfc.compare.workers.pool import Pool

_LOCK_S = 20.0
_USUAL_JOBS = 2  # device and server of a run wait for each other

DESCRIPTION = """\
Run strategies on one app, one after another in one simulation, and write a table and figures of accuracy
against bytes. What is finished is not run again: the same command, given again, goes on where it stopped.
"""
EPILOG = """\
Settings: the app's defaults give way to --config, that to the strategy's file, that to --budgets, --seeds and --set.
Methods without a cut (fedavg) and codecs of fixed precision (float32) run once for all budgets.

example:
  flwr-splitfc compare strategies/splitfc.toml strategies/split-learning.toml --app examples/mnist --seeds 0,1,2
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Make ``compare`` known."""
    parser = commands.add_parser(
        "compare",
        help="run strategies on one app; tables and figures of accuracy against bytes",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=main)
    option = parser.add_argument
    option(
        "strategies",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="run-configs (TOML), one per strategy",
    )
    option("--app", type=Path, required=True, help="the Flower app, as for `flwr run`")
    option("--all", action="store_true", help="every TOML file on the shelf")
    option(
        "--shelf",
        type=Path,
        default=Path("strategies"),
        metavar="DIR",
        help="for --all; default: ./strategies",
    )
    option(
        "--seeds",
        type=_parsed(_seeds),
        metavar="0,1,2",
        help="a run for each; default: the app's seed",
    )
    option(
        "--budgets",
        type=_parsed(_budgets),
        metavar="0.1,0.2/0.4",
        help="bits per entry up, or up/down; down is twice up",
    )
    option("--dataset", help="the app's setting `dataset`")
    option("--data-dir", type=Path, metavar="DIR", help="the app's setting `data-dir`")
    option(
        "--config",
        type=Path,
        metavar="FILE",
        help="a run-config (TOML) under all strategies",
    )
    option(
        "--set",
        type=_parsed(parse_setting),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of all runs",
    )
    option(
        "--out",
        type=Path,
        default=Path("comparison"),
        metavar="DIR",
        help="default: ./comparison",
    )
    cores = min(_USUAL_JOBS, os.cpu_count() or 1)
    option(
        "--jobs",
        type=_parsed(_jobs),
        default=cores,
        metavar="N",
        help="simulations side by side; default: 2",
    )
    option(
        "--link",
        type=_parsed(RadioLink.parse),
        default=RadioLink(),
        metavar="up=10,down=50,rtt=40",
        help="simulated: Mbit/s and ms, each N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA over devices",
    )
    option(
        "--target",
        type=_parsed(_percent),
        metavar="90",
        help="accuracy in percent; default: what all runs reached",
    )
    option(
        "--federation-config",
        default="",
        metavar="TEXT",
        help="as for `flwr run`; default: the app's num-devices",
    )
    option(
        "--no-checkpoints",
        action="store_true",
        help="start interrupted runs anew instead of in their middle",
    )
    option(
        "--list",
        action="store_true",
        help="show the runs and what is done, run nothing",
    )


def main(options: argparse.Namespace) -> int:
    """Do what the command line asks; the exit status."""
    for module, extra in (("matplotlib", "compare"), ("ray", "simulation")):
        if find_spec(module) is None:
            return _complain(
                f"{module} is missing: pip install 'flwr-splitfc[{extra}]'"
            )
    try:
        app = FlowerApp.load(options.app)
        runs = _runs(app, options)
        federation = Federation.of(options.federation_config, options.jobs)
        for run in runs:
            federation.num_supernodes(run.config)
    except ValueError as error:
        return _complain(str(error))
    folders = {run.id: RunFolder(options.out / "runs" / run.id) for run in runs}
    if options.list:
        return _list(runs, folders)
    with _lock(options.out) as lock:
        if lock is None:
            return _complain(f"another comparison is at work in {options.out}")
        pool = Pool(
            app,
            federation,
            jobs=options.jobs,
            lock=lock,
            checkpoints=not options.no_checkpoints,
        )
        try:
            _make(pool, runs, folders, options.jobs)
        except KeyboardInterrupt:
            print(
                f"Stopped. The same command goes on with what is left; {options.out} keeps what is done."
            )
            return 130
        outcomes = [(run, folders[run.id].outcome()) for run in runs]
        table = write(
            options.out, app.folder.name, outcomes, options.link, options.target
        )
        print(
            f"\n{table}\nWrote {options.out / 'index.html'}, table.md, results.csv, results.json and the figures"
        )
    return 0 if all(outcome.settled for _, outcome in outcomes) else 1


def _make(
    pool: Pool, runs: Sequence[Run], folders: dict[str, RunFolder], jobs: int
) -> None:
    settled = {
        run.id: outcome
        for run in runs
        if (outcome := folders[run.id].outcome()).settled
    }
    took_s = {run_id: _seconds(outcome) for run_id, outcome in settled.items()}
    if other := sum(
        _sources(outcome) not in (None, package_digest())
        for outcome in settled.values()
    ):
        print(
            f"note: {other} of {len(settled)} finished runs were made by other code of this version; without their"
        )
        print("folders in runs/ they would be made anew")
    missing = [run for run in runs if run.id not in settled]
    events = pool.make(missing, lambda run: folders[run.id])
    signal.signal(signal.SIGTERM, _interrupt)
    with Display(len(runs), took_s, jobs=jobs) as display, closing(events):
        for event in events:
            display.show(event)


def _runs(app: FlowerApp, options: argparse.Namespace) -> list[Run]:
    files = list(options.strategies)
    if options.all:
        files += sorted(
            path for path in options.shelf.glob("*.toml") if path not in files
        )
    if not files:
        raise SettingsError(
            f"no strategy to run: name run-config files, or --all for those in {options.shelf}"
        )
    over: Settings = {
        key: value for setting in options.set for key, value in setting.items()
    }
    if options.dataset is not None:
        over["dataset"] = options.dataset
    if options.data_dir is not None:
        over["data-dir"] = str(options.data_dir.resolve())
    if own := {"results-dir", "checkpoint-dir"} & over.keys():
        raise SettingsError(
            f"--set {own.pop()}: each run gets a folder of its own in --out"
        )
    base = (
        [(str(options.config), read_settings(options.config))] if options.config else []
    )
    return expand(
        app, files, base=base, over=over, seeds=options.seeds, budgets=options.budgets
    )


def _list(runs: Sequence[Run], folders: dict[str, RunFolder]) -> int:
    for run in runs:
        outcome = folders[run.id].outcome()
        print(
            f"{outcome.state:<10} {run.id}{f'  ({outcome.summary})' if outcome.reason else ''}"
        )
    return 0


def _seconds(outcome: Outcome) -> float:
    return (
        sum(row["seconds"] for row in outcome.results["rounds"])
        if outcome.results
        else 0.0
    )


def _sources(outcome: Outcome) -> str | None:
    sources: str | None = (outcome.results or {}).get("run", {}).get("sources")
    return sources


@contextmanager
def _lock(folder: Path) -> Iterator[int | None]:
    """Hold the folder, as the workers do: a killed comparison's may need a moment to end. None if it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        yield lock if _locked(lock) else None
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    import fcntl  # not on Windows, where `rerun` shall work all the same

    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _complain(what: str) -> int:
    print(f"flwr-splitfc: {what}", file=sys.stderr)
    return 2


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` for argparse, which shows the message of its own error alone."""

    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _budgets(text: str) -> list[tuple[float, float]]:
    return [parse_budget(part) for part in text.split(",")]


def _percent(text: str) -> float:
    if not 1 <= (percent := float(text)) <= 100:
        raise SettingsError(f"an accuracy in percent is wanted, 1 to 100, got {text!r}")
    return percent / 100


def _jobs(text: str) -> int:
    if (jobs := int(text)) < 1:
        raise SettingsError(f"wanted 1 or more, got {jobs}")
    return jobs
