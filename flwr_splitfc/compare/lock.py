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
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise ValueError(
            f"--out {folder} is no folder to write into: {error}"
        ) from error
    with file:
        yield file.fileno() if _locked(file, folder) else None


def _locked(file: IO[str], folder: Path) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            lock_folder(file, folder)
            return True
        except FolderInUse:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
