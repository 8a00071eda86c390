"""A bar of a run's rounds below its log lines, where these go to a terminal."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from flwr_splitfc.run.rounds import Standing

_Handler: TypeAlias = "logging.StreamHandler[TextIO]"

_LOGGER = logging.getLogger("flwr")


class _RoundBar(logging.Handler):
    """Moves the bar with each round that is logged."""

    def __init__(self, bar: Progress, num_rounds: int, done: int) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("round", total=num_rounds, completed=done)

    def emit(self, record: logging.LogRecord) -> None:
        """Move on, if the record is of a round."""
        standing = getattr(record, "standing", None)
        if isinstance(standing, Standing):
            self._bar.update(self._task, completed=standing.last.round)


@contextmanager
def round_bar(
    num_rounds: int, done: int, console: Console | None = None
) -> Iterator[None]:
    """Show a bar in the block; where the output is no terminal, show none.

    Parameters
    ----------
    num_rounds, done : int
        Rounds of the run, and those that are over.
    console : Console, optional
        Default: the standard error stream, where Flower logs.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal or console.is_jupyter:
        yield
        return
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    stderr = sys.stderr
    with Progress("round", *columns, console=console, transient=True) as bar:
        handler = _RoundBar(bar, num_rounds, done)
        _LOGGER.addHandler(handler)
        # rich took its place, to write lines above the bar
        moved = _move_handlers(stderr, sys.stderr)
        try:
            yield
        finally:
            for other in moved:
                other.setStream(stderr)
            _LOGGER.removeHandler(handler)


def _move_handlers(before: TextIO, now: TextIO) -> list[_Handler]:
    """Let the log's handlers that write to one stream write to another."""
    moved = []
    for handler in _LOGGER.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(now)
            moved.append(handler)
    return moved
