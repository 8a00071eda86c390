"""What benchmarks write of their rows, and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


def write_rows(file: Path, rows: Sequence[Any]) -> None:
    """Write rows, which are dataclasses, as JSON."""
    results = {"rows": [asdict(row) for row in rows]}
    file.write_text(json.dumps(results, indent=2) + "\n")


def read_rows(file: Path, kind: type[Row]) -> list[Row]:
    """Return the rows that a file of JSON lines has; none where there is no file."""
    if not file.exists():
        return []
    return [kind(**json.loads(line)) for line in file.read_text().splitlines()]


def add_row(file: Path, row: Any) -> None:
    """Add a row to a file of JSON lines."""
    with file.open("a") as lines:
        lines.write(json.dumps(asdict(row)) + "\n")
