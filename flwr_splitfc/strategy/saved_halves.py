"""The trained halves as files, for ``torch.load(..., weights_only=True)``."""

from collections.abc import Mapping
from io import BytesIO
from logging import getLogger
from pathlib import Path

import torch
from torch import Tensor

from flwr_splitfc.model import joined_state_dict
from flwr_splitfc.model.joined import on_cpu
from flwr_splitfc.run.whole_file import whole_files

logger = getLogger("flwr")


def save_halves(
    folder: Path,
    device: Mapping[str, Tensor],
    server: Mapping[str, Tensor],
    *,
    has_tail: bool,
) -> None:
    """Write the halves' state dicts and their merge; see `SplitLearning.save`.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    device, server : mapping of str to Tensor
        The halves' entries.
    has_tail : bool
        Whether the device half is a `HeadAndTail`, whose entries have names of their
        own.

    Raises
    ------
    OSError
        If one cannot be written: all of them stay as they were. If one cannot be
        replaced, as a folder.
    """
    device_entries = _on_cpu(device)
    server_entries = _on_cpu(server)
    files = {
        "device.pt": device_entries,
        "server.pt": server_entries,
        "joined.pt": joined_state_dict(device_entries.items(), server_entries.items()),
    }
    # a name that both halves have cannot be told apart without its prefix
    if not has_tail and device_entries.keys().isdisjoint(server_entries):
        files["unsplit.pt"] = {**device_entries, **server_entries}

    _save_files(folder, files)
    logger.debug("Saved %s in %s", ", ".join(files), folder)


def save_whole(folder: Path, model: Mapping[str, Tensor]) -> None:
    """Write the state dict of a model that was never cut, as ``joined.pt``.

    Raises
    ------
    OSError
    """
    _save_files(folder, {"joined.pt": _on_cpu(model)})


def _save_files(folder: Path, entries_by_name: Mapping[str, dict[str, Tensor]]) -> None:
    paths = [folder / name for name in entries_by_name]
    # a file of this round beside one of another would be no model
    with whole_files(paths) as files:
        for file, entries in zip(files, entries_by_name.values(), strict=True):
            # where torch writes the file itself, a full disk is a RuntimeError of its
            # archive
            content = BytesIO()
            torch.save(entries, content)
            file.write(content.getbuffer())


def _on_cpu(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: on_cpu(entry) for name, entry in entries.items()}
