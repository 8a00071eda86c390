"""The file that a run goes on from: written whole or not at all, checked when read.

It is ``checkpoint.bin`` in a folder of the run's: a line of text that names the format,
the CRC-32 of what follows (4 bytes, little-endian), and what `torch.save` makes of the
state.
"""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from flwr_splitfc.run.whole_file import whole_file

SCHEMA = 1
_MAGIC = b"flwr-splitfc checkpoint\n"
_CRC_BYTES = 4
_FILE = "checkpoint.bin"


class CheckpointError(ValueError):
    """A checkpoint cannot be used.

    It is damaged, foreign, of another version, or of another run.
    """


def checkpoint_path(folder: Path) -> Path:
    """Return the path of the one file that a checkpoint folder holds."""
    return folder / _FILE


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder` by `state`.

    A process that is killed meanwhile leaves the one before, and so does a full disk.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    state : dict
        Of what `read_back` gives back.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    body = _body_of({"schema": SCHEMA, **state})
    with whole_file(checkpoint_path(folder)) as file:
        file.write(_MAGIC)
        file.write(_checksum(body))
        file.write(body)


def read_back(state: Any) -> Any:
    """Return a state as it would come back from a file.

    Those of numbers, strings, bytes, None, tensors, and lists, tuples and dicts of them
    do.

    Raises
    ------
    Exception
        If it cannot be written, or not be read.
    """
    return _state_of(_body_of(state))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return what `save_checkpoint` left in `folder`; None if there is nothing yet.

    No code in the file is run (``weights_only``).

    Raises
    ------
    CheckpointError
        If the file cannot be read, is not a checkpoint, is damaged, or was written by
        another version.
    """
    path = checkpoint_path(folder)
    if not path.exists():
        return None
    body = _checked_body(path)
    _check_uncompressed(path, body)
    try:
        state = _state_of(body)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    # an older version's states may lack what this one restores
    schema = state.get("schema") if isinstance(state, dict) else None
    # a tensor would be neither the same nor another
    if type(schema) is not int or schema != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {schema!r:.20}, this version reads {SCHEMA}"
        )
    return dict(state)


def _body_of(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # a view of the buffer, in the traceback of a full disk, crashes CPython 3.12.1
    return buffer.getvalue()


def _state_of(body: bytes) -> Any:
    # indices of a sparse tensor may lie beyond its memory
    with torch.sparse.check_sparse_tensor_invariants():
        return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")


def _checked_body(path: Path) -> bytes:
    """Return the bytes that `torch.save` made, if they are those that were written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not data.startswith(_MAGIC):
        raise CheckpointError(f"{path} is not a checkpoint of flwr-splitfc")
    begin = len(_MAGIC) + _CRC_BYTES
    checksum = data[len(_MAGIC) : begin]
    body = data[begin:]
    if _checksum(body) != checksum:
        raise CheckpointError(
            f"{path} is damaged: its {len(data)} bytes are not those that were written"
        )
    return body


def _check_uncompressed(path: Path, body: bytes) -> None:
    """Refuse an archive that would take more memory than its file has bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    # as torch.save writes them
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} is compressed, as no checkpoint is")
    if sum(entry.file_size for entry in entries) > len(body):
        raise CheckpointError(f"{path} holds parts that overlap")


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "little")
