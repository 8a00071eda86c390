"""The legs of the soak: whole runs, one after another, each of which tries something else."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    HeadAndTail,
    Limits,
    RoundRobin,
    SplitClientApp,
    SplitLearning,
    cut_codec,
)
from tests.halves import DeviceHalf, batches, seeded

HONEST, HOSTILE = 14, 6
STEPS = 3
"""Of each turn."""

# Nodes are asked for their names together, and the one with the lower id comes first: a
# name that another node says first is that node's. So the hostile ones come last.
HONEST_NODES = range(1000, 1000 + HONEST)
HOSTILE_NODES = range(1000 + HONEST, 1000 + HONEST + HOSTILE)

LIMITS = Limits(
    max_train_rows=64,
    max_predict_rows=64,
    max_steps=50,
    max_state_bytes=4_000_000,
    # an honest turn takes a second where all cores are busy
    open_timeout_s=10.0,
    turn_timeout_s=20.0,
    idle_timeout_s=10.0,
    reconnect_timeout_s=5.0,
    reply_timeout_s=10.0,
    connection_idle_timeout_s=3.0,
)
ADAM = partial(torch.optim.Adam, lr=1e-2)


def server_half() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 4),
    )


def tail() -> nn.Module:
    return nn.Linear(4, 4)


def head_and_tail() -> nn.Module:
    return HeadAndTail(DeviceHalf(), tail())


def load_data(context: Any) -> Any:
    own = batches(STEPS, seed=int(context.node_config["partition-id"]))
    return own, own[:1]


PLAIN_APP = SplitClientApp(DeviceHalf, load_data, ADAM, loss_fn=nn.CrossEntropyLoss())
TAIL_APP = SplitClientApp(
    DeviceHalf, load_data, ADAM, loss_fn=nn.CrossEntropyLoss(), tail=tail
)


@dataclass(frozen=True)
class Leg:
    """A run.

    Parameters
    ----------
    name : str
    rounds : int
    turns : int
        Of each honest device.
    options : dict
        Of `SplitLearning`.
    is_exact : bool
        Whether what the hostile devices do there leaves nothing: the run then ends with
        the weights of one without them, bit for bit.
    """

    name: str
    rounds: int
    turns: int
    options: dict[str, Any]
    is_exact: bool = False
    app: Callable[..., Message] = PLAIN_APP
    half: Callable[[], nn.Module] = DeviceHalf

    def strategy(self) -> SplitLearning:
        options: dict[str, Any] = {
            "loss_fn": nn.CrossEntropyLoss(),
            "endpoint": EndpointConfig(limits=LIMITS),
            **self.options,
        }
        return SplitLearning(
            seeded(server_half),
            optimizer=ADAM,
            device="cpu",
            devices=self._devices(),
            **options,
        )

    def _devices(self) -> FedAvg:
        if self.name == "in turn":
            return RoundRobin(min_available_nodes=1, fraction_evaluate=0.0)
        # evaluation is where nothing has to be the same
        evaluated = 0.0 if self.is_exact else 1.0
        return FedAvg(
            fraction_evaluate=evaluated, min_available_nodes=1, min_train_nodes=1
        )

    def device_half(self) -> dict[str, torch.Tensor]:
        return seeded(self.half).state_dict()


BITS = {"uplink_bits": 4, "downlink_bits": 4}
MESSAGES = EndpointConfig(transport="messages", limits=LIMITS)

# The copy of a device that fails is dropped, whatever the device taught it. A half that
# all share keeps what it was taught, so there the hostile ones' steps are all refused;
# and devices take turns, as the order of steps is otherwise that of chance. The codec
# there draws nothing: a device's random numbers are of its round.
LEGS = [
    Leg(
        "copies",
        rounds=4,
        turns=4,
        options={
            "shared_server_half": False,
            "codec": cut_codec("splitfc", reduction=2, **BITS),
        },
        is_exact=True,
    ),
    Leg(
        "in turn",
        rounds=HONEST + HOSTILE,
        turns=1,
        options={"optimizer_state": "relay", "codec": cut_codec("quant-only", **BITS)},
        is_exact=True,
    ),
    Leg("together", rounds=4, turns=4, options={"codec": "float32"}),
    Leg(
        "in messages",
        rounds=2,
        turns=2,
        options={"shared_server_half": False, "endpoint": MESSAGES},
        is_exact=True,
    ),
    Leg(
        "u-shaped",
        rounds=3,
        turns=3,
        options={"loss_fn": None, "output_codec": "float32"},
        app=TAIL_APP,
        half=head_and_tail,
    ),
]
