"""The transformer's example: real text, its parts, and labels for every character."""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flwr_splitfc.apps.client_app import accuracy
from splittext import client_app, server_app
from splittext.task import (
    evaluate_on_test_topics,
    load_data,
    make_device_half,
    make_server_half,
    make_tail,
)
from splittext.text import device_windows, encode, held_out_windows, training_topics
from tests.local_grid import LocalGrid

SMALL = {"width": 16, "context-length": 12, "num-devices": 3, "batch-size": 8}


def context(device: int = 0, **config: Any) -> Context:
    return Context(1, 1, {"partition-id": device}, RecordDict(), SMALL | config)


def test_every_topic_is_on_one_device_or_held_out() -> None:
    shares = [device_windows({"num-devices": 20}, device).text for device in range(20)]
    held_out = held_out_windows({}).text
    texts = [bytes(text.tolist()) for text in (*shares, held_out)]
    for name, text in topics.items():
        piece = text.encode("ascii", "replace")
        assert sum(piece in whole for whole in texts) >= 1, name
        assert (name in training_topics()) != (piece in texts[-1]), name
    assert 0.05 < len(held_out) / sum(map(len, texts)) < 0.3


def test_labels_are_the_characters_that_follow() -> None:
    windows = device_windows(SMALL, 1)
    characters, labels = windows[torch.arange(len(windows))]
    assert characters.shape == labels.shape == (len(windows), 12)
    assert torch.equal(characters[:, 1:], labels[:, :-1])
    assert torch.equal(characters[1:, 0], labels[:-1, -1])
    assert torch.equal(characters.flatten(), windows.text[: characters.numel()].long())
    assert encode("naïve → ok").tolist() == list(b"na?ve ? ok")


@pytest.mark.parametrize(
    ("settings", "device", "error"),
    [
        ({}, 3, "device 3 has no share: num-devices is 3"),
        ({"num-devices": 500}, 0, "num-devices is 500, and there are"),
        ({"context-length": 10**6}, 0, "context-length is 1000000"),
        ({"context-length": 0}, 0, "context-length is 0, wanted 1 or more"),
        ({"width": 10}, 0, "width is 10, wanted a multiple of heads, 4"),
    ],
)
def test_settings_that_are_wrong_are_named(
    settings: dict[str, Any], device: int, error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        load_data(context(device, **settings))
        make_device_half(context(device, **settings))


def test_the_cut_is_between_blocks_and_no_character_sees_the_next() -> None:
    whole = nn.Sequential(
        make_device_half(context()), make_server_half(context())
    ).eval()
    characters = torch.randint(128, (5, 12))
    assert whole[0](characters).shape == (5, 12, 16)
    scores = whole(characters)
    assert scores.shape == (5, 128, 12)
    assert accuracy(scores, characters).keys() == {"eval_acc"}
    characters[:, 7] += 1
    changed = (whole(characters.remainder(128)) - scores).abs().amax((0, 1)) > 1e-6
    assert changed.tolist() == 7 * [False] + 5 * [True]


def test_the_last_layers_are_the_servers_or_the_devices() -> None:
    features = make_device_half(context())(torch.randint(128, (5, 12)))
    middle = make_server_half(context(**{"u-shaped": True}))
    assert middle(features).shape == features.shape
    assert make_tail(context())(middle(features)).shape == (5, 128, 12)


def test_it_learns_that_most_characters_are_not_random(tmp_path: Path) -> None:
    """In one process, through float32: scores for each character, and the held-out topics."""
    config = SMALL | {
        "strategy": "split-learning",
        "num-rounds": 4,
        "evaluate-every": 2,
        "steps-per-turn": 30,
    }
    config |= {
        "learning-rate": 1e-2,
        "evaluate-on-devices": False,
        "results-dir": str(tmp_path),
        "u-shaped": False,
    }
    grid = LocalGrid(client_app.app, 3, workers=1)
    for node in grid.contexts.values():
        node.run_config = config
    server_app.app(grid, Context(1, 1, {}, RecordDict(), config))
    results = json.loads((tmp_path / "results.json").read_text())
    # 0.24 to 0.28 over ten seeds and two thread counts; always a space: 0.17
    assert results["rounds"][3]["accuracy"] > 0.2
    # 2.8 to 2.9, after 3.5 to 3.7
    assert results["rounds"][3]["loss"] < 3.2 < results["rounds"][0]["loss"]


def test_evaluation_is_for_each_character() -> None:
    class Spaces(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(128)[ord(" ")].expand(*x.shape, 128).transpose(1, 2)

    text = held_out_windows(SMALL).text
    spaces = (text == ord(" ")).double().mean().item()
    assert evaluate_on_test_topics(Spaces(1, 1), context())[
        "accuracy"
    ] == pytest.approx(spaces, abs=1e-3)
