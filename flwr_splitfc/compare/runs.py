"""A run of a comparison: its settings, its name, and what it has left on disk."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import flwr_splitfc
from flwr_splitfc.compare.flower_app import digest_of_files
from flwr_splitfc.run.results import (
    ResultsError,
    read_object,
    read_results,
    results_text,
    write_whole,
)
from flwr_splitfc.settings import RunConfig, Scalar

Budget: TypeAlias = tuple[float, float]
"""Bits per entry, up and down."""

State: TypeAlias = Literal["to do", "finished", "impossible", "failed"]

_HASH_DIGITS = 10
_REASON_LETTERS = 200
# The message of a codec's BudgetError, which has a line for each way.
_NEEDS = re.compile(
    r"(up|down)link_bits=\S+ is too small[^;]*; the smallest that works is (\d+\.?\d*)"
)
_ONLY_REPORTS = ("compare", "command.py")


@dataclass(frozen=True)
class Run:
    """One training run.

    Parameters
    ----------
    method : str
        What is compared: the name of a strategy's file, or of a codec.
    config : mapping
        The complete run-config, without the folders that `RunFolder.complete_config`
        adds.
    budget : (float, float), optional
        Bits per entry up and down; None where the method has no use for them.
    origin : str
        The app's files and the package's version, which are part of the run's identity.
    """

    method: str
    config: RunConfig
    budget: Budget | None
    origin: str

    @cached_property
    def id(self) -> str:
        """A readable name, which is another for any other setting, app or version."""
        whole = json.dumps([self.config, self.origin], sort_keys=True)
        digest = hashlib.sha256(whole.encode()).hexdigest()[:_HASH_DIGITS]
        parts = [self.method]
        if self.budget is not None:
            parts += [f"{bits:g}" for bits in self.budget]
        return "-".join([*parts, f"seed{self.seed}", digest])

    @property
    def seed(self) -> int:
        """The run's seed; 0 for an app without one."""
        return int(self.config.get("seed", 0))

    @property
    def label(self) -> str:
        """The name for people: method, budget and seed."""
        return f"{method_label(self.method, self.budget)} seed {self.seed}"

    @property
    def about(self) -> dict[str, Any]:
        """The part of the run that stands in its records."""
        return {
            "id": self.id,
            "method": self.method,
            "budget": self.budget,
            "seed": self.seed,
            "origin": self.origin,
            "sources": package_digest(),
        }


@dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    Parameters
    ----------
    state : str
        "impossible" is a budget that the codec cannot meet: the same at every try, and
        no failure.
    reason : str
        Why the run has no results; of one to do, which file of it is damaged, if any.
    results : dict, optional
        The ``results.json`` of a run that is finished, with what an attack on its
        features came to as ``leakage``, if there was one.
    """

    state: State
    reason: str = ""
    results: dict[str, Any] | None = None

    @property
    def needs(self) -> str:
        """The smallest budget that works if the run's is too small, else the reason."""
        smallest = dict(_NEEDS.findall(self.reason))
        if not smallest:
            return self.reason
        budgets = ", ".join(f"{bits} {way}" for way, bits in smallest.items())
        return f"needs at least {budgets}"

    @property
    def summary(self) -> str:
        """The reason in one line."""
        text = " ".join(self.needs.split())
        if len(text) <= _REASON_LETTERS:
            return text
        return f"{text[:_REASON_LETTERS]} ..."

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to run."""
        return self.state in ("finished", "impossible")


Outcomes: TypeAlias = Sequence[tuple[Run, Outcome]]
"""The runs of a comparison, and what each has come to."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, ``runs/<run id>``: its log, and its results or its failure.

    Parameters
    ----------
    path : Path
    """

    path: Path

    @property
    def log(self) -> Path:
        """All output of the run's processes."""
        return self.path / "log.txt"

    @property
    def output(self) -> Path:
        """The app's own ``results-dir``."""
        return self.path / "output"

    @property
    def device_half(self) -> Path:
        """What a split strategy leaves in `output`."""
        return self.output / "device.pt"

    @property
    def leakage(self) -> Path:
        """The scores of an attack on the run's features, if it was attacked."""
        return self.path / "leakage.json"

    @property
    def checkpoint(self) -> Path:
        """The app's ``checkpoint-dir``, while the run is not finished."""
        return self.path / "checkpoint"

    @property
    def _results(self) -> Path:
        return self.path / "results.json"

    @property
    def _failure(self) -> Path:
        return self.path / "failed.json"

    def complete_config(self, run: Run, *, checkpoints: bool) -> dict[str, Scalar]:
        """Return the run-config that the app gets, with this run's own folders."""
        config = {**run.config, "results-dir": str(self.output.resolve())}
        if "checkpoint-dir" in config:
            checkpoint = str(self.checkpoint.resolve())
            config["checkpoint-dir"] = checkpoint if checkpoints else ""
        return config

    def start(self) -> None:
        """Make the folder, and forget an earlier failure."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._failure.unlink(missing_ok=True)

    def finish(self, results: dict[str, Any]) -> None:
        """Write the results of a run that went to its end."""
        write_whole(self._results, results_text(results))

    def end(self, outcome: Outcome) -> None:
        """Write why a run that is over has no results, and remove its checkpoint.

        After a failure the checkpoint is still of use, unless it is what failed.
        """
        if outcome.state != "finished":
            failure = {"state": outcome.state, "reason": outcome.reason}
            write_whole(self._failure, json.dumps(failure, indent=1) + "\n")
        if outcome.state != "failed" or "CheckpointError" in outcome.reason:
            shutil.rmtree(self.checkpoint, ignore_errors=True)

    def outcome(self) -> Outcome:
        """Read what the run has come to by now.

        What cannot be read counts for nothing, and is the reason of a run to do.
        """
        damaged = ""
        readers = {self._results: self._finished, self._failure: self._failed}
        for path, read in readers.items():
            try:
                if path.exists():
                    return read()
            except ResultsError as error:
                damaged = str(error)
        return Outcome("to do", damaged)

    def _finished(self) -> Outcome:
        results = read_results(self._results, "rounds", "traffic")
        # damaged scores are those of no attack
        with suppress(ResultsError):
            results["leakage"] = read_object(self.leakage, "scores of an attack")
        return Outcome("finished", results=results)

    def _failed(self) -> Outcome:
        name = "failure of a run"
        failure = read_object(self._failure, name)
        state, reason = failure.get("state"), failure.get("reason")
        if state not in ("impossible", "failed") or not isinstance(reason, str):
            raise ResultsError(f"{self._failure} is no {name}: {failure}")
        return Outcome(state, reason)


@cache
def package_digest() -> str:
    """Return a digest of the package's files that can change what a run comes to.

    The comparison itself is not among them: it starts runs and reports on them.
    """
    return sources_digest(Path(flwr_splitfc.__file__).parent)


def sources_digest(package: Path) -> str:
    """Return the digest of a package's folder; see `package_digest`."""
    names = [path.relative_to(package) for path in package.rglob("*.py")]
    return digest_of_files(
        package, [name for name in names if name.parts[0] not in _ONLY_REPORTS]
    )


def budget_text(budget: Budget | None) -> str:
    """Write a budget for people; nothing for none.

    >>> budget_text((0.1, 0.2))
    '0.1/0.2'
    """
    return "" if budget is None else "{:g}/{:g}".format(*budget)


def method_label(method: str, budget: Budget | None) -> str:
    """Write a method and its budget, if it has one."""
    return f"{method} {budget_text(budget)}".strip()
