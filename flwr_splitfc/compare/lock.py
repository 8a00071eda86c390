"""The lock on a comparison's folder."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 20.0
_POLL_S = 0.1


@contextmanager
def held(folder: Path) -> Iterator[int | None]:
    """Hold a folder, which is made if it is missing.

    Workers hold it, too, through the same file descriptor: those of a comparison that
    was killed may need a moment to end.

    Yields
    ------
    int or None
        The descriptor, for the workers; None if somebody else holds the folder.

    Raises
    ------
    ValueError
        If it is no folder, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ValueError(
            f"--out {folder} is no folder to write into: {error}"
        ) from error
    try:
        yield descriptor if _locked(descriptor) else None
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    import fcntl  # not on Windows, where `rerun` shall work all the same

    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
