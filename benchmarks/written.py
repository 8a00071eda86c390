"""What benchmarks write of their rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def write_rows(file: Path, rows: Sequence[Any]) -> None:
    """Write rows, which are dataclasses, as JSON."""
    results = {"rows": [asdict(row) for row in rows]}
    file.write_text(json.dumps(results, indent=2) + "\n")
