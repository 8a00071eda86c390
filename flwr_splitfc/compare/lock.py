"""The lock on a comparison's folder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flwr_splitfc.run.held_folder import FolderInUse, lock_folder

_PATIENCE_S = 20.0
_POLL_S = 0.1


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Hold a folder, which is made if it is missing.

    Workers hold it, too, through the same file descriptor: those of a comparison that
    was killed may need a moment to end.

    Yields
    ------
    int
        The descriptor, for the workers.

    Raises
    ------
    ValueError
        If it is no folder, cannot be written, or somebody else holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise ValueError(
            f"--out {folder} is no folder to write into: {error}"
        ) from error
    with file:
        _lock(file, folder)
        yield file.fileno()


def _lock(file: IO[str], folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            lock_folder(file, folder)
            return
        except FolderInUse as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"another comparison is at work in {folder}"
                ) from error
            time.sleep(_POLL_S)
