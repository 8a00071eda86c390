"""Simulated links: the syntax, what devices draw, and times worked out by hand."""

from statistics import median

import pytest

from flwr_splitfc.compare.report.points import common_accuracy, points_of, rounds_of
from flwr_splitfc.compare.report.radio_link import RadioLink
from tests.compare.conftest import finished, numbers_of, row, traffic

MEGABIT = 125_000
LINK = RadioLink.parse("up=10,down=50,rtt=40")
DEVICES = [str(number) for number in range(400)]


def rate(link: RadioLink, device: str) -> float:
    """Mbit/s up."""
    return 1 / link.seconds(device, MEGABIT, 0, 0)


def test_a_devices_time_is_that_of_its_bytes_and_round_trips() -> None:
    assert LINK.seconds("0", 10 * MEGABIT, 0, 0) == pytest.approx(1.0)
    assert LINK.seconds("0", 0, 10 * MEGABIT, 0) == pytest.approx(0.2)
    assert LINK.seconds("0", 10 * MEGABIT, 10 * MEGABIT, 25) == pytest.approx(2.2)


def test_the_slower_direction_counts_of_bytes_that_overlap() -> None:
    """Beside a model of 1 megabit each way, 0.12 s, and three round trips, 0.12 s."""
    moved = {"up": 5 * MEGABIT, "down": 20 * MEGABIT}  # 0.5 s and 0.4 s
    all_bytes = [bytes_ + MEGABIT for bytes_ in moved.values()]
    assert LINK.seconds("0", *all_bytes, 3) == pytest.approx(0.9 + 0.24)
    assert LINK.seconds("0", *all_bytes, 3, *moved.values()) == pytest.approx(0.74)
    one_way = LINK.seconds("0", 5 * MEGABIT, 0, 1, 5 * MEGABIT, 0)
    assert one_way == pytest.approx(0.54)


def test_a_round_waits_for_its_slowest_device_and_evaluation_for_training() -> None:
    # 1.0, 0.2 + 1.2, 0.04 s
    train = {"0": [10 * MEGABIT, 0, 0], "1": [0, 10 * MEGABIT, 30], "2": [0, 0, 1]}
    evaluate = {"0": [0, 50 * MEGABIT, 2]}  # 1.08 s
    assert LINK.round_s({"train": train, "evaluate": {}}) == pytest.approx(1.4)
    assert LINK.round_s({"train": train, "evaluate": evaluate}) == pytest.approx(2.48)
    assert LINK.round_s({"train": {}, "evaluate": {}}) == 0.0


def test_time_to_accuracy_ends_with_the_first_evaluation_that_reaches_it() -> None:
    moved = {"train": {"0": [10 * MEGABIT, 0, 0]}, "evaluate": {}}  # 1 s a round
    rounds = [
        {**row(number, accuracy, 2.0), "links": moved}
        for number, accuracy in enumerate([None, 0.5, 0.9, 0.8], 1)
    ]
    results = {"rounds": rounds, "traffic": traffic()}
    assert [
        point.link_s for point in points_of(rounds_of(results), LINK)
    ] == pytest.approx([1, 2, 3, 4])
    numbers = numbers_of(results, LINK, target=0.8)
    assert (numbers["target_bytes"], numbers["target_link_s"]) == (
        6_000_000,
        pytest.approx(3),
    )
    assert numbers["link_s"] == pytest.approx(4)
    never = numbers_of(results, LINK, target=0.95)
    assert never["target_bytes"] is never["target_link_s"] is None


def test_the_common_accuracy_is_one_that_all_runs_reached() -> None:
    runs = [
        finished("a", None, 0, [0.5, 0.8765, 0.7])[1],
        finished("b", None, 0, [0.9, None])[1],
    ]
    assert common_accuracy(rounds_of(run.results or {}) for run in runs) == 0.876
    assert common_accuracy([rounds_of({"rounds": [row(1, None, 1.0)]})]) is None


def test_devices_draw_by_their_names_and_the_seed_alone() -> None:
    link, again = (
        RadioLink.parse("up=uniform:2:20,rtt=lognormal:30:0.4,seed=3") for _ in range(2)
    )
    traffics = [(device, 10_000, 20_000, 7) for device in DEVICES]
    assert [link.seconds(*moved) for moved in traffics] == [
        again.seconds(*moved) for moved in reversed(traffics)
    ][::-1]
    other_rtt, other_seed = (
        RadioLink.parse("up=uniform:2:20,seed=3"),
        RadioLink.parse("up=uniform:2:20,seed=4"),
    )
    assert [rate(link, device) for device in DEVICES] == [
        rate(other_rtt, device) for device in DEVICES
    ]
    assert [rate(link, device) for device in DEVICES] != [
        rate(other_seed, device) for device in DEVICES
    ]
    # for ever
    assert rate(RadioLink.parse("up=uniform:2:20"), "kitchen") == pytest.approx(
        17.184, abs=0.001
    )


def test_what_is_drawn_has_the_distribution_asked_for() -> None:
    uniform = [rate(RadioLink.parse("up=uniform:2:20"), device) for device in DEVICES]
    assert 2 <= min(uniform) < 3 < 19 < max(uniform) <= 20
    lognormal = sorted(
        rate(RadioLink.parse("up=lognormal:10:0.5"), device) for device in DEVICES
    )
    assert median(lognormal) == pytest.approx(10, rel=0.1)
    # exp(0.5), one deviation above
    assert lognormal[336] == pytest.approx(10 * 1.6487, rel=0.1)


def test_a_link_is_read_as_it_is_written() -> None:
    text = "up=uniform:2:20,down=lognormal:50:0.5,rtt=0,seed=7"
    assert str(RadioLink.parse(text)) == text
    assert RadioLink.parse("rtt=80") == RadioLink.parse(
        "seed=0, down=50, rtt=80, up=10"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "a link is written like up=10"),
        ("10/50/40", "a link is written like up=10"),
        ("up=1,up=2", "nothing twice"),
        ("up", "'' is not N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"),
        ("up=fast", "'fast' is not N"),
        ("up=normal:1:2", "'normal:1:2' is not N"),
        ("up=uniform:2", "'uniform:2' is not N"),
        ("up=uniform:20:2", "has LOW above HIGH"),
        ("up=lognormal:10:800", "has SIGMA above 10"),
        ("up=nan", "'nan' is not N"),
        ("down=inf", "'inf' is not N"),
        ("rtt=-1", "'-1' is not N"),
        ("up=0", "rates above 0"),
        ("down=uniform:0:5", "rates above 0"),
        ("seed=x", "whole number"),
    ],
)
def test_links_that_are_none_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RadioLink.parse(text)
