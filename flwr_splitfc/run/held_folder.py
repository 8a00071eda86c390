"""A folder that one run at a time writes into."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

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


@contextmanager
def held_folder(folder: Path, file_name: str = ".lock") -> Iterator[None]:
    """Keep other runs out of a folder while the block runs.

    The system lets go of the lock when the process ends, however it does.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    file_name : str (default: ".lock")
        Of the lock in it: a run may hold a folder for several purposes, each by one.

    Raises
    ------
    FolderInUse
        If another run has it.
    ValueError
        As `check_writable`.
    """
    check_writable(folder)
    with _named(folder):
        file = (folder / file_name).open("w")
    with file:
        lock_folder(file, folder)
        yield


def lock_folder(file: IO[str], folder: Path) -> None:
    """Lock a folder by an open file in it, until that is closed.

    A system without such locks leaves it unlocked, with a warning if that is the file
    system's.

    Raises
    ------
    FolderInUse
        If another run has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderInUse(str(folder)) from error
    except OSError as error:
        # some network file systems have none
        logger.warning("%s cannot be locked: %s", folder, error)
