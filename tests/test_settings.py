"""Settings in a dataclass, in one string, and their types."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from flwr_splitfc.codec import cut_codec
from flwr_splitfc.settings import (
    Scalar,
    check_least,
    check_scalar,
    parse_settings,
    read_settings,
    under_key,
)


@dataclass(frozen=True)
class Turn:
    batch_size: int = 64
    learning_rate: float | None = None


def test_a_field_without_a_key_keeps_its_default() -> None:
    assert read_settings(Turn, {"learning-rate": 1, "seed": 7}) == Turn(64, 1.0)


def test_a_key_of_the_wrong_type_is_named() -> None:
    with pytest.raises(ValueError, match=r"^batch-size is 2\.5, wanted int$"):
        read_settings(Turn, {"batch-size": 2.5})


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        (-1.0, "0.0 or more"),
        (float("nan"), "0.0 or more"),
        (float("inf"), "a finite number"),
    ],
)
def test_a_number_that_is_too_small_or_infinite_is_named(
    rate: float, wanted: str
) -> None:
    with pytest.raises(ValueError, match=f"^learning-rate is {rate}, wanted {wanted}$"):
        check_least(Turn(learning_rate=rate), learning_rate=0.0)
    check_least(Turn(), learning_rate=0.0)


def test_an_error_under_a_key_names_it(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"^split-certificate: .*nope"),
        under_key("split-certificate"),
    ):
        (tmp_path / "nope").read_bytes()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("reduction=8", {"reduction": 8}),
        (
            "  uplink-bits=0.1\n\tevaluation=codec ",
            {"uplink-bits": 0.1, "evaluation": "codec"},
        ),
        ("evaluation='codec' exact=true", {"evaluation": "codec", "exact": True}),
        ("uplink_bits=1e-1", {"uplink_bits": 0.1}),
    ],
)
def test_settings_in_one_string(text: str, settings: dict[str, Scalar]) -> None:
    parsed = parse_settings(text)
    assert parsed == settings
    assert [type(value) for value in parsed.values()] == [
        type(value) for value in settings.values()
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reduction", "a setting is key=value, got 'reduction' in 'reduction'"),
        ("reduction=", "a setting is key=value"),
        ("=8", "a setting is key=value"),
        ("reduction = 8", "a setting is key=value, got 'reduction' in"),
        ("reduction=8 reduction=16", "'reduction' stands twice"),
        ("reduction=[8]", "'reduction=.8.' is not a number, a boolean or a string"),
        ("reduction={a=1}", "is not a number"),
        ("reduction=2020-01-01", "is not a number"),
    ],
)
def test_what_is_no_setting_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(text)


def test_settings_in_one_string_make_a_codec() -> None:
    cut = cut_codec("splitfc", **parse_settings("reduction=8 uplink-bits=0.1"))
    assert cut == cut_codec("splitfc", reduction=8, uplink_bits=0.1)
    with pytest.raises(ValueError, match="no setting 'reductoin'"):
        cut_codec("splitfc", **parse_settings("reductoin=8"))


@pytest.mark.parametrize(
    ("value", "hint", "checked"),
    [
        (8, float, 8.0),
        (8, int | float, 8),
        (None, int | None, None),
        ("codec", Literal["float16", "codec"], "codec"),
        (False, bool, False),
    ],
)
def test_a_scalar_of_its_type(value: Any, hint: Any, checked: Any) -> None:
    result = check_scalar("key", value, hint)
    assert (result, type(result)) == (checked, type(checked))


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (True, int, "int"),
        (8.0, int, "int"),
        ("8", float | None, "float"),
        (None, float, "float"),
        (1, bool, "bool"),
        ("int8", Literal["float16", "codec"], "one of float16, codec"),
    ],
)
def test_a_scalar_of_another_type(value: Any, hint: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"^key is {value!r}, wanted {wanted}$"):
        check_scalar("key", value, hint)
    with pytest.raises(ValueError, match=f"^key: {wanted}$"):
        check_scalar("key", value, hint, complaint="{key}: {wanted}")
