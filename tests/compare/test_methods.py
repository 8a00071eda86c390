"""Methods by their files and by their codecs' names."""

from pathlib import Path

import pytest

from flwr_splitfc.codec import codec_names
from flwr_splitfc.compare.methods import (
    Method,
    check_names,
    method_of,
    methods_on_shelf,
)

SHELF = Path(__file__).parents[2] / "strategies"


def test_a_codecs_name_is_split_learning_with_that_codec() -> None:
    method = method_of("splitfc-rd")
    assert method.name == "splitfc-rd"
    assert method.layer.settings == {
        "strategy": "split-learning",
        "codec": "splitfc-rd",
    }


def test_a_file_wins_over_a_codec_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("int8").mkdir()
    assert method_of("int8").layer.settings["codec"] == "int8"
    Path("top-s").write_text("seed = 7\n")
    assert method_of("top-s").layer.settings == {"seed": 7}


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(ValueError, match="no run-config file and no codec"):
        method_of("splitfc-rdd")
    with pytest.raises(ValueError, match=r"missing\.toml cannot be read"):
        method_of("missing.toml")


def test_every_codec_is_on_the_shelf_or_comes_by_its_name(tmp_path: Path) -> None:
    names = [method.name for method in methods_on_shelf(SHELF)]
    assert names == [path.stem for path in sorted(SHELF.glob("*.toml"))]
    (tmp_path / "mine.toml").write_text('strategy = "split-learning"\ncodec = "int8"\n')
    (tmp_path / "top-s.toml").write_text("seed = 7\n")
    names = [method.name for method in methods_on_shelf(tmp_path)]
    others = [name for name in codec_names() if name not in ("int8", "top-s")]
    assert names == ["mine", "top-s", *others]


def test_what_is_named_already_does_not_come_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('codec = "float16"\n')
    named = [method_of("int8"), method_of(str(file))]
    names = [method.name for method in methods_on_shelf(tmp_path, named)]
    assert names == [name for name in codec_names() if name not in ("int8", "float16")]


def test_one_name_stands_for_one_method(tmp_path: Path) -> None:
    file = tmp_path / "int8.toml"
    file.write_text("seed = 7\n")
    check_names([method_of("int8"), method_of("int8")])
    with pytest.raises(ValueError, match=r"codec int8 and .*int8\.toml have one name"):
        check_names([method_of("int8"), Method.from_file(file)])
