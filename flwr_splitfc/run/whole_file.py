"""Files that are replaced whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which replaces `path` when the block ends.

    A process that is killed meanwhile leaves the old file, and so does an error in the
    block, such as a full disk.

    Parameters
    ----------
    path : Path
        Its folder is made if it is missing.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            yield file
            # renamed once it is on the disk
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        # it may hold what space there was
        new.unlink(missing_ok=True)
        raise
