"""The command that attacks a run's features, and reports what they give away."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from flwr_splitfc.apps.run_codecs import settings_of
from flwr_splitfc.codec import CutCodec, codec_names, cut_codec
from flwr_splitfc.extras import check_installed
from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.attacker import Attacker, Auxiliary
from flwr_splitfc.leakage.label_inference import LabelInference, LabelValues
from flwr_splitfc.leakage.leakage_report import AttackedCodec, LeakageReport
from flwr_splitfc.leakage.loaded_run import LoadedRun
from flwr_splitfc.run.app_keys import check_dataset
from flwr_splitfc.run.complaint import complain
from flwr_splitfc.settings import RunConfig, field_of, parse_settings

_KNOWN = 4000  # samples
_ATTACKED = 1000
_LARGEST_SEED = 2**32 - 1  # of NumPy's generators, which scikit-learn has
_OWN = "run"
_PRECISION = ("quality", "uplink-bits", "downlink-bits")
_DESCRIPTION = """\
Learn to reconstruct devices' inputs from what the server receives of them, by a
network, ridge regression, the likeliest of known inputs and inversion of the device
half, on data that the attacker has, and report how close the best of them comes on
data that it has not.
"""
_EPILOG = """\
No attack that fails proves safety: another network, more data, or many releases of the
same sample may reveal more.

example:
  flwr-splitfc leakage results --app examples/mnist \\
      --codecs "run,float32,splitfc:uplink-bits=0.1,splitfc-rd:quality=10"
  flwr-splitfc leakage comparison --app examples/mnist
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``leakage`` to the subcommands."""
    parser = commands.add_parser(
        "leakage",
        help="attack a run: what its features give away of the inputs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=main)
    _add_run(parser)
    _add_attack(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="the folder of a run's results.json and device.pt, or of a comparison",
    )
    parser.add_argument(
        "--app", type=Path, required=True, help="the Flower app that made the runs"
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="MODULE:NAME",
        help="makes the device half; default: as the app's SplitClientApp says",
    )
    parser.add_argument(
        "--load-data",
        default="",
        metavar="MODULE:NAME",
        help="gives a device's batches; default: as the app's SplitClientApp says",
    )
    parser.add_argument(
        "--codecs",
        default=_OWN,
        metavar="NAME[:KEY=VALUE ...],...",
        help="what features go through; `run` is the run's own, and the default",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("leakage"),
        metavar="DIR",
        help="default: ./leakage",
    )


def _add_attack(parser: argparse.ArgumentParser) -> None:
    usual = AttackSettings()
    parser.add_argument(
        "--auxiliary",
        choices=("devices", "evaluation"),
        help="what the attacker has: the training data of half of the devices, or the "
        "evaluation data of all; default: the first, where there are two devices",
    )
    counts = {
        "known": (_KNOWN, "samples that the attacker has, at most"),
        "attacked": (_ATTACKED, "samples that it reconstructs, at most"),
        "steps": (usual.steps, "mini-batches on which its network trains"),
        "width": (usual.width, "channels of its network"),
        "inversion-steps": (
            usual.inversion_steps,
            "steps of the inversion of the device half, 0 for none",
        ),
    }
    for name, (default, meaning) in counts.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"{meaning}; default: {default}",
        )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all that is random in it"
    )


def main(options: argparse.Namespace) -> int:
    """Do what the command line asks, and return the exit status."""
    try:
        _check(options)
        report = _report(options)
    except ValueError as error:
        complain(str(error))
        return 2
    # first, as the disk may be full
    print(f"\n{report.text()}")
    try:
        report.write(options.out)
    except OSError as error:
        complain(f"{options.out} cannot be written: {error}")
        return 1
    print(f"Wrote {options.out / 'index.html'} and leakage.json")
    return 1 if report.failures else 0


def attack(folder: Path, app: Path, steps: int) -> dict[str, Any]:
    """Attack the features of one run as the command does without options.

    Parameters
    ----------
    folder : Path
        The run's.
    app : Path
        The folder of the Flower app that made it.
    steps : int
        Mini-batches on which the attacker's network trains.

    Returns
    -------
    dict
        The `steps`, the `attack` that was best and the fields of its `Scores`;
        `trivial` has those of the attack that knows no features, and `left_out` says
        which attacks could not be tried. `releases` says how many of each attacked
        sample they saw. `knows_draws` is the `Reconstruction`'s, and
        `levelled` and `levels_not_known` are the `Attacked`'s.

    Raises
    ------
    ValueError
        If the run or the app cannot be attacked.
    """
    run = LoadedRun.load(folder, app)
    settings = AttackSettings(steps=steps)
    attacker = Attacker(run, _usual_auxiliary(run), _KNOWN, _ATTACKED, settings)
    attacked = attacker.reconstruct(run.codec())
    outcome = attacked.outcome
    return {
        "steps": steps,
        "inversion_steps": settings.inversion_steps,
        "releases": 1,
        "attack": outcome.attack,
        "left_out": dict(outcome.left_out),
        "knows_draws": outcome.knows_draws,
        "levelled": attacked.levelled,
        "levels_not_known": attacked.not_known,
        **asdict(outcome.scores),
        "trivial": asdict(outcome.trivial),
    }


def _check(options: argparse.Namespace) -> None:
    check_installed("leakage", "matplotlib", "sklearn", "torchmetrics")
    for option in ("known", "attacked", "steps", "width"):
        number = getattr(options, option)
        if number < 1:
            raise ValueError(f"--{option} is {number}, wanted 1 or more")
    if options.inversion_steps < 0:
        raise ValueError(
            f"--inversion-steps is {options.inversion_steps}, wanted 0 or more"
        )
    if not 0 <= options.seed <= _LARGEST_SEED:
        raise ValueError(f"--seed is {options.seed}, wanted 0 to {_LARGEST_SEED}")


def _make_out(folder: Path) -> None:
    """Make the folder of the report, or refuse one that cannot be written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"--out {folder} is no folder to write into: {error}"
        ) from error


def _report(options: argparse.Namespace) -> LeakageReport:
    runs = []
    for folder in _run_folders(options.runs):
        run = LoadedRun.load(
            folder, options.app, model=options.model, load_data=options.load_data
        )
        # a run of `compare` has the dataset that its own user gives it
        check_dataset(options.app, run.config)
        runs.append(run)
    # what is wrong with options or files is found before the first attack
    plans = [_Plan.of(run, options) for run in runs]
    _make_out(options.out)
    rows: list[AttackedCodec] = []
    labels: dict[str, LabelInference | LabelValues] = {}
    # what failed, and why: errors of the app's own code, too
    failures: dict[str, Exception] = {}
    for plan in plans:
        run = plan.attacker.run
        for name, codec in plan.codecs.items():
            is_own = name == _OWN
            label = _label(run, name if not is_own else codec.name, runs)
            try:
                found = plan.attacker.reconstruct(codec)
            except Exception as error:
                failures[f"{label} cannot be attacked"] = error
            else:
                rows.append(AttackedCodec(label, plan.attacker, is_own, found))
                print(f"{label} is attacked", flush=True)
        if plan.is_u_shaped:
            try:
                labels[run.label] = plan.attacker.infer_labels()
            except Exception as error:
                failures[f"{run.label}, labels cannot be inferred"] = error
    if not rows:
        raise next(iter(failures.values()))
    reasons = [f"{what}: {error}" for what, error in failures.items()]
    return LeakageReport(runs[0].app.folder.name, rows, labels, reasons)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be attacked of a run."""

    attacker: Attacker
    codecs: Mapping[str, CutCodec]
    is_u_shaped: bool

    @classmethod
    def of(cls, run: LoadedRun, options: argparse.Namespace) -> "_Plan":
        codecs = _codecs(run, options.codecs)
        return cls(_attacker(run, options), codecs, run.is_u_shaped)


def _label(run: LoadedRun, codec: str, runs: Sequence[LoadedRun]) -> str:
    """Name what is attacked: the run only where there are several."""
    return codec if len(runs) == 1 else f"{run.label}, {codec}"


def _run_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the runs' folders: a comparison's are all that have a device half."""
    found = []
    for folder in folders:
        inside = sorted(folder.glob("runs/*/output/device.pt"))
        found += [half.parents[1] for half in inside] or [folder]
    return found


def _attacker(run: LoadedRun, options: argparse.Namespace) -> Attacker:
    auxiliary = options.auxiliary or _usual_auxiliary(run)
    settings = AttackSettings(
        steps=options.steps,
        width=options.width,
        seed=options.seed,
        inversion_steps=options.inversion_steps,
    )
    return Attacker(run, auxiliary, options.known, options.attacked, settings)


def _usual_auxiliary(run: LoadedRun) -> Auxiliary:
    return "devices" if run.num_devices > 1 else "evaluation"


def _codecs(run: LoadedRun, text: str) -> dict[str, CutCodec]:
    """Return codecs by how they are written."""
    codecs = {}
    for word in text.split(","):
        name, _, settings = word.strip().partition(":")
        if name == _OWN:
            codecs[_OWN] = run.codec()
        elif name in codec_names():
            codecs[word.strip()] = _codec(name, settings, run.config)
        else:
            known = ", ".join([_OWN, *codec_names()])
            raise ValueError(f"--codecs has {name!r}; known are {known}")
    return codecs


def _codec(name: str, settings: str, config: RunConfig) -> CutCodec:
    """Make a codec from its own settings, and those of the run that it has."""
    own = {field_of(key): value for key, value in parse_settings(settings).items()}
    # the run's quality or budget would bind beside the one that is given
    kept = {key: value for key, value in config.items() if key not in _PRECISION}
    inherited = settings_of(name, {**kept, "codec-settings": ""})
    return cut_codec(name, **{**inherited, **own})
