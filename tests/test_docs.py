"""The documentation site: builds without a warning and without network, and has every public name."""

import re
import subprocess
import sys
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import flwr_splitfc

ROOT = Path(__file__).parents[1]
PACKAGES = [
    f"flwr_splitfc.{name}"
    for name in (
        "callbacks",
        "codec",
        "defence",
        "exchange",
        "leakage",
        "run",
        "strategy",
        "vision",
    )
]


def pages() -> list[Path]:
    """The repository's Markdown files."""
    folders = [
        ROOT,
        ROOT / "docs",
        ROOT / "docs" / "results",
        ROOT / "strategies",
        *(ROOT / "examples").iterdir(),
    ]
    return [page for folder in folders for page in sorted(folder.glob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-c",
        "docs",
        ".",
        str(folder),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_public_class_and_function_is_in_the_reference(site: Path) -> None:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    described = {
        name
        for kind in inventory.data
        if kind.startswith("py:")
        for name in inventory.data[kind]
    }
    top = set(flwr_splitfc.__all__)
    wanted = {f"flwr_splitfc.{name}" for name in top}
    for package in map(import_module, PACKAGES):
        own = {
            name: getattr(package, name) for name in package.__all__ if name not in top
        }
        wanted |= {
            f"{package.__name__}.{name}"
            for name, what in own.items()
            if isclass(what) or isfunction(what)
        }
    assert wanted <= described, wanted - described
    assert len(wanted) > 60


def test_links_between_files_are_links_between_pages(site: Path) -> None:
    assert 'href="docs/deployment.html"' in (site / "README.html").read_text()
    assert (
        'href="../strategies/README.html"' in (site / "docs" / "index.html").read_text()
    )
    assert 'href="docs/index.html"' in (site / "index.html").read_text()


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    built = [page.relative_to(ROOT).with_suffix(".html") for page in pages()]
    assert len(built) > 10
    assert [page for page in built if not (site / page).exists()] == []


def test_every_test_that_a_page_names_exists() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    made = {file.stem for file in files}
    for file in files:
        made.update(re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))
    for page in pages():
        for name in re.findall(r"\btest_\w+", page.read_text()):
            # pages shorten long names, to `test_the_beginning_...`
            found = [one for one in made if one.startswith(name)]
            assert name in found or (found and name.endswith("_")), (
                f"{page.name} names {name}"
            )
