"""The page on SplitFC: its examples run and the functions it names exist."""

import doctest
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "splitfc.md"
NAMES = sorted(set(re.findall(r"`(flwr_splitfc(?:\.\w+)+)`", PAGE.read_text())))


def found(name: str) -> Any:
    """Import the longest module of the name, and look the rest up in it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing: Any = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            thing = getattr(thing, attribute)
        return thing
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name: str) -> None:
    assert callable(found(name))


def test_the_page_names_functions() -> None:
    assert len(NAMES) > 15


def test_examples_run() -> None:
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted > 15
    assert results.failed == 0


def test_every_equation_is_there_once() -> None:
    numbers = re.findall(r"^ {4}.*\((\d+)\)$", PAGE.read_text(), re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, 18))
