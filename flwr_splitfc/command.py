"""The ``flwr-splitfc`` command."""

import argparse
from collections.abc import Sequence

import flwr_splitfc
from flwr_splitfc.compare import codecs, compare
from flwr_splitfc.leakage import leakage
from flwr_splitfc.run import rerun
from flwr_splitfc.run.complaint import complain

_INTERRUPTED = 130  # the exit status after Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand, and return the exit status."""
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
    except KeyboardInterrupt:
        complain("stopped")
        return _INTERRUPTED
    return status
