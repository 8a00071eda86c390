"""Pictures and page of a comparison, from results made up."""

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from flwr_splitfc.compare.report.curves import curves_of
from flwr_splitfc.compare.report.figures import pictures
from flwr_splitfc.compare.report.headline import headline
from flwr_splitfc.compare.report.looks import Picture, looks_of
from flwr_splitfc.compare.report.page import page
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.rows import rows_of
from flwr_splitfc.compare.report.settings_table import (
    common_settings,
    differing_settings,
)
from flwr_splitfc.compare.runs import Outcome, Run
from tests.compare.conftest import finished, measured

BUDGETS = [(0.1, 0.2), (0.2, 0.4)]
SVG = "{http://www.w3.org/2000/svg}"
Outcomes = list[tuple[Run, Outcome]]
NO_METRIC = (
    "No run measured an accuracy. Evaluation gave loss, r2: name one as best-metric, "
    "and it has a column."
)
LINK = RadioLink.parse("up=10,down=50,rtt=40")


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Twenty methods: fifteen with two budgets, three seeds each, and five without."""
    split = [
        finished(
            f"method-{number}",
            budget,
            seed,
            [None, 0.5, 0.9 - number / 100 + seed / 50],
        )
        for number in range(15)
        for budget in BUDGETS
        for seed in range(3)
    ]
    unsplit = [finished(f"<fed-{number}>", None, 0, [0.5, 0.6]) for number in range(5)]
    failed = (
        Run("broken", {"seed": 0}, None, ""),
        Outcome("failed", "<script>alert(1)</script>"),
    )
    return [*split, *unsplit, failed]


@pytest.fixture(scope="module")
def drawn(outcomes: Outcomes) -> dict[str, Picture]:
    return pictures(curves_of(outcomes, LINK))


def test_a_name_is_no_formula() -> None:
    """Also where matplotlib would not understand it."""
    name = r"a$\foo$"
    runs = [finished(name, None, 0, [0.5, 0.8])]
    picture = pictures(curves_of(runs, LINK))["accuracy-vs-bytes"]
    assert name in picture.svg


def test_a_curve_is_the_mean_over_seeds_against_all_bytes_so_far() -> None:
    runs = [
        finished("a", None, 0, [None, 0.5, 0.8]),
        finished("a", None, 1, [None, 0.7, 0.9]),
    ]
    (curve,) = curves_of(runs, LINK)
    assert curve.rounds == [2, 3]
    assert curve.megabytes == pytest.approx([2.0, 3.0])
    # 4 Mbit at 10 Mbit/s, 4 at 50, and 11 times 40 ms
    assert curve.link_s == pytest.approx([2 * 0.92, 3 * 0.92])
    assert curve.accuracy == pytest.approx([60.0, 85.0])
    assert curve.spread == pytest.approx([20 / 2**0.5, 10 / 2**0.5])
    assert curves_of([finished("a", None, 0, [None])], LINK) == []
    assert pictures([]) == {}


def test_figures_name_every_method_and_take_the_pages_colour(
    drawn: dict[str, Picture],
) -> None:
    assert set(drawn) == {
        "accuracy-vs-bytes",
        "accuracy-vs-time",
        "accuracy-vs-round",
        "final-accuracy-vs-bytes",
    }
    for name, picture in drawn.items():
        assert picture.png.startswith(b"\x89PNG")
        texts = [
            text.text for text in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")
        ]
        assert {f"method-{number}" for number in range(15)} <= set(texts)
        assert ("0.1/0.2 bits per entry up/down" in texts) == (
            name != "final-accuracy-vs-bytes"
        )
        assert "currentColor" in picture.svg
        assert "#010203" not in picture.svg


def test_methods_with_a_budget_each_share_a_panel() -> None:
    shared = [
        finished("a", (0.1, 0.2), 0, [0.5, 0.8]),
        finished("b", (0.2, 0.4), 0, [0.5, 0.7]),
    ]
    one = pictures(curves_of(shared, LINK))["accuracy-vs-round"].svg
    two = pictures(
        curves_of([*shared, finished("b", (0.1, 0.2), 0, [0.5, 0.6])], LINK)
    )["accuracy-vs-round"].svg
    assert [svg.count("bits per entry up/down") for svg in (one, two)] == [0, 2]


def test_the_same_runs_give_the_same_files() -> None:
    curves = curves_of(
        [finished("a", None, 0, [0.5, 0.8]), finished("b", (0.1, 0.2), 0, [0.5, 0.7])],
        LINK,
    )
    assert pictures(curves) == pictures(curves)


def test_methods_are_told_apart_without_colour(outcomes: Outcomes) -> None:
    methods = [curve.method for curve in curves_of(outcomes, LINK)]
    looks = looks_of(methods).values()
    assert len(looks) == 20
    for one, other in combinations(looks, 2):
        assert (
            sum(one[key] != other[key] for key in ("color", "marker", "linestyle")) >= 2
        )


def test_the_page_needs_nothing_else_and_runs_nothing_foreign(
    outcomes: Outcomes, drawn: dict[str, Picture]
) -> None:
    rows = rows_of(outcomes, LINK)
    runs = [run for run, _ in outcomes]
    text = page(
        "On <mnist>", "so & so", "<found>", runs, rows, drawn.values(), "<legend>"
    )
    assert not re.search(r"https?:|//[a-z]|@import|\burl\((?!#)", text)
    assert "<script>alert" not in text

    tags = re.findall(r"<(\w+)", text)
    assert tags.count("svg") == 4
    assert tags.count("script") == 1
    # two tables, and the methods' settings
    assert tags.count("tr") == 3 * (1 + 15 * 2 + 5 + 1)
    assert not {"link", "img", "iframe", "object", "image"} & set(tags)
    assert all(
        address.startswith("#")
        for address in re.findall(r"""(?:href|src)=["']([^"']*)""", text)
    )


def texts_of(picture: Picture) -> list[str]:
    svg = ElementTree.fromstring(picture.svg)
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    "megabytes", [(1.0, 1.5), (3.0, 8.0), (2.0, 70.0), (1.7, 190.0), (0.1, 900.0)]
)
def test_every_axis_over_bytes_has_several_ticks(
    megabytes: tuple[float, float],
) -> None:
    runs = []
    for name, total in zip("ab", megabytes, strict=True):
        run, outcome = finished(name, None, 0, [0.5, 0.8])
        assert outcome.results is not None
        for row in outcome.results["rounds"]:
            row["uplink_bytes"] = row["downlink_bytes"] = int(total * 1e6 / 4)
        runs.append((run, outcome))
    drawn = pictures(curves_of(runs, LINK))
    for name in ("accuracy-vs-bytes", "final-accuracy-vs-bytes"):
        svg = ElementTree.fromstring(drawn[name].svg)
        ticks = [
            text.text
            for group in svg.iter(f"{SVG}g")
            if group.get("id", "").startswith("xtick")
            for text in group.iter(f"{SVG}text")
        ]
        assert len([tick for tick in ticks if tick]) > 2, (name, ticks)


def test_the_target_has_a_line_in_every_figure() -> None:
    drawn = pictures(curves_of([finished("a", None, 0, [0.5, 0.8])], LINK), 0.75)
    assert all("target 75" in texts_of(picture) for picture in drawn.values())


def test_rounds_of_another_meaning_are_told_from_the_others() -> None:
    runs = [finished(name, None, 0, [0.5, 0.8]) for name in ("a", "b", "fedavg")]
    alike = texts_of(pictures(curves_of(runs, LINK))["accuracy-vs-round"])
    assert "round" in alike
    results = runs[2][1].results
    assert results is not None
    for row in results["rounds"]:
        link = next(iter(row["links"]["train"].values()))
        row["links"]["train"] = {str(device): link for device in range(20)}
    other = texts_of(pictures(curves_of(runs, LINK))["accuracy-vs-round"])
    assert (
        "round, in which one device trains; of fedavg: up to 20 devices train" in other
    )


def test_a_budget_is_named_with_the_methods_that_have_one() -> None:
    runs = [
        finished("a", (0.1, 0.2), 0, [0.5, 0.8]),
        finished("b", None, 0, [0.5, 0.7]),
    ]
    for picture in pictures(curves_of(runs, LINK)).values():
        texts = texts_of(picture)
        assert {"a 0.1/0.2", "b"} <= set(texts)
        assert not [text for text in texts if "bits per entry" in text]


@pytest.mark.parametrize(
    ("accuracies", "target", "found"),
    [
        ([], None, "No run was evaluated."),
        (
            [[0.5, 0.8], [0.9, 0.9]],
            0.8,
            (
                "b moved the fewest bytes to an accuracy of 80.0%, 1.00 MB: 2 times fewer "
                "than a. Its final accuracy is the highest, too, 90.0%."
            ),
        ),
        (
            [[0.7, 0.8], [0.1, 0.9], [0.1, 0.6]],
            0.7,
            (
                "a moved the fewest bytes to an accuracy of 70.0%, 1.00 MB: 2 times fewer "
                "than b. Its final accuracy is 80.0%; the highest is that of b, 90.0%."
            ),
        ),
        (
            [[0.1] * 129 + [0.8], [0.9]],
            0.8,
            (
                "b moved the fewest bytes to an accuracy of 80.0%, 1.00 MB: 130 times "
                "fewer than a. Its final accuracy is the highest, too, 90.0%."
            ),
        ),
        ([[0.5], [0.6]], 0.9, "The highest final accuracy is that of b, 60.0%."),
    ],
)
def test_the_headline_says_what_was_found(
    accuracies: list[list[float | None]], target: float | None, found: str
) -> None:
    runs = [
        finished(name, None, 0, each)
        for name, each in zip("abc"[: len(accuracies)], accuracies, strict=True)
    ]
    assert headline(rows_of(runs, LINK, target), target) == found


@pytest.mark.parametrize(
    ("best_metric", "found"),
    [
        ("highest r2", "The highest final r2 is that of b, 0.75."),
        ("lowest loss", "The lowest final loss is that of a, 0.5."),
        ("highest accuracy", NO_METRIC),
        ("", NO_METRIC),
        (
            "highest r3",
            (
                "No run measured an accuracy. As best-metric runs name r3, and have no "
                "number for it."
            ),
        ),
    ],
)
def test_the_headline_goes_by_the_metric_of_runs_without_accuracy(
    best_metric: str, found: str
) -> None:
    numbers = {"a": [(0.5, 0.25)], "b": [(0.9, 0.5), (1.0, 0.75)]}
    runs = [
        measured(name, 0, each, best_metric=best_metric)
        for name, each in numbers.items()
    ]
    assert headline(rows_of(runs, LINK), None) == found


def test_the_headline_compares_no_metrics_that_differ() -> None:
    runs = [
        measured("a", 0, [(0.5, 0.25)], best_metric="highest r2"),
        measured("b", 0, [(0.5, 0.25)], best_metric="lowest loss"),
    ]
    assert headline(rows_of(runs, LINK), None) == (
        "No run measured an accuracy. As best-metric runs name loss, r2, and not one "
        "for all."
    )


def test_settings_are_those_of_all_and_those_that_differ() -> None:
    configs = [{"seed": 0, "rate": 0.1, "codec": name} for name in ("a", "b")]
    runs = [Run(str(config["codec"]), config, None, "") for config in configs]
    assert common_settings(runs) == {"rate": 0.1}
    assert differing_settings(runs) == {"a": {"codec": "a"}, "b": {"codec": "b"}}


def test_settings_name_the_codec_that_a_method_has() -> None:
    """Whatever the run-config says to strategies that have their own, or none."""
    strategies = ("splitfc", "split-learning", "fedavg")
    configs = [{"strategy": name, "codec": "float32"} for name in strategies]
    runs = [Run(str(each["strategy"]), each, None, "") for each in configs]
    codecs = [each["codec"] for each in differing_settings(runs).values()]
    assert codecs == ["splitfc-rd", "float32", ""]
