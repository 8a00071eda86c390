"""The lock on a comparison's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr_splitfc.run.held_folder import FolderInUse, end_of_patience, lock_folder


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
        try:
            lock_folder(file, folder, end_of_patience())
        except FolderInUse as error:
            raise ValueError(f"another comparison is at work in {folder}") from error
        yield file.fileno()
