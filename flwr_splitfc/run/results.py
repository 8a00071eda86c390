"""The file ``results.json`` of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def results_text(results: Mapping[str, Any]) -> str:
    """Write a run's results as JSON, with a line for each of its ``rounds``."""
    members = []
    for key, value in results.items():
        name = json.dumps(key)
        text = _value_text(key, value)
        members.append(f"{name}: {text}")
    body = ",\n".join(members)
    return f"{{\n{body}\n}}\n"


def _value_text(key: str, value: Any) -> str:
    if key != "rounds":
        return json.dumps(value, indent=1)
    rows = [json.dumps(row) for row in value]
    lines = ",\n".join(rows)
    return f"[\n{lines}\n]"


def write_whole(path: Path, text: str) -> None:
    """Replace a file, and make its folder if that is missing.

    A process that is killed meanwhile leaves the old file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
