"""A lock on the checkpoint's folder: two runs would replace each other's rounds."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flwr_splitfc.run.held_folder import FolderInUse, held_folder
from flwr_splitfc.strategy.checkpoint import CheckpointError

# another one than that of results: both may go into one folder
_FILE = ".checkpoint.lock"


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs.

    Parameters
    ----------
    folder : Path or None
        As in `held_folder`; None locks nothing.

    Raises
    ------
    CheckpointError
        If another run has it, and keeps it, or it is no folder to write into.
    """
    with ExitStack() as lock:
        if folder is not None:
            try:
                lock.enter_context(held_folder(folder, _FILE))
            except FolderInUse as error:
                raise CheckpointError(
                    f"another run writes its checkpoint in {folder}: "
                    "give each run its own"
                ) from error
            except ValueError as error:
                raise CheckpointError(f"checkpoint (checkpoint-dir): {error}") from None
        yield
