"""The list of codecs that a person reads."""

import os
import sys
from pathlib import Path

import pytest

from flwr_splitfc.codec import codec_names
from flwr_splitfc.command import main


def test_every_codec_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codecs"]) == 0
    heading, rule, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["codec", "selector", "quantiser", "settings"]
    assert set(rule) == {"-"}
    assert [line.split()[0] for line in lines[: len(codec_names())]] == codec_names()
    (rand_top_s,) = [line for line in lines if line.startswith("rand-top-s")]
    assert rand_top_s.split()[1:4] == ["RandomTopEntries", "Float16", "alpha=0.1"]
    assert "at random" in rand_top_s
    (splitfc_rd,) = [line for line in lines if line.startswith("splitfc-rd")]
    own = {"quality=0.0", "uplink-bits=32.0", "downlink-bits=32.0"}
    assert set(splitfc_rd.split()[3:6]) == own
    shared = "All have also, unless their line says otherwise: uplink-bits=0.2"
    assert lines[-1].startswith(shared)


def test_the_help_of_compare_names_every_codec(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(codec_names()) <= set(words)


def test_a_reader_that_ends_early_ends_the_command_as_sigpipe_does(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in ``flwr-splitfc codecs | head -1``."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["codecs"]) == 141
    assert capfd.readouterr().err == ""


def test_a_full_disk_is_a_complaint(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["codecs"]) == 1
    assert capfd.readouterr().err.startswith("flwr-splitfc: [Errno 28]")


def test_a_closed_stdout_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["codecs"]) == 0
