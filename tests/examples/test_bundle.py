"""What `flwr build` packs of an example, which every device gets."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_results_of_runs_are_not_packed(tmp_path: Path) -> None:
    app = tmp_path / "mnist"
    shutil.copytree(EXAMPLES / "mnist", app, ignore=shutil.ignore_patterns("results*"))
    for name in ("results", "results-2"):
        (app / name / "best").mkdir(parents=True)
        (app / name / "results.json").write_text("{}")
        (app / name / "best" / "notes.md").touch()
    flwr = Path(sys.executable).with_name("flwr")
    subprocess.run([flwr, "build", "--app", app], cwd=tmp_path, check=True)
    (bundle,) = tmp_path.glob("*.fab")
    packed = ZipFile(bundle).namelist()
    assert "splitmnist/task.py" in packed
    assert not [name for name in packed if name.startswith("results")]


def test_all_examples_leave_out_the_same() -> None:
    texts = {
        (path.parent / ".gitignore").read_text()
        for path in EXAMPLES.glob("*/pyproject.toml")
    }
    assert len(texts) == 1
