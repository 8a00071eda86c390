"""Split learning with SplitFC compression, as a plugin for Flower.

A `ServerApp` takes a strategy from here or is a `SplitServerApp`, a `ClientApp` opens a
session with `connect` or is a `SplitClientApp`. Codecs are in `flwr_splitfc.codec`, the
parts of the exchange in `flwr_splitfc.exchange`.
"""

from importlib.metadata import version

from flwr_splitfc.apps.client_app import SplitClientApp
from flwr_splitfc.apps.device_app import DeviceApp, defence_for, model_for, session_for
from flwr_splitfc.apps.server_app import SplitServerApp
from flwr_splitfc.codec import ModelCodec, PayloadError, cut_codec
from flwr_splitfc.exchange import (
    Certificate,
    EndpointConfig,
    Limits,
    ModelCodecGrid,
    SplitError,
    answer_device_query,
    connect,
    has_ticket,
    model_codec_mod,
)
from flwr_splitfc.model import (
    AuxiliaryHead,
    DecoupledHalf,
    HeadAndTail,
    JoinedModel,
    split_at,
    trained_only,
)
from flwr_splitfc.strategy import (
    BudgetSchedule,
    NodeConfigBudgets,
    RoundRobin,
    RunFailed,
    SimulationBroken,
    SplitFC,
    SplitFedV1,
    SplitFedV2,
    SplitLearning,
    ThroughputBudgets,
)

__version__ = version("flwr-splitfc")

__all__ = [
    "AuxiliaryHead",
    "BudgetSchedule",
    "Certificate",
    "DecoupledHalf",
    "DeviceApp",
    "EndpointConfig",
    "HeadAndTail",
    "JoinedModel",
    "Limits",
    "ModelCodec",
    "ModelCodecGrid",
    "NodeConfigBudgets",
    "PayloadError",
    "RoundRobin",
    "RunFailed",
    "SimulationBroken",
    "SplitClientApp",
    "SplitError",
    "SplitFC",
    "SplitFedV1",
    "SplitFedV2",
    "SplitLearning",
    "SplitServerApp",
    "ThroughputBudgets",
    "answer_device_query",
    "connect",
    "cut_codec",
    "defence_for",
    "has_ticket",
    "model_codec_mod",
    "model_for",
    "session_for",
    "split_at",
    "trained_only",
]
