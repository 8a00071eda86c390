"""What the strategy in `devices` remembers between rounds, for a checkpoint."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Protocol, runtime_checkable

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
"""Strategies that remember nothing from round to round."""

STATE_ATTRIBUTES: dict[type[Strategy], tuple[str, ...]] = {
    FedAdam: ("m_t", "v_t"),
    FedAdagrad: ("m_t", "v_t"),
    FedYogi: ("m_t", "v_t"),
    FedAvgM: ("momentum_vector",),
}
"""The attributes in which Flower's other strategies remember."""


@runtime_checkable
class Resumable(Protocol):
    """The hook of a strategy with state of its own.

    The state is made of what `save_checkpoint` takes: numbers, strings, bytes, None,
    tensors, and lists, tuples and dicts of them.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers between rounds."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember it."""
        ...


def check_resumable(devices: Strategy) -> None:
    """Refuse a strategy whose state cannot be carried, before a run relies on it."""
    if isinstance(devices, Resumable):
        return
    # by type, not isinstance: a subclass may remember more than its base
    if type(devices) in STATELESS or type(devices) in STATE_ATTRIBUTES:
        return
    raise ValueError(
        f"checkpoint= cannot carry what {type(devices).__name__} remembers between "
        "rounds: give the class the methods state_dict() and load_state_dict(state), "
        "or run without a checkpoint"
    )


def remembered(devices: Strategy) -> tuple[str, ...]:
    """Return the attributes in which a strategy of Flower's remembers arrays."""
    if isinstance(devices, Resumable):
        return ()
    return STATE_ATTRIBUTES.get(type(devices), ())


def devices_state(devices: Strategy) -> dict[str, Any]:
    """Return what `devices` remembers between rounds."""
    if isinstance(devices, Resumable):
        return devices.state_dict()
    # Flower remembers NumPy arrays; a checkpoint holds tensors alone
    return {name: _to_tensors(getattr(devices, name)) for name in remembered(devices)}


def restore_devices(devices: Strategy, state: dict[str, Any]) -> None:
    """Give `devices` what `devices_state` took."""
    if isinstance(devices, Resumable):
        devices.load_state_dict(state)
        return
    for name in remembered(devices):
        setattr(devices, name, _to_arrays(state[name]))


def way_back(devices: Strategy) -> Callable[[], None]:
    """Return what makes `devices` remember later what it remembers now."""
    if isinstance(devices, Resumable):
        state = deepcopy(devices.state_dict())
        return partial(devices.load_state_dict, state)
    # Flower's strategies change nothing that they remember, they replace it
    attributes = dict(vars(devices))
    return partial(vars(devices).update, attributes)


def _to_tensors(value: Any) -> Any:
    """Turn the arrays in `value` into tensors, which a checkpoint holds."""
    if isinstance(value, dict):
        return {key: _to_tensors(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_to_tensors(part) for part in value]
    if value is None:
        return None
    return torch.from_numpy(np.array(value))


def _to_arrays(value: Any) -> Any:
    """Turn the tensors in `value` into arrays, which Flower computes with."""
    if isinstance(value, dict):
        return {key: _to_arrays(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_to_arrays(part) for part in value]
    if value is None:
        return None
    return value.numpy()
