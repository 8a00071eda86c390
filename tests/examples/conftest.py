"""The example apps are not installed: make their packages importable, as `flwr run` does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "mnist"))
