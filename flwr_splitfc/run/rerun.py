"""The command that repeats a run from its ``results.json``."""

import argparse
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flwr_splitfc.run.app_keys import app_with_keys, commands_env, settings_text
from flwr_splitfc.run.complaint import complain
from flwr_splitfc.run.record import changed_versions
from flwr_splitfc.run.results import read_results

_DESCRIPTION = (
    "Repeat a run with the settings in its results.json, "
    "and compare the digests of all payloads."
)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``rerun`` to the subcommands."""
    parser = commands.add_parser(
        "rerun",
        help="repeat the run of a results.json, and compare",
        description=_DESCRIPTION,
        epilog="Further options go to `flwr run`.",
    )
    parser.set_defaults(command=main)
    parser.add_argument(
        "results", type=Path, help="the results.json of the run to repeat"
    )
    parser.add_argument("app", type=Path, help="the Flower app, as for `flwr run`")
    parser.add_argument(
        "--results-dir",
        type=Path,
        default=Path("rerun"),
        help="where the new results.json goes",
    )


def main(options: argparse.Namespace) -> int:
    """Repeat the run that the options name, and return the exit status."""
    results_dir = options.results_dir.resolve()
    try:
        record = read_results(options.results, "run_config")
        _check_unused(results_dir)
    except ValueError as error:
        complain(str(error))
        return 2
    for warning in _warnings(record):
        complain(warning)
    config = _config_of_rerun(record["run_config"], results_dir)
    try:
        with app_with_keys(options.app, config) as app:
            _flwr_run(app, config, options.further)
        return _compare(record, results_dir / "results.json")
    except ValueError as error:
        complain(str(error))
        return 2


def _warnings(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a repetition may differ."""
    config = record["run_config"]
    for change in changed_versions(record):
        yield f"the run had {change}; results may differ"
    if config.get("merge-steps", 1) != 1:
        yield (
            "the run merged mini-batches as they met in the server (merge-steps): "
            "a repetition merges others, and its payloads differ"
        )
    if config.get("turns-at-once", 1) != 1:
        yield (
            "devices had their turns at the same time (turns-at-once): a repetition "
            "takes their mini-batches in another order, and its payloads differ"
        )
    if config.get("feature-noise"):
        yield "the run's features had noise that nobody can draw again"


def _check_unused(results_dir: Path) -> None:
    # If the new run failed, the old results would be taken for its own.
    if (results_dir / "results.json").exists():
        raise ValueError(
            f"{results_dir} has a results.json already: give another --results-dir"
        )


def _config_of_rerun(config: Mapping[str, Any], results_dir: Path) -> dict[str, Any]:
    rerun = {**config, "results-dir": str(results_dir)}
    if rerun.get("checkpoint-dir"):
        rerun["checkpoint-dir"] = ""  # the first run's has nothing left to do
    return rerun


def _flwr_run(app: Path, config: Mapping[str, Any], further: list[str]) -> None:
    """Call ``flwr run`` with a run-config and further options."""
    command = ["flwr", "run", str(app), "--stream"]
    with tempfile.TemporaryDirectory() as folder:
        run_config = Path(folder) / "run-config.toml"
        run_config.write_text(settings_text(config))
        command += ["--run-config", str(run_config), *further]
        if "num-devices" in config and "--federation-config" not in further:
            devices = config["num-devices"]
            federation = f"num-supernodes={devices} client-resources-num-cpus=1"
            command += ["--federation-config", federation]
        subprocess.run(command, env=commands_env(), check=False)


def _compare(record: Mapping[str, Any], new: Path) -> int:
    """Say whether both runs sent the same payloads, and return the exit status."""
    if not new.exists():
        complain("the run failed, see its log above")
        return 1
    first_digest = record.get("payload_digest")
    new_digest = read_results(new).get("payload_digest")
    same = first_digest == new_digest
    verdict = "as in" if same else "differ from"
    print(f"{new}: payloads {verdict} the first run ({first_digest}, {new_digest})")
    return 0 if same else 1
