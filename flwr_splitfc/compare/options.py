"""The command line of ``flwr-splitfc compare``."""

import argparse
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr_splitfc.codec import codec_names
from flwr_splitfc.compare.flower_app import parse_setting
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.run_plan import parse_budget
from flwr_splitfc.compare.runs import Budget

_USUAL_JOBS = 2  # device and server of a run wait for each other
_LINE_LETTERS = 88

DESCRIPTION = """\
Run strategies on one app, in as many simulations side by side as --jobs says, and write
a table and figures of accuracy against bytes. What is finished is not run again: the
same command, given again, goes on where it stopped.
"""
_EPILOG = """\
Settings: the app's defaults give way to --config, that to the strategy's file, that to
--budgets, --seeds and --set. Methods without a cut (fedavg) and codecs of fixed
precision (float32) run once for all budgets. A codec's name alone stands for the
strategy "split-learning" with that codec.

{codecs}

example:
  flwr-splitfc compare strategies/splitfc.toml strategies/split-learning.toml top-s \\
      --app examples/mnist --seeds 0,1,2
"""


def epilog() -> str:
    """Write what stands below the options, the names of the codecs among it."""
    codecs = f"codecs (`flwr-splitfc codecs`): {', '.join(codec_names())}"
    wrapped = textwrap.fill(codecs, _LINE_LETTERS, break_on_hyphens=False)
    return _EPILOG.format(codecs=wrapped)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    _add_methods(parser)
    _add_settings(parser)
    _add_making(parser)
    _add_report(parser)


def _add_methods(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "methods",
        nargs="*",
        metavar="FILE|CODEC",
        help="run-configs (TOML), one per strategy, or names of codecs",
    )
    parser.add_argument(
        "--app", type=Path, required=True, help="the Flower app, as for `flwr run`"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every TOML file on the shelf, and every codec that has none there",
    )
    parser.add_argument(
        "--shelf", type=Path, metavar="DIR", help="for --all; default: ./strategies"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=_parsed(parse_seeds),
        metavar="0,1,2",
        help="a run for each; default: the app's seed",
    )
    parser.add_argument(
        "--budgets",
        type=_parsed(parse_budgets),
        metavar="0.1,0.2/0.4",
        help="bits per entry up, or up/down; down is twice up",
    )
    parser.add_argument("--dataset", help="the app's setting `dataset`")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="the app's setting `data-dir`"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a run-config (TOML) under all strategies",
    )
    parser.add_argument(
        "--set",
        type=_parsed(parse_setting),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of all runs",
    )


def _add_making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("comparison"),
        metavar="DIR",
        help="default: ./comparison",
    )
    parser.add_argument(
        "--jobs",
        type=_parsed(parse_count),
        default=min(_USUAL_JOBS, os.cpu_count() or 1),
        metavar="N",
        help="simulations side by side; default: 2",
    )
    parser.add_argument(
        "--federation-config",
        default="",
        metavar="TEXT",
        help="as for `flwr run`; default: the app's num-devices",
    )
    parser.add_argument(
        "--no-checkpoints",
        action="store_true",
        help="start interrupted runs anew instead of in their middle",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="show the runs and what is done, run nothing",
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--link",
        type=_parsed(RadioLink.parse),
        default=RadioLink(),
        metavar="up=10,down=50,rtt=40",
        help="simulated: Mbit/s and ms, each N, uniform:LOW:HIGH or "
        "lognormal:MEDIAN:SIGMA over devices",
    )
    parser.add_argument(
        "--target",
        type=_parsed(parse_percent),
        metavar="90",
        help="accuracy in percent; default: what all runs reached",
    )
    parser.add_argument(
        "--leakage",
        type=_parsed(parse_count),
        metavar="STEPS",
        help="attack what runs' features give away, as `flwr-splitfc leakage` does "
        "with so many steps, such as 1500",
    )


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap `parse` so that argparse shows the message of its error."""

    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument


def parse_seeds(text: str) -> list[int]:
    """Parse seeds with commas between."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"seeds are whole numbers with commas between, got {text!r}"
        ) from error


def parse_budgets(text: str) -> list[Budget]:
    """Parse budgets with commas between."""
    return [parse_budget(part) for part in text.split(",")]


def parse_percent(text: str) -> float:
    """Parse an accuracy in percent; it comes back between 0 and 1."""
    percent = float(text)
    if not 1 <= percent <= 100:
        raise ValueError(f"an accuracy in percent is wanted, 1 to 100, got {text!r}")
    return percent / 100


def parse_count(text: str) -> int:
    """Parse a whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"wanted a whole number, 1 or more, got {text!r}")
    return int(text)
