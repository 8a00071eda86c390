"""The ``flwr-splitfc`` command."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

import flwr_splitfc
from flwr_splitfc.compare import codecs, compare
from flwr_splitfc.leakage import leakage
from flwr_splitfc.run import rerun
from flwr_splitfc.run.complaint import complain

_INTERRUPTED = 130  # the exit status after Ctrl-C
_UNREAD = 141  # after SIGPIPE, which Python makes an error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand, and return the exit status."""
    _print_any_letter()
    parser = argparse.ArgumentParser(
        prog="flwr-splitfc", description="Tools for split learning in Flower."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"flwr-splitfc {flwr_splitfc.__version__}",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for subcommand in (compare, leakage, rerun, codecs):
        subcommand.add_to(commands)
    options, further = parser.parse_known_args(arguments)
    # Only `rerun` hands options on, to `flwr run`.
    if further and options.command is not rerun.main:
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    options.further = further
    # for `compare --leakage`; `compare` itself is below `leakage`
    options.attack = leakage.attack
    try:
        status: int = options.command(options)
        _flush()
    except KeyboardInterrupt:
        complain("stopped")
        return _INTERRUPTED
    except BrokenPipeError:
        status = _UNREAD
        _drop_output()
    except OSError as error:
        complain(str(error))
        status = 1
        _drop_output()
    return status


def _print_any_letter() -> None:
    """Print a question mark for what stdout's encoding lacks, as ASCII lacks ±."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _flush() -> None:
    if sys.stdout is not None:  # as it is where the shell has closed it
        sys.stdout.flush()


def _drop_output() -> None:
    """Lose what stdout cannot take, or Python would complain of it as it ends."""
    try:
        _flush()
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
