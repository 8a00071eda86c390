"""Files that are replaced whole or not at all."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        If it cannot be written; it names the file.
    """
    try:
        with whole_files([path]) as (file,):
            yield file
    except OSError as error:
        # that of a full disk names none; without a number only its own text is shown
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[Sequence[BinaryIO]]:
    """Give files to write, which replace those of `paths` when the block ends.

    None is replaced before all are written: an error until then, such as a full disk,
    leaves all old files. They are replaced one by one.

    Parameters
    ----------
    paths : sequence of Path
        As in `whole_file`.

    Raises
    ------
    OSError
        If one cannot be written.
    """
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    news = [path.with_name(f".{path.name}.new") for path in paths]
    try:
        with ExitStack() as opened:
            files = [opened.enter_context(new.open("wb")) for new in news]
            yield files
            # renamed once they are on the disk
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for new, path in zip(news, paths, strict=True):
            new.replace(path)
    except BaseException:
        # they may hold what space there was
        for new in news:
            new.unlink(missing_ok=True)
        raise
