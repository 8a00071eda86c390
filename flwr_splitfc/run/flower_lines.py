"""Flower's own log lines of a strategy, at debug level."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.serverapp import strategy

_STRATEGIES = Path(strategy.__file__).parent

_TOLD = re.compile(r"Privacy spent|.*Skipping aggregation")
"""What no line of a run's own says: of strategies for differential privacy."""


class _AtDebugLevel(logging.Filter):
    """Takes the level from lines of Flower's strategies: a run has a line of its own.

    For each round those say what was sampled, what came back, and all metrics; at the
    end all metrics of all rounds. ``FLWR_LOG_LEVEL=DEBUG`` shows them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every line through; handlers go by its level."""
        is_strategys = Path(record.pathname).parent == _STRATEGIES
        is_told = _TOLD.match(str(record.msg)) is not None
        if is_strategys and record.levelno == logging.INFO and not is_told:
            record.levelno = logging.DEBUG
            record.levelname = logging.getLevelName(logging.DEBUG)
        return True


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Keep Flower's lines of rounds and results at debug level in the block."""
    logger = logging.getLogger("flwr")
    at_debug_level = _AtDebugLevel()
    logger.addFilter(at_debug_level)
    try:
        yield
    finally:
        logger.removeFilter(at_debug_level)
