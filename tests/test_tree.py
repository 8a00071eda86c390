"""The tree that CONTRIBUTING.md shows is the repository's."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flwr_splitfc"


def shown() -> dict[str, str]:
    """The purpose of each path of the block after ``<!-- tree -->``."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"^<!-- tree -->\n+```\w*\n(.*?)^```", text, re.M | re.S)
    assert block, "CONTRIBUTING.md has no code block after <!-- tree -->"
    return dict(line.split(maxsplit=1) for line in block[1].splitlines() if line)


def folders_at_the_top() -> set[str]:
    """Those that git tracks files of."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = listed.stdout.split("\0")
    return {f"{file.split('/')[0]}/" for file in files if "/" in file}


def parts_of_the_package() -> set[str]:
    """All its folders, and the modules that stand in none of them."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    modules = set(PACKAGE.glob("[a-z]*.py"))
    return {f"{path.relative_to(ROOT)}/" for path in folders} | {
        str(path.relative_to(ROOT)) for path in modules
    }


def test_every_folder_is_in_the_tree_and_no_other() -> None:
    real = folders_at_the_top() | parts_of_the_package()
    assert sorted(shown()) == sorted(real)


def test_each_folder_comes_after_the_one_that_holds_it() -> None:
    seen: set[str] = set()
    for path in shown():
        parent = f"{Path(path).parent}/"
        assert parent in seen | {"./"}, f"{path} stands before {parent}"
        seen.add(path)
