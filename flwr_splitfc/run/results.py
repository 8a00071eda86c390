"""The file ``results.json`` of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def results_text(results: Mapping[str, Any]) -> str:
    """Write a run's results as JSON, with a line for each of its ``rounds``."""
    members = []
    for key, value in results.items():
        text = _rows_text(value) if key == "rounds" else json.dumps(value, indent=1)
        members.append(f"{json.dumps(key)}: {text}")
    body = ",\n".join(members)
    return f"{{\n{body}\n}}\n"


def _rows_text(rows: list[Mapping[str, Any]]) -> str:
    lines = [json.dumps(row) for row in rows]
    body = ",\n".join(lines)
    return f"[\n{body}\n]"


def write_whole(path: Path, text: str) -> None:
    """Replace a file, and make its folder if that is missing.

    A process that is killed meanwhile leaves the old file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
