"""The command that repeats a run from its ``results.json``."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from flwr_splitfc.run.record import changed_versions


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Make ``rerun`` known."""
    parser = commands.add_parser(
        "rerun",
        help="repeat the run of a results.json, and compare",
        description="Repeat a run with the settings in its results.json, and compare the digests of all payloads.",
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
    """Do what the command line asks; the exit status."""
    return _rerun(
        options.results, options.app, options.results_dir.resolve(), options.further
    )


def _rerun(results: Path, app: Path, results_dir: Path, flwr_options: list[str]) -> int:
    try:
        record = json.loads(results.read_text())
        config = record["run_config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(
            f"flwr-splitfc: {results} is no results.json of a run: {error}",
            file=sys.stderr,
        )
        return 2
    # or a run that failed would be compared by an older one's
    if (results_dir / "results.json").exists():
        print(
            f"flwr-splitfc: {results_dir} has a results.json already: give another --results-dir",
            file=sys.stderr,
        )
        return 2
    for change in changed_versions(record):
        print(
            f"flwr-splitfc: the run had {change}; results may differ", file=sys.stderr
        )
    config = {**config, "results-dir": str(results_dir)}
    if config.get("checkpoint-dir"):
        config["checkpoint-dir"] = ""
    if "num-devices" in config and "--federation-config" not in flwr_options:
        devices = f"num-supernodes={config['num-devices']} client-resources-num-cpus=1"
        flwr_options = [*flwr_options, "--federation-config", devices]
    with tempfile.TemporaryDirectory() as folder:
        run_config = Path(folder) / "run-config.toml"
        run_config.write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
        )
        command = [
            "flwr",
            "run",
            str(app),
            "--stream",
            "--run-config",
            str(run_config),
            *flwr_options,
        ]
        subprocess.run(command, check=False)
    return _compare(record, results_dir / "results.json")


def _compare(record: dict[str, object], new: Path) -> int:
    if not new.exists():
        print("flwr-splitfc: the run failed, see its log above", file=sys.stderr)
        return 1
    digests = (
        record.get("payload_digest"),
        json.loads(new.read_text()).get("payload_digest"),
    )
    same = digests[0] == digests[1]
    print(
        f"{new}: payloads {'as in' if same else 'differ from'} the first run ({digests[0]}, {digests[1]})"
    )
    return 0 if same else 1
