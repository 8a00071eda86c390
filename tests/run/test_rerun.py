"""What `flwr-splitfc rerun` refuses before it runs anything."""

import json
from pathlib import Path

import pytest

from flwr_splitfc.command import main


def test_files_that_are_no_results_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ("", "[]", "{}", "not json"):
        (tmp_path / "results.json").write_text(content)
        assert (
            main(
                [
                    "rerun",
                    str(tmp_path / "results.json"),
                    "app",
                    "--results-dir",
                    str(tmp_path / "new"),
                ]
            )
            == 2
        )
        assert "is no results.json of a run" in capsys.readouterr().err
    assert main(["rerun", str(tmp_path / "missing.json"), "app"]) == 2


def test_results_that_are_there_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"run_config": {"seed": 0}}))
    before = results.read_text()
    assert main(["rerun", str(results), "app", "--results-dir", str(tmp_path)]) == 2
    assert "give another --results-dir" in capsys.readouterr().err
    assert results.read_text() == before


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"feature-noise": 0.1}, "had noise that nobody can draw again"),
        ({"merge-steps": 2}, "a repetition merges others"),
        ({"turns-at-once": 2}, "takes their mini-batches in another order"),
    ],
)
def test_what_no_repetition_can_do_alike_is_said(
    config: dict[str, float],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"run_config": config}))
    new = tmp_path / "new"
    # the app is none: `flwr run` ends at once
    main(["rerun", str(results), str(tmp_path), "--results-dir", str(new)])
    assert why in capsys.readouterr().err
