"""The comparison stands on the package; nothing in the package stands on it."""

import re
from pathlib import Path

import flwr_splitfc

PACKAGE = Path(flwr_splitfc.__file__).parent


def test_only_the_command_imports_the_comparison() -> None:
    importers = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"flwr_splitfc\.compare\b", path.read_text())
    ]
    others = [name for name in importers if not name.startswith("compare/")]
    assert others == ["command.py"]
