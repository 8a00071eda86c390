"""The example apps are not installed: make their packages importable, as `flwr run` does."""

import sys
from pathlib import Path

sys.path[:0] = [
    str(app.parent)
    for app in Path(__file__).parents[2].glob("examples/*/pyproject.toml")
]
