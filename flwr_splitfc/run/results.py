"""The file ``results.json`` of a run."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.accounts.traffic import traffic_from_json
from flwr_splitfc.run.rounds import Round
from flwr_splitfc.run.whole_file import whole_file
from flwr_splitfc.settings import RunConfig, Scalar, check_scalar

_NAME = "results.json of a run"
_FLOAT = "float"  # the key of a setting that JSON has no word for


class ResultsError(ValueError):
    """A file is not what a run leaves; the message names it and what is wrong."""


def read_results(path: Path, *wanted: str) -> dict[str, Any]:
    """Read a run's ``results.json``.

    Parameters
    ----------
    path : Path
    *wanted : str
        What it must have: "run_config", "rounds", "traffic".

    Raises
    ------
    ResultsError
    """
    results = read_object(path, _NAME)
    try:
        _check_kind("versions", results.get("versions", {}), dict)
        config = results.get("run_config")
        if isinstance(config, dict):
            results["run_config"] = _config_from_json(config)
        for part in wanted:
            if part not in results:
                raise ValueError(f"it has no {part}")
            _CHECKS[part](results[part])
    # what is no mapping has no items
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} is no {_NAME}: {error}") from error
    return results


def read_object(path: Path, name: str) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Parameters
    ----------
    path : Path
    name : str
        What the file should be, for the error.

    Raises
    ------
    ResultsError
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        _check_kind("it", content, dict)
    except (OSError, RecursionError, ValueError) as error:
        raise ResultsError(f"{path} is no {name}: {error}") from error
    return content


def _check_kind(what: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        given = type(value).__name__
        raise ValueError(f"{what} is {given}, wanted {kind.__name__}")


def _check_config(config: dict[str, Any]) -> None:
    _check_kind("run_config", config, dict)
    for key, value in config.items():
        check_scalar(key, value, Scalar)


def _check_rounds(rounds: list[Any]) -> None:
    _check_kind("rounds", rounds, list)
    for row in rounds:
        _check_kind("a round", row, dict)
        Round.from_json(row)


def _check_traffic(traffic: dict[str, Any]) -> None:
    _check_kind("traffic", traffic, dict)
    for purpose in get_args(Purpose):
        counts: Any = traffic.get(purpose)
        _check_kind(f"traffic in {purpose}", counts, dict)
        traffic_from_json(counts)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "run_config": _check_config,
    "rounds": _check_rounds,
    "traffic": _check_traffic,
}


def results_text(results: Mapping[str, Any]) -> str:
    """Write a run's results as JSON, with a line for each of its ``rounds``.

    A number that is infinite or NaN becomes ``null``: JSON has no word for it. In the
    ``run_config`` it is as `config_to_json` writes it.
    """
    members = []
    for key, value in results.items():
        name = json.dumps(key)
        if key == "run_config":
            value = config_to_json(value)
        text = _value_text(key, _with_nulls(value))
        members.append(f"{name}: {text}")
    body = ",\n".join(members)
    return f"{{\n{body}\n}}\n"


def config_to_json(config: RunConfig) -> dict[str, Any]:
    """Return a run-config for JSON, which has no word for what is infinite or NaN.

    >>> config_to_json({"seed": 7, "split-turn-timeout-s": float("inf")})
    {'seed': 7, 'split-turn-timeout-s': {'float': 'inf'}}
    """
    return {key: _setting_to_json(value) for key, value in config.items()}


def _setting_to_json(value: Scalar) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    return value


def _config_from_json(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _setting_from_json(value) for key, value in config.items()}


def _setting_from_json(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {_FLOAT}:
        return float(value[_FLOAT])
    return value


def _value_text(key: str, value: Any) -> str:
    if key != "rounds":
        return json.dumps(value, indent=1)
    rows = [json.dumps(row) for row in value]
    lines = ",\n".join(rows)
    return f"[\n{lines}\n]"


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nulls(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_whole(path: Path, text: str) -> None:
    """Replace a file by a text, as `whole_file` does."""
    with whole_file(path) as file:
        file.write(text.encode())
