"""What we ship: the wheel holds the package and nothing else, and works away from the checkout."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
DIST_INFO = f"flwr_splitfc-{VERSION}.dist-info"


def run_python(*args: str | Path, cwd: Path, **env: str) -> str:
    """The standard output of `python *args`; its errors are shown if it fails."""
    finished = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def built(kind: str, directory: Path) -> Path:
    """The one file that `python -m build` makes of the checkout."""
    run_python(
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        directory,
        ROOT,
        cwd=directory,
    )
    (path,) = directory.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_exactly_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names}
    assert top_level == {"flwr_splitfc", DIST_INFO}
    assert {
        "flwr_splitfc/__init__.py",
        "flwr_splitfc/py.typed",
        "flwr_splitfc/exchange/protocol/split.proto",
    } <= set(names)
    assert f"{DIST_INFO}/licenses/LICENSE" in names


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = ROOT / "flwr_splitfc"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())


def test_installed_wheel_is_what_gets_imported(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
        cwd=elsewhere,
    )
    lines = run_python(
        "-c",
        "import flwr_splitfc; print(flwr_splitfc.__file__, flwr_splitfc.__version__, sep='\\n')",
        cwd=elsewhere,
        PYTHONPATH=str(site),
    ).splitlines()
    assert Path(lines[0]) == site / "flwr_splitfc" / "__init__.py"
    assert lines[1] == VERSION


def test_the_citation_is_of_this_version() -> None:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {VERSION}" in lines


def test_sdist_holds_no_data(tmp_path: Path) -> None:
    archive = built("sdist", tmp_path)
    with tarfile.open(archive) as sdist:
        files = {
            Path(*Path(member.name).parts[1:]): member.size
            for member in sdist.getmembers()
            if member.isfile()
        }
    assert Path("flwr_splitfc/py.typed") in files
    assert not [path for path in files if {"data", ".venv", ".flwr"} & set(path.parts)]
    assert not [
        path for path in files if path.suffix in {".pt", ".npz", ".gz", ".idx3-ubyte"}
    ]
    # as it is downloaded; the pictures of MNIST alone would be ten
    assert archive.stat().st_size < 3_000_000


def test_the_changelog_and_the_release_are_of_this_version() -> None:
    """The release workflow looks for these very lines."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(VERSION)} - \d{{4}}-\d\d-\d\d$", changelog, re.M)
    assert (
        f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text().splitlines()
    )


def test_the_tested_pythons_are_the_declared_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    (tested,) = re.findall(r"python: \[(.*)\]", workflow)
    assert tested.replace('"', "").split(", ") == declared
    assert project["requires-python"] == f">={declared[0]}"
