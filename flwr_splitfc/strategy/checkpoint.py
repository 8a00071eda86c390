"""A run's state on disk, whole or not at all."""

import io
import os
import random
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    Strategy,
)

from flwr_splitfc.strategy.round_robin import RoundRobin

SCHEMA = 1
_MAGIC = b"flwr-splitfc checkpoint\n"
_CRC_BYTES = 4
_FILE = "checkpoint.bin"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, foreign, of another version, or of another run."""


def checkpoint_path(folder: Path) -> Path:
    """The one file that a checkpoint folder holds."""
    return folder / _FILE


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder` by `state`; a process killed meanwhile leaves the one before.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    state : dict
        Numbers, strings, bytes, None, tensors, and lists, tuples and dicts of them.
    """
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, buffer)
    body = buffer.getbuffer()
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{_FILE}.new"
    with new.open("wb") as file:
        file.write(_MAGIC + zlib.crc32(body).to_bytes(_CRC_BYTES, "little"))
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    new.replace(checkpoint_path(folder))


class CheckpointWriter:
    """Saves checkpoints beside the run: the file is written while the next round trains.

    Parameters
    ----------
    folder : Path, optional
        As in `save_checkpoint`; None saves nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._wait()
        finally:
            self._pool.shutdown()

    def save(self, make_state: Callable[[], dict[str, Any]]) -> None:
        """Take a copy of the state now and write it soon; an error of the one before is raised here."""
        if self._folder is not None:
            self._wait()
            self._writing = self._pool.submit(
                save_checkpoint, self._folder, deepcopy(make_state())
            )

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` left in `folder`; None if there is nothing yet.

    No code in the file is run (``weights_only``).

    Raises
    ------
    CheckpointError
        If the file is not a checkpoint, is damaged, or was written by another version.
    """
    path = checkpoint_path(folder)
    if not path.exists():
        return None
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise CheckpointError(f"{path} is not a checkpoint of flwr-splitfc")
    body = data[len(_MAGIC) + _CRC_BYTES :]
    if (
        zlib.crc32(body).to_bytes(_CRC_BYTES, "little")
        != data[len(_MAGIC) : len(_MAGIC) + _CRC_BYTES]
    ):
        raise CheckpointError(
            f"{path} is damaged: its {len(data)} bytes are not those that were written"
        )
    try:
        state = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {schema}, this version reads {SCHEMA}"
        )
    return dict(state)


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global generators, which strategies may sample from."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ),
        "torch": torch.get_rng_state(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` took."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(
        (kind, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"])


STATELESS = (
    FedAvg,
    FedProx,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Bulyan,
    RoundRobin,
)
STATE_ATTRIBUTES: dict[type[Strategy], tuple[str, ...]] = {
    FedAdam: ("m_t", "v_t"),
    FedAdagrad: ("m_t", "v_t"),
    FedYogi: ("m_t", "v_t"),
    FedAvgM: ("momentum_vector",),
}
"""What Flower's strategies remember from round to round, of those known not to restart it by themselves."""


class Resumable(Protocol):
    """The hook of a strategy with state of its own; the state is made of what `save_checkpoint` takes."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers between rounds."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember it."""
        ...


def check_resumable(devices: Strategy) -> None:
    """Refuse a strategy whose state cannot be carried, before a run relies on it."""
    if (
        _has_hook(devices)
        or type(devices) in STATELESS
        or type(devices) in STATE_ATTRIBUTES
    ):
        return
    raise ValueError(
        f"checkpoint= cannot carry what {type(devices).__name__} remembers between rounds: "
        "give the class the methods state_dict() and load_state_dict(state), or run without a checkpoint"
    )


def devices_state(devices: Strategy) -> dict[str, Any]:
    """What `devices` remembers between rounds."""
    if _has_hook(devices):
        return cast(Resumable, devices).state_dict()
    return {
        name: _to_tensors(getattr(devices, name))
        for name in STATE_ATTRIBUTES.get(type(devices), ())
    }


def restore_devices(devices: Strategy, state: dict[str, Any]) -> None:
    """Give `devices` what `devices_state` took."""
    if _has_hook(devices):
        cast(Resumable, devices).load_state_dict(state)
        return
    for name in STATE_ATTRIBUTES.get(type(devices), ()):
        setattr(devices, name, _to_arrays(state[name]))


def _has_hook(devices: Strategy) -> bool:
    return hasattr(devices, "state_dict") and hasattr(devices, "load_state_dict")


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_tensors(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_to_tensors(part) for part in value]
    return None if value is None else torch.from_numpy(np.array(value))


def _to_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_arrays(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_to_arrays(part) for part in value]
    return None if value is None else value.numpy()
