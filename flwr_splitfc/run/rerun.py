"""The command that repeats a run from its ``results.json``."""

import argparse
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flwr_splitfc.run.app_keys import (
    app_with_keys,
    check_dataset,
    commands_env,
    settings_text,
)
from flwr_splitfc.run.complaint import complain
from flwr_splitfc.run.record import changed_versions
from flwr_splitfc.run.results import read_results
from flwr_splitfc.settings import Scalar

_REFUSED = 2  # the exit status, as for arguments that are none
_INTERRUPTED = 130  # the exit status after Ctrl-C
_DESCRIPTION = (
    "Repeat a run with the settings in its results.json, "
    "and compare the digests of all payloads."
)

# Where the first run was served, with what an endpoint takes for nothing given: a
# simulation's devices are on this machine.
_FIRST_ENDPOINT: Mapping[str, Scalar] = {
    "split-host": "",
    "split-port": 0,
    "split-address": "",
    "split-tls": "auto",
    "split-certificate": "",
    "split-private-key": "",
    "split-ca-certificate": "",
}

# Those of `flwr run` that a value follows.
_FLWR_OPTIONS = ("--federation", "--run-config", "--federation-config", "--format")


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
        _check_comparable(options.results, record)
        check_dataset(options.app, record["run_config"])
    except ValueError as error:
        complain(str(error))
        return _REFUSED
    for warning in _warnings(record):
        complain(warning)
    config = _config_of_rerun(record["run_config"], results_dir)
    if _of_flwr_run(options.further).superlink is None:
        config = _for_simulation(config)
    try:
        with _sigterm_interrupts(), app_with_keys(options.app, config) as app:
            _flwr_run(app, config, options.further)
        return _compare(record, results_dir / "results.json")
    except ValueError as error:
        complain(str(error))
        return _REFUSED
    except KeyboardInterrupt:
        complain("stopped; `flwr list` shows whether the run goes on without it")
        return _INTERRUPTED


def _warnings(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a repetition may differ."""
    config = record["run_config"]
    if "failed" in record:
        yield (
            f"the run failed: {record['failed']}; a repetition that does not "
            "sends other payloads"
        )
    if "unfinished" in record:
        yield (
            "the run was ended before its last round: a repetition that goes on to "
            "it sends more, and its payloads differ"
        )
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
    if results_dir.exists() and not results_dir.is_dir():
        raise ValueError(f"--results-dir {results_dir} is no folder")
    # If the new run failed, the old results would be taken for its own.
    if (results_dir / "results.json").exists():
        raise ValueError(
            f"{results_dir} has a results.json already: give another --results-dir"
        )


def _check_comparable(path: Path, record: Mapping[str, Any]) -> None:
    if not record.get("payload_digest"):
        raise ValueError(
            f"{path} has no payload_digest, as none of a strategy that splits no model "
            "has: there is nothing to compare a repetition with"
        )


def _config_of_rerun(config: Mapping[str, Any], results_dir: Path) -> dict[str, Any]:
    rerun = {**config, "results-dir": str(results_dir)}
    if rerun.get("checkpoint-dir"):
        rerun["checkpoint-dir"] = ""  # the first run's has nothing left to do
    return rerun


def _of_flwr_run(further: list[str]) -> argparse.Namespace:
    """Parse options of ``flwr run``, and the SuperLink that they may name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("superlink", nargs="?")
    parser.add_argument("-c")
    for option in _FLWR_OPTIONS:
        parser.add_argument(option)
    known, _ = parser.parse_known_args(further)
    return known


def _for_simulation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with none of where the first run was served."""
    of_endpoint = {key: none for key, none in _FIRST_ENDPOINT.items() if key in config}
    dropped = [
        key for key, none in of_endpoint.items() if config[key] not in ("", none)
    ]
    if dropped:
        complain(
            f"left out of a simulation: {', '.join(dropped)}; "
            "name a SuperLink after the app to keep them"
        )
    return {**config, **of_endpoint}


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with the processes that it started."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _flwr_run(app: Path, config: Mapping[str, Any], further: list[str]) -> None:
    """Call ``flwr run`` with a run-config and further options."""
    command = ["flwr", "run", str(app), "--stream"]
    with tempfile.TemporaryDirectory() as folder:
        run_config = Path(folder) / "run-config.toml"
        run_config.write_text(settings_text(config), "utf-8")
        command += ["--run-config", str(run_config), *further]
        given = _of_flwr_run(further).federation_config
        if "num-devices" in config and given is None:
            devices = config["num-devices"]
            federation = f"num-supernodes={devices} client-resources-num-cpus=1"
            command += ["--federation-config", federation]
        _run_to_its_end(command)


def _run_to_its_end(command: list[str]) -> None:
    """Run a command, which Ctrl-C and SIGTERM end, whenever they come."""
    with ExitStack() as on_the_way_out:
        # in the middle of `Popen` they would leave a process that nobody knows
        with _interrupted_after():
            process = subprocess.Popen(command, env=commands_env())
            on_the_way_out.callback(process.wait)
            on_the_way_out.callback(process.kill)
        process.wait()


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is over."""
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _compare(record: Mapping[str, Any], new: Path) -> int:
    """Say whether both runs sent the same payloads, and return the exit status."""
    if not new.exists():
        complain("the run failed, see its log above")
        return 1
    again = read_results(new)
    if "failed" in again:
        complain(f"the repetition failed, and is not compared: {again['failed']}")
        return 1
    if "unfinished" in again:
        complain("the repetition was ended before its last round: it is not compared")
        return 1
    first_digest = record["payload_digest"]
    new_digest = again.get("payload_digest")
    same = first_digest == new_digest
    verdict = "as in" if same else "differ from"
    print(f"{new}: payloads {verdict} the first run ({first_digest}, {new_digest})")
    return 0 if same else 1
