"""What the targets share: how they are run, and what is an error in all of them."""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

SEEDS = 64
SEED_BYTES = 400

Target = Callable[[bytes], None]


def instrumented(*packages: str) -> AbstractContextManager[None]:
    """Count the branches of these packages, which the block imports, if atheris is there."""
    try:
        import atheris
    except ImportError:
        return nullcontext()
    return atheris.instrument_imports(
        include=list(packages), enable_loader_override=False
    )


def random_inputs(count: int, seed: int = 0) -> Iterator[bytes]:
    """Inputs of up to `SEED_BYTES` bytes, the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        yield draw.randbytes(draw.randrange(SEED_BYTES))


def fuzz(target: Target) -> None:
    """Run a target until an input fails, or as long as libFuzzer's options say."""
    import atheris
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(random_inputs(SEEDS)):
            (Path(corpus) / str(number)).write_bytes(data)
        options = [f"-max_len={2 * SEED_BYTES}", "-timeout=60", "-rss_limit_mb=3072"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:], corpus], target)
        atheris.Fuzz()


class ForeignError(AssertionError):
    """An error that is none of this package's own came as far as the log."""


class _Watch(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += logging.Formatter().formatException(record.exc_info)
            self.found.append(text)
        # what devices tell must not move a terminal's cursor
        elif not all(line.isprintable() for line in text.split("\n")):
            self.found.append(f"raw in the log: {text!r}")


@contextmanager
def watched_log() -> Iterator[None]:
    """Keep the block's log off the screen, and fail where it tells of foreign errors.

    Raises
    ------
    ForeignError
    """
    logger = logging.getLogger("flwr")
    watch = _Watch()
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [watch], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
    if watch.found:
        raise ForeignError("\n".join(watch.found))
