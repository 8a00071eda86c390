"""`flwr-splitfc compare` as a user calls it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.measured import MEASURED

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from flwr_splitfc.command import main; sys.exit(main())"


class Comparison:
    """Compares in a folder, with a FLWR_HOME by which its processes are known."""

    def __init__(
        self, folder: Path, strategies: Sequence[str], *more: str, **settings: Any
    ) -> None:
        self.home = folder / "home"
        self.out = folder / "out"
        self.home.mkdir(parents=True)
        shelf = [str(ROOT / "strategies" / f"{name}.toml") for name in strategies]
        self.command = [sys.executable, "-c", MAIN, "compare", *shelf]
        self.command += ["--app", str(ROOT / "examples" / "mnist")]
        self.command += ["--out", str(self.out), *more]
        for key, value in settings.items():
            self.command += ["--set", f"{key}={value}"]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            env={**os.environ, "FLWR_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> str:
        process = self.start()
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output + self.logs()
        return output

    def logs(self) -> str:
        logs = self.out.glob("runs/*/log.txt")
        return "".join(log.read_text()[-3000:] for log in logs)

    def finished(self) -> list[str]:
        return sorted(path.parent.name for path in self.out.glob("runs/*/results.json"))

    def tables(self) -> tuple[str, list[dict[str, Any]]]:
        """The table, and all runs; without what depends on the clock."""
        seconds = re.compile(r"\| \d+ ((\|[^|\n]*){3}\|)$", re.MULTILINE)
        table = seconds.sub(r"\1", (self.out / "table.md").read_text())
        runs = json.loads((self.out / "results.json").read_text())["runs"]
        for run in runs:
            run["results"] = self._without_seconds(run["results"])
        return table, runs

    @staticmethod
    def _without_seconds(results: dict[str, Any]) -> dict[str, Any]:
        """Rounds, traffic and payloads, of which only the seconds differ from run to run."""
        for row in results["rounds"]:
            del row["seconds"]
        for counts in results["traffic"].values():
            for key in MEASURED:
                del counts[key]
        return {key: results[key] for key in ("rounds", "traffic", "payload_digest")}
