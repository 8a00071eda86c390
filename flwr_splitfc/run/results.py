"""The file ``results.json`` of a run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr_splitfc.run.whole_file import whole_file


def results_text(results: Mapping[str, Any]) -> str:
    """Write a run's results as JSON, with a line for each of its ``rounds``.

    A number that is infinite or NaN becomes ``null``: JSON has no word for it.
    """
    members = []
    for key, value in results.items():
        name = json.dumps(key)
        text = _value_text(key, _with_nulls(value))
        members.append(f"{name}: {text}")
    body = ",\n".join(members)
    return f"{{\n{body}\n}}\n"


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
