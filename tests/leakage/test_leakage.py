"""`flwr-splitfc leakage` from end to end, on runs of the digits that are made here."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import tomllib
from collections import OrderedDict
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context
from torch import nn
from torch.nn import functional as F

from flwr_splitfc.command import main
from flwr_splitfc.vision import load_data
from tests.apps.server_runs import results_of

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "mnist"
SHORT = ["--steps", "5", "--width", "8", "--known", "64", "--attacked", "32"]


@pytest.fixture(autouse=True, scope="module")
def importable() -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(APP))
    yield
    sys.path[:] = before


def make_run(folder: Path, **settings: Any) -> Path:
    from splitmnist.client_app import app as client_app
    from splitmnist.server_app import app as server_app

    table = tomllib.loads((APP / "pyproject.toml").read_text())
    config = table["tool"]["flwr"]["app"]["config"]
    few = {"num-rounds": 3, "num-devices": 3, "partitioner": "iid", "batch-size": 32}
    config |= {**few, "results-dir": str(folder), "evaluate-every": 3, **settings}
    results_of(server_app, client_app, config)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def u_shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("u") / "run"
    return make_run(folder, **{"u-shaped": True, "strategy": "split-learning"})


def attack(run: Path, out: Path, *options: str) -> dict[str, Any]:
    assert (
        main(
            [
                "leakage",
                str(run),
                "--app",
                str(APP),
                "--out",
                str(out),
                *SHORT,
                *options,
            ]
        )
        == 0
    )
    return json.loads((out / "leakage.json").read_text())


def test_a_run_is_attacked_through_several_codecs(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codecs = "run,float32,splitfc-rd:quality=5,splitfc:uplink-bits=0.4"
    found = attack(plain, tmp_path, "--codecs", codecs)
    rows = {row["codec"]: row for row in found["reconstruction"]}
    names = [*codecs.split(",")[1:], "no features: the mean input"]
    assert list(rows) == ["splitfc", *names]
    assert rows["float32"]["bits_per_entry"] == 32
    assert 0.3 < rows["splitfc:uplink-bits=0.4"]["bits_per_entry"] <= 0.4
    attacks = {row["attack"] for row in found["reconstruction"][:-1]}
    blind = {"ridge", "clean ridge", "column ridge", "posterior", "network", "mean"}
    assert attacks <= {*blind, "inversion"}
    assert found["reconstruction"][-1]["attack"] is None
    assert all(0 < row["mse"] < 1 and -1 < row["ssim"] < 1.001 for row in rows.values())
    # half of three devices is one; the others are attacked
    devices = found["known_devices"] + found["attacked_devices"]
    assert sorted(devices) == [0, 1, 2]
    assert found["attacked_samples"] == 32
    assert found["labels"] == {}
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 12 * 5
    assert "the training data of 1 of 3 devices" in page
    printed = capsys.readouterr().out
    assert "no features: the mean input" in printed
    assert rows["float32"]["attack"] in printed
    for told in (page, printed):
        assert told.count("Not attacked: the device half") == 1


def test_a_comparison_is_attacked_whole(plain: Path, tmp_path: Path) -> None:
    """Its runs have their accuracy and their bytes in the same table."""
    results = json.loads((plain / "results.json").read_text())
    for seed in (0, 1):
        run = tmp_path / "runs" / f"splitfc-seed{seed}"
        (run / "output").mkdir(parents=True)
        about = {"method": "splitfc", "budget": [0.2, 0.4], "seed": seed}
        (run / "results.json").write_text(json.dumps({**results, "run": about}))
        (run / "output" / "device.pt").write_bytes((plain / "device.pt").read_bytes())
    found = attack(tmp_path, tmp_path / "out")
    *rows, trivial = found["reconstruction"]
    names = [f"splitfc 0.2/0.4 seed {seed}, splitfc" for seed in (0, 1)]
    assert [row["codec"] for row in rows] == names
    moved = sum(
        row["uplink_bytes"] + row["downlink_bytes"] for row in results["rounds"]
    )
    assert [row["moved_bytes"] for row in rows] == [moved, moved]
    assert all(0 < row["accuracy"] < 1 for row in rows)
    assert trivial["accuracy"] is None


def test_compare_attacks_its_runs_once(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that left a device half; their scores are beside accuracy and bytes."""
    files = [
        str(ROOT / "strategies" / f"{name}.toml") for name in ("splitfc", "fedavg")
    ]
    command = ["compare", *files, "--app", str(APP), "--out", str(tmp_path)]
    main([*command, "--list"])
    ids = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    for run_id in ids:
        output = tmp_path / "runs" / run_id / "output"
        output.mkdir(parents=True)
        shutil.copy(plain / "results.json", output.parent)
    half = tmp_path / "runs" / ids[0] / "output" / "device.pt"
    shutil.copy(plain / "device.pt", half)

    assert main([*command, "--leakage", "5"]) == 0
    assert capsys.readouterr().out.count(" is attacked") == 1
    with (tmp_path / "results.csv").open() as file:
        split, whole = csv.DictReader(file)
    assert -1 < float(split["ssim"]) < 1
    assert float(split["psnr"]) > 0
    assert split["recovered"] == whole["ssim"] == ""
    page = (tmp_path / "index.html").read_text()
    assert "leaked, SSIM" in page
    assert re.search(
        r"has trained for 5 steps .* it would be [\d.-]+ \(leaked, SSIM\)", page
    )

    assert main([*command, "--leakage", "5"]) == 0
    assert " is attacked" not in capsys.readouterr().out
    # as attacks wrote it that learned from noisy features alone
    scores = tmp_path / "runs" / ids[0] / "leakage.json"
    known = json.loads(scores.read_text())
    assert known.pop("releases") == 1
    scores.write_text(json.dumps(known))
    assert main([*command, "--leakage", "5"]) == 0
    assert " is attacked" in capsys.readouterr().out
    shutil.copy(plain / "server.pt", half)
    assert main([*command, "--leakage", "6"]) == 1
    assert "splitfc 0.2/0.4 seed 0 cannot be attacked" in capsys.readouterr().err
    assert "leaked, SSIM" not in (tmp_path / "index.html").read_text()


def test_a_decoupled_run_is_attacked_with_both_its_budgets(tmp_path: Path) -> None:
    """No gradient comes down, so its features have what that would have had."""
    budgets = {"codec": "splitfc", "uplink-bits": 0.2, "downlink-bits": 0.4}
    run = make_run(
        tmp_path / "run", strategy="split-learning", decoupled=True, **budgets
    )
    row = json.loads((run / "results.json").read_text())["rounds"][-1]
    own, _ = attack(run, tmp_path / "out")["reconstruction"]
    assert own["bits_per_entry"] == pytest.approx(row["uplink_bits_per_entry"], rel=0.1)


def test_a_device_half_may_have_a_layer_called_head(
    plain: Path, tmp_path: Path
) -> None:
    """It is no run with last layers on devices."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(plain / "results.json", run)
    entries = torch.load(plain / "device.pt", weights_only=True)
    renamed = {f"head.{name}": entry for name, entry in entries.items()}
    torch.save(renamed, run / "device.pt")
    found = attack(run, tmp_path / "out", "--model", f"{__name__}:half_with_a_head")
    assert found["attacked_samples"] == 32
    assert found["labels"] == {}


def half_with_a_head(context: Context) -> nn.Module:
    from splitmnist.task import make_device_half

    return nn.Sequential(OrderedDict(head=make_device_half(context)))


def test_samples_are_counted(plain: Path, tmp_path: Path) -> None:
    """Here there are fewer than may be used."""
    found = attack(plain, tmp_path, "--known", "100000", "--inversion-steps", "0")
    assert 32 < found["known_samples"] < 1000
    assert found["attack"]["inversion_steps"] == 0


def test_an_attack_that_cannot_be_tried_is_named(plain: Path, tmp_path: Path) -> None:
    """In the numbers and on the page; the others are made."""
    model = f"{__name__}:half_without_gradient"
    found = attack(plain, tmp_path, "--model", model)
    assert "has no gradient" in found["left_out"]["splitfc"]["inversion"]
    page = (tmp_path / "index.html").read_text()
    assert "splitfc: inversion is left out, since the device half has no" in page


def half_without_gradient(context: Context) -> nn.Module:
    from splitmnist.task import make_device_half

    half = make_device_half(context)
    half.register_forward_hook(lambda module, inputs, features: features.detach())
    return half


def test_a_decoupled_run_with_noise_is_attacked(tmp_path: Path) -> None:
    settings = {"decoupled": True, "feature-clip-norm": 5.0, "feature-noise": 0.1}
    run = make_run(tmp_path / "run", strategy="split-learning", **settings)
    assert attack(run, tmp_path / "out")["attacked_samples"] == 32


def test_labels_of_a_u_shaped_run_are_inferred(u_shaped: Path, tmp_path: Path) -> None:
    found = attack(u_shaped, tmp_path / "out", "--auxiliary", "evaluation")
    assert found["labels"]["run"]["nearest"] <= 1
    assert (
        0
        <= found["labels"]["run"]["majority"]
        < found["labels"]["run"]["clusters"]
        <= 1
    )
    assert re.search(
        r"labels inferred: [\d.]+% by the last layers, [\d.]+% by",
        (tmp_path / "out" / "index.html").read_text(),
    )


def with_class_weights(context: Context) -> list[Any]:
    """The digits, with whole numbers for each class, which the loss refuses."""
    return [
        [(x, F.one_hot(y, 10)) for x, y in batches] for batches in load_data(context)
    ]


def app_with_another_server(folder: Path) -> Path:
    """The digits' app, with a ServerApp that is no `SplitServerApp`."""
    text = (APP / "pyproject.toml").read_text()
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        text.replace("splitmnist.server_app:app", "splitmnist.client_app:app")
    )
    return folder


@pytest.mark.parametrize(
    ("other_labels", "why"),
    [
        (True, "Expected floating point type for target"),
        (False, "splitmnist.client_app:app is no SplitServerApp"),
    ],
)
def test_where_labels_cannot_be_inferred_the_other_attacks_are_reported(
    other_labels: bool,
    why: str,
    plain: Path,
    u_shaped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And runs that come after, with the reason, in text, page and numbers."""
    options = ["--out", str(tmp_path / "out"), *SHORT]
    if other_labels:
        options += ["--app", str(APP), "--load-data", f"{__name__}:with_class_weights"]
    else:
        options += ["--app", str(app_with_another_server(tmp_path / "app"))]
    assert main(["leakage", str(u_shaped), str(plain), *options]) == 1
    found = json.loads((tmp_path / "out" / "leakage.json").read_text())
    names = [row["codec"] for row in found["reconstruction"]]
    assert names[:2] == ["run, float32", f"{plain.name}, splitfc"]
    assert found["labels"] == {}
    [failure] = found["failures"]
    assert failure.startswith(f"run, labels cannot be inferred: {why}")
    assert failure in capsys.readouterr().out
    assert escape(failure) in (tmp_path / "out" / "index.html").read_text()


def test_a_codec_that_fails_leaves_the_others(plain: Path, tmp_path: Path) -> None:
    codecs = "splitfc:uplink-bits=0.001,float32"
    command = ["leakage", str(plain), "--app", str(APP), "--out", str(tmp_path)]
    assert main([*command, *SHORT, "--codecs", codecs]) == 1
    found = json.loads((tmp_path / "leakage.json").read_text())
    first, _ = found["reconstruction"]
    assert first["codec"] == "float32"
    [failure] = found["failures"]
    assert "uplink-bits=0.001 cannot be attacked: uplink_bits=0.001 is too" in failure


def test_another_app_names_its_functions(plain: Path, tmp_path: Path) -> None:
    """As an app without a `SplitClientApp` has to."""
    functions = ["--model", "splitmnist.task:make_device_half"]
    functions += ["--load-data", "flwr_splitfc.vision:load_data"]
    assert attack(plain, tmp_path, *functions)["attacked_samples"] == 32


def test_a_dataset_that_is_code_is_not_imported(
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a results.json says; neither to attack the run nor to repeat it."""
    (tmp_path / "chosen_by_a_stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    results = json.loads((plain / "results.json").read_text())
    results["run_config"]["dataset"] = "chosen_by_a_stranger.Data"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    shutil.copy(plain / "device.pt", tmp_path)
    wanted = "dataset is 'chosen_by_a_stranger.Data', which is imported as code"
    assert wanted in refused(capsys, tmp_path)
    new = str(tmp_path / "new")
    assert main(["rerun", str(path), str(APP), "--results-dir", new]) == 2
    assert wanted in capsys.readouterr().err


def test_no_terminal_obeys_the_names_in_a_model(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(plain / "results.json", tmp_path)
    torch.save({"layer.\x1b[2J": torch.ones(1)}, tmp_path / "device.pt")
    told = refused(capsys, tmp_path)
    assert "\x1b" not in told
    assert r"layer.\x1b[2J" in told


def refused(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> str:
    assert main(["leakage", str(run), "--app", str(APP), *options]) == 2
    return capsys.readouterr().err


def test_what_is_wrong_is_said(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no results.json of a run" in refused(capsys, tmp_path)
    assert "--codecs has 'gzip'; known are run, " in refused(
        capsys, plain, "--codecs", "gzip"
    )
    assert "--steps is 0, wanted 1 or more" in refused(capsys, plain, "--steps", "0")
    for seed in ("-1", "99999999999999999999999"):
        told = refused(capsys, plain, "--seed", seed)
        assert f"--seed is {seed}, wanted 0 to 4294967295" in told
    assert "has no setting 'loudness'" in refused(
        capsys, plain, "--codecs", "float32:loudness=1"
    )
    for option, function in (
        ("--model", "nowhere:half"),
        ("--model", "splitmnist.task"),
        ("--load-data", "splitmnist.task:nothing"),
    ):
        told = refused(capsys, plain, option, function)
        assert told.startswith(f"flwr-splitfc: {option} {function}: ")


def test_a_folder_that_cannot_be_written_is_refused_before_the_attack(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "below")
    assert main(["leakage", str(plain), "--app", str(APP), "--out", out, *SHORT]) == 2
    told = capsys.readouterr()
    assert f"--out {out} is no folder to write into: [Errno" in told.err
    assert told.out == ""


def test_a_disk_that_is_full_at_the_end_does_not_hide_the_table(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # what a file is written to before it takes its place
    (tmp_path / ".leakage.json.new").symlink_to("/dev/full")
    command = ["leakage", str(plain), "--app", str(APP), "--out", str(tmp_path)]
    assert main([*command, *SHORT]) == 1
    told = capsys.readouterr()
    assert "no features: the mean input" in told.out
    assert f"{tmp_path} cannot be written: [Errno" in told.err


def test_a_run_without_halves_is_refused(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text((plain / "results.json").read_text())
    assert "device.pt does not exist" in refused(capsys, tmp_path)


@pytest.mark.parametrize(
    ("rows", "why"),
    [("[3]", "a round is int, wanted dict"), ("3", "rounds is int, wanted list")],
)
def test_results_that_are_damaged_are_refused(
    rows: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(f'{{"run_config": {{}}, "rounds": {rows}}}')
    assert f"results.json is no results.json of a run: {why}" in refused(
        capsys, tmp_path
    )


@pytest.mark.parametrize("saved", [b"", b"garbage" * 20, [1, 2], {1: torch.ones(1)}])
def test_halves_that_are_damaged_are_refused(
    saved: Any, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(plain / "results.json", tmp_path)
    half = tmp_path / "device.pt"
    if isinstance(saved, bytes):
        half.write_bytes(saved)
    else:
        torch.save(saved, half)
    assert f"{half} is no state dict: " in refused(capsys, tmp_path)


def test_halves_of_another_model_are_refused(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text((plain / "results.json").read_text())
    # of other names
    (tmp_path / "device.pt").write_bytes((plain / "server.pt").read_bytes())
    assert "device.pt does not fit the app's DeviceHalf" in refused(capsys, tmp_path)
