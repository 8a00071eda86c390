"""A lock on the checkpoint's folder: two runs would replace each other's rounds."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import IO

from flwr_splitfc.strategy.checkpoint import CheckpointError

_FILE = ".lock"

logger = getLogger("flwr")


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs.

    The system lets go of the lock when the process ends, however it does.

    Parameters
    ----------
    folder : Path or None
        Made if it is missing; None locks nothing.

    Raises
    ------
    CheckpointError
        If another run has it.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _FILE).open("w") as file:
        _lock(file, folder)
        yield


def _lock(file: IO[str], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(
            f"another run writes its checkpoint in {folder}: give each run its own"
        ) from error
    except OSError as error:
        # some network file systems have none
        logger.warning("%s cannot be locked: %s", folder, error)
