"""The command that compares strategies: it makes runs, then writes tables and figures.

`options` is its command line, `run_plan` says which runs it has, `workers` makes them,
and `report` writes what they came to.
"""

import argparse
import signal
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_splitfc.compare.display import Display
from flwr_splitfc.compare.flower_app import FlowerApp, Layer
from flwr_splitfc.compare.lock import held
from flwr_splitfc.compare.methods import Method, method_of, methods_on_shelf
from flwr_splitfc.compare.options import DESCRIPTION, add_options, epilog
from flwr_splitfc.compare.report.output import write
from flwr_splitfc.compare.report.points import rounds_of
from flwr_splitfc.compare.run_plan import expand
from flwr_splitfc.compare.runs import Outcome, Outcomes, Run, RunFolder, package_digest
from flwr_splitfc.compare.workers.federation import Federation
from flwr_splitfc.compare.workers.pool import Pool
from flwr_splitfc.extras import check_installed
from flwr_splitfc.run.complaint import complain
from flwr_splitfc.run.results import results_text, write_whole
from flwr_splitfc.settings import Scalar

_USUAL_SHELF = Path("strategies")
_REFUSED = 2  # the exit status, as for arguments that are none
_INTERRUPTED = 130  # the exit status after Ctrl-C


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``compare`` to the subcommands."""
    parser = commands.add_parser(
        "compare",
        help="run strategies on one app; tables and figures of accuracy against bytes",
        description=DESCRIPTION,
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=main)
    add_options(parser)


@dataclass(frozen=True)
class Comparison:
    """The runs of a command line, and the folder in which they are kept."""

    runs: Sequence[Run]
    out: Path

    def folder_of(self, run: Run) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.out / "runs" / run.id)

    def outcomes(self) -> Outcomes:
        """Read what the runs have come to by now."""
        return [(run, self.folder_of(run).outcome()) for run in self.runs]


def main(options: argparse.Namespace) -> int:
    """Do what the command line asks, and return the exit status."""
    with ExitStack() as held_while_runs_are_made:
        try:
            check_installed("compare", "matplotlib")
            check_installed("simulation", "ray")
            if options.leakage:
                check_installed("leakage", "sklearn", "torchmetrics")
            app = FlowerApp.load(options.app)
            comparison = Comparison(_runs(app, options), options.out)
            federation = Federation.of(options.federation_config, options.jobs)
            for run in comparison.runs:
                federation.num_supernodes(run.config)  # raises where it is unknown
            if options.list:
                return _list(comparison)
            lock = held_while_runs_are_made.enter_context(held(options.out))
        except ValueError as error:
            complain(str(error))
            return _REFUSED
        pool = Pool(
            app,
            federation,
            jobs=options.jobs,
            lock=lock,
            checkpoints=not options.no_checkpoints,
        )
        attacked = True
        try:
            _make_missing(pool, comparison, options.jobs)
            if options.leakage:
                attacked = _attack_missing(app, comparison, options)
        except KeyboardInterrupt:
            print("Stopped. The same command goes on with what is left; ", end="")
            print(f"{options.out} keeps what is done.")
            return _INTERRUPTED
        settled = _report(app, comparison, options)
        return 0 if settled and attacked else 1


def _runs(app: FlowerApp, options: argparse.Namespace) -> list[Run]:
    return expand(
        app,
        _methods(options),
        base=[Layer.from_file(options.config)] if options.config else [],
        over=_settings_of_all(options),
        seeds=options.seeds,
        budgets=options.budgets,
    )


def _methods(options: argparse.Namespace) -> list[Method]:
    methods = [method_of(text) for text in options.methods]
    shelf = options.shelf or _USUAL_SHELF
    if options.all:
        _check_shelf(options.shelf)
        methods += methods_on_shelf(shelf, methods)
    if not methods:
        raise ValueError(
            "no strategy to run: name run-config files or codecs, "
            f"or --all for those in {shelf}"
        )
    return methods


def _check_shelf(given: Path | None) -> None:
    """Refuse a shelf that is not there; say so where that is the usual one."""
    if given is not None and not given.is_dir():
        raise ValueError(f"--shelf {given} is no folder")
    if given is None and not _USUAL_SHELF.is_dir():
        complain(f"there is no folder ./{_USUAL_SHELF}: --all is the codecs alone")


def _settings_of_all(options: argparse.Namespace) -> dict[str, Scalar]:
    settings: dict[str, Scalar] = {}
    for setting in options.set:
        settings |= setting
    if options.dataset is not None:
        settings["dataset"] = options.dataset
    if options.data_dir is not None:
        settings["data-dir"] = str(options.data_dir.resolve())
    for key in ("results-dir", "checkpoint-dir"):
        if key in settings:
            raise ValueError(f"--set {key}: each run gets a folder of its own in --out")
    return settings


def _list(comparison: Comparison) -> int:
    for run, outcome in comparison.outcomes():
        reason = f"  ({outcome.summary})" if outcome.reason else ""
        print(f"{outcome.state:<10} {run.id}{reason}")
    return 0


def _make_missing(pool: Pool, comparison: Comparison, jobs: int) -> None:
    """Make the runs that are not settled, and show what happens."""
    missing = []
    settled: dict[str, Outcome] = {}
    for run, outcome in comparison.outcomes():
        if outcome.settled:
            settled[run.id] = outcome
        else:
            missing.append(run)
            if outcome.state == "to do" and outcome.reason:
                complain(f"{run.label} is made anew: {outcome.summary}")
    _note_other_sources(list(settled.values()))
    took_s = {run_id: _seconds(outcome) for run_id, outcome in settled.items()}
    events = pool.make(missing, comparison.folder_of)
    signal.signal(signal.SIGTERM, _interrupt)
    total = len(comparison.runs)
    with Display(total, took_s, jobs=jobs) as display, closing(events):
        for event in events:
            display.show(event)


def _attack_missing(
    app: FlowerApp, comparison: Comparison, options: argparse.Namespace
) -> bool:
    """Attack the runs that left a device half; return whether none of that failed.

    What was attacked with as many steps before is left alone.
    """
    all_attacked = True
    for run, outcome in comparison.outcomes():
        folder = comparison.folder_of(run)
        # a failed run leaves its last model, too
        if outcome.results is None or not _was_cut(outcome.results):
            continue
        if not folder.device_half.exists():
            complain(
                f"{run.label} cannot be attacked: it could not save its model, or its "
                f"app saves none. Without {folder.path} it is made anew"
            )
            continue
        before = outcome.results.get("leakage", {})
        # results that do not say how many releases they saw are of weaker attacks
        if before.get("steps") == options.leakage and "releases" in before:
            continue
        folder.leakage.unlink(missing_ok=True)
        try:
            found = options.attack(folder.path, app.folder, options.leakage)
        except Exception as error:
            # of the app's own code, too; the other runs are attacked yet
            complain(f"{run.label} cannot be attacked: {error}")
            all_attacked = False
        else:
            write_whole(folder.leakage, results_text(found))
            print(f"{run.label} is attacked", flush=True)
    return all_attacked


def _was_cut(results: dict[str, Any]) -> bool:
    """Return whether features went up, which they do not where devices train alone."""
    return any(counts["entries"] for counts in results["traffic"].values())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _note_other_sources(settled: Sequence[Outcome]) -> None:
    """Say how many runs other code of the same version has made."""
    digests = [_sources(outcome) for outcome in settled]
    others = [digest for digest in digests if digest not in (None, package_digest())]
    if others:
        print(
            f"note: {len(others)} of {len(settled)} finished runs were made by other "
            "code of this version; without their\n"
            "folders in runs/ they would be made anew"
        )


def _sources(outcome: Outcome) -> str | None:
    about = (outcome.results or {}).get("run", {})
    sources: str | None = about.get("sources")
    return sources


def _seconds(outcome: Outcome) -> float:
    """Return how long a run took that was made before; 0 without results."""
    if outcome.results is None:
        return 0.0
    return sum(done.seconds for done in rounds_of(outcome.results))


def _report(
    app: FlowerApp, comparison: Comparison, options: argparse.Namespace
) -> bool:
    """Write and show what was found; return whether nothing is left to run."""
    outcomes = comparison.outcomes()
    name = app.folder.name
    tables = write(options.out, name, outcomes, options.link, options.target)
    page = options.out / "index.html"
    print(f"\n{tables}")
    print(f"Wrote {page}, table.md, results.csv, results.json and the figures")
    return all(outcome.settled for _, outcome in outcomes)
