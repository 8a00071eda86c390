"""A run of a comparison: its settings, its name, and what it has left on disk."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import flwr.serverapp.strategy

import flwr_splitfc
from flwr_splitfc.codec import codec_names, codec_settings, cut_codec
from flwr_splitfc.report.app import FlowerApp, Settings, SettingsError, digest_of, read_settings
from flwr_splitfc.report.progress import write_whole

Budget = tuple[float, float]
State = Literal["to do", "finished", "impossible", "failed"]

_BITS = ("uplink-bits", "downlink-bits")
_FLOWERS = {name.lower() for name in flwr.serverapp.strategy.__all__}
_ANY_SHAPE = (256, 1152)
_HASH_DIGITS = 10
_REASON_LETTERS = 200
_NEEDS = re.compile(r"(up|down)link_bits=\S+ is too small[^;]*; the smallest that works is (\d+\.?\d*)")


@dataclass(frozen=True)
class Run:
    """One training run.

    Parameters
    ----------
    method : str
        What is compared: the name of the strategy's file.
    config : dict
        The complete run-config, but for the folders that `complete_config` adds.
    budget : (float, float), optional
        Bits per entry up and down; None where the method has no use for them.
    origin : str
        The app's files and the package's version, which are part of the run's identity.
    """

    method: str
    config: Settings
    budget: Budget | None
    origin: str

    @cached_property
    def id(self) -> str:
        """Readable, and another for any other setting, app or version."""
        whole = json.dumps([self.config, self.origin], sort_keys=True)
        budget = "" if self.budget is None else "-{:g}-{:g}".format(*self.budget)
        return f"{self.method}{budget}-seed{self.seed}-{hashlib.sha256(whole.encode()).hexdigest()[:_HASH_DIGITS]}"

    @property
    def seed(self) -> int:
        """The run's seed; 0 for an app without one."""
        return int(self.config.get("seed", 0))

    @property
    def label(self) -> str:
        """For people: method, budget and seed."""
        return f"{self.method} {budget_text(self.budget)} seed {self.seed}".replace("  ", " ")

    @property
    def about(self) -> dict[str, Any]:
        """What of the run stands in its records."""
        identity = {"id": self.id, "method": self.method, "budget": self.budget, "seed": self.seed}
        return {**identity, "origin": self.origin, "sources": package_digest()}


@dataclass(frozen=True)
class RunFolder:
    """Where a run leaves its log, its results or its reason to fail: ``runs/<run id>`` of a comparison."""

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
    def checkpoint(self) -> Path:
        """The app's ``checkpoint-dir``, while the run is not finished."""
        return self.path / "checkpoint"

    def complete_config(self, run: Run, *, checkpoints: bool) -> Settings:
        """The run-config that the app gets: the run's, with the folders that are this run's own."""
        folders: Settings = {"results-dir": str(self.output.resolve())}
        if "checkpoint-dir" in run.config:
            folders["checkpoint-dir"] = str(self.checkpoint.resolve()) if checkpoints else ""
        return {**run.config, **folders}

    def finish(self, results: dict[str, Any]) -> None:
        """Write the results of a run that went to its end."""
        write_whole(self.path / "results.json", json.dumps(results, indent=1) + "\n")

    def end(self, outcome: "Outcome") -> None:
        """Write why a run that is over has no results; only after a failure its checkpoint is still of use."""
        if outcome.state != "finished":
            failure = {"state": outcome.state, "reason": outcome.reason}
            write_whole(self.path / "failed.json", json.dumps(failure, indent=1) + "\n")
        if outcome.state != "failed" or "CheckpointError" in outcome.reason:
            shutil.rmtree(self.checkpoint, ignore_errors=True)

    def start(self) -> None:
        """Make the folder, and forget an earlier failure."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "failed.json").unlink(missing_ok=True)

    def outcome(self) -> "Outcome":
        """What there is by now."""
        if (results := _json(self.path / "results.json")) is not None:
            return Outcome("finished", results=results)
        if (failure := _json(self.path / "failed.json")) is not None:
            return Outcome(failure["state"], reason=failure["reason"])
        return Outcome("to do")


@dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    "impossible" is a budget that the codec cannot meet: the same at every try, and no failure.
    """

    state: State
    reason: str = ""
    results: dict[str, Any] | None = None

    @property
    def needs(self) -> str:
        """The smallest budget that works, where the run's is too small."""
        needs = dict(_NEEDS.findall(self.reason))
        return "needs at least " + ", ".join(f"{bits} {way}" for way, bits in needs.items()) if needs else self.reason

    @property
    def summary(self) -> str:
        """The reason in a line."""
        text = " ".join(self.needs.split())
        return text if len(text) <= _REASON_LETTERS else f"{text[:_REASON_LETTERS]} ..."

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to run."""
        return self.state in ("finished", "impossible")


def expand(
    app: FlowerApp,
    strategies: Sequence[Path],
    *,
    base: Iterable[tuple[str, Settings]] = (),
    over: Settings | None = None,
    seeds: Sequence[int] | None = None,
    budgets: Sequence[Budget] | None = None,
) -> list[Run]:
    """The runs of a comparison: each strategy's, for each budget, for each seed.

    Settings come from the app, then `base`, the strategy's file, and last `budgets`, `seeds` and `over`.
    Methods without a cut, and codecs of fixed precision, run once for all budgets.
    """
    origin = f"flwr-splitfc {flwr_splitfc.__version__}, app {app.fingerprint()}"
    runs: dict[str, Run] = {}
    for path in strategies:
        file = (str(path), read_settings(path))
        least = app.settings(*base, file, ("--set", over or {}))
        for budget in budgets if budgets and budgeted(least) else [None]:
            for seed in [None] if seeds is None else seeds:
                chosen: Settings = {} if budget is None else dict(zip(_BITS, budget, strict=True))
                seeded: Settings = {} if seed is None else {"seed": seed}
                config = app.settings(*base, file, ("--budgets", chosen), ("--seeds", seeded), ("--set", over or {}))
                run = Run(path.stem, config, _budget_of(config), origin)
                runs[run.id] = run
    _check_names(strategies)
    return list(runs.values())


@cache
def package_digest() -> str:
    """A digest of this package's files, but for those that only report."""
    folder = Path(flwr_splitfc.__file__).parent
    names = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return digest_of(folder, (name for name in names if name.parts[0] != "report"))


def budgeted(config: Settings) -> bool:
    """Whether the run has a cut whose codec keeps to a budget.

    >>> budgeted({"strategy": "splitfc", "uplink-bits": 0.2, "downlink-bits": 0.4})
    True
    >>> budgeted({"strategy": "splitfed-v2", "codec": "float32", "uplink-bits": 0.2, "downlink-bits": 0.4})
    False
    """
    if not all(key in config for key in _BITS):
        return False
    strategy = str(config.get("strategy", ""))
    if strategy.replace("-", "") in _FLOWERS:
        return False
    codec = strategy if strategy in codec_names() else config.get("codec")
    if codec not in codec_names():
        return True
    names = {key.replace("-", "_"): value for key, value in config.items()}
    known = {key: names[key] for key in codec_settings(str(codec)) if key in names}
    return any(cut_codec(str(codec), **known).smallest_bits(*_ANY_SHAPE))


def budget_text(budget: Budget | None) -> str:
    """A budget for people; nothing for none."""
    return "" if budget is None else "{:g}/{:g}".format(*budget)


def parse_budget(text: str) -> Budget:
    """Uplink and downlink bits; the downlink has twice the uplink's unless it is given.

    >>> parse_budget("0.1"), parse_budget("0.1/0.4")
    ((0.1, 0.2), (0.1, 0.4))
    """
    try:
        bits = [float(part) for part in text.split("/")]
        up, down = bits if len(bits) == 2 else (bits[0], 2 * bits[0])
    except ValueError as error:
        raise SettingsError(f"a budget is UP or UP/DOWN in bits per entry, got {text!r}") from error
    if len(bits) > 2 or not (up > 0 and down > 0):
        raise SettingsError(f"a budget is UP or UP/DOWN in bits per entry, above 0, got {text!r}")
    return up, down


def _budget_of(config: Settings) -> Budget | None:
    return (float(config[_BITS[0]]), float(config[_BITS[1]])) if budgeted(config) else None


def _check_names(strategies: Sequence[Path]) -> None:
    by_name: dict[str, Path] = {}
    for path in strategies:
        if by_name.setdefault(path.stem, path).resolve() != path.resolve():
            raise SettingsError(f"{by_name[path.stem]} and {path} have one name, which is the method's in the table")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return dict(content)
