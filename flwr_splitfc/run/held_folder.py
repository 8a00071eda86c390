"""A folder that one run at a time writes into."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

PATIENCE_S = 20.0
"""How long a run waits for one that was ended, and whose processes end a bit later."""

_POLL_S = 0.1

logger = getLogger("flwr")


class FolderInUse(RuntimeError):
    """Another run holds the folder."""


def check_writable(folder: Path) -> None:
    """Refuse what is no folder to write files into; it is made if it is missing.

    Raises
    ------
    ValueError
        It names the folder.
    """
    with _named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # rights do not tell: a file system may be read-only
        with TemporaryFile(dir=folder):
            pass


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{folder} is no folder to write into: {error}") from error


def end_of_patience() -> float:
    """Return until when to wait for a folder, by `time.monotonic`."""
    return time.monotonic() + PATIENCE_S


@contextmanager
def held_folder(
    folder: Path, file_name: str = ".lock", until: float | None = None
) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs.

    The system lets go of the lock when the process has ended, however it did, and the
    processes that it forked have, too: they share the lock. The workers of a
    `DataLoader` take a few seconds to notice that their process was killed.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    file_name : str (default: ".lock")
        Of the lock in it: a run may hold a folder for several purposes, each by one.
    until : float, optional
        As in `lock_folder`; by default `end_of_patience`.

    Raises
    ------
    FolderInUse
        If another run has it, and keeps it.
    ValueError
        As `check_writable`.
    """
    check_writable(folder)
    with _named(folder):
        file = (folder / file_name).open("w")
    with file:
        lock_folder(file, folder, end_of_patience() if until is None else until)
        yield


def lock_folder(file: IO[str], folder: Path, until: float) -> None:
    """Lock a folder by an open file in it, until that is closed.

    A system without such locks leaves it unlocked, with a warning if that is the file
    system's.

    Parameters
    ----------
    file : text file
    folder : Path
    until : float
        How long to wait for another run that has it, by `time.monotonic`.

    Raises
    ------
    FolderInUse
        If another run still has it then.
    """
    try:
        waits = False
        while not _try_lock(file):
            if time.monotonic() >= until:
                raise FolderInUse(str(folder))
            if not waits:
                logger.info("Waits for the end of another run in %s", folder)
            waits = True
            time.sleep(_POLL_S)
    except OSError as error:
        # some network file systems have none
        logger.warning("%s cannot be locked: %s", folder, error)


def _try_lock(file: IO[str]) -> bool:
    """Lock a file unless somebody else has; return whether it is locked."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
