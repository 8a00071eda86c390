"""The comparison stands on the package; nothing in the package stands on it."""

import re
from pathlib import Path

import flwr_splitfc

PACKAGE = Path(flwr_splitfc.__file__).parent


def test_only_commands_import_the_comparison() -> None:
    importers = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"flwr_splitfc\.compare\b", path.read_text())
    ]
    others = {name.split("/")[0] for name in importers} - {"compare"}
    assert others == {"command.py", "leakage"}
