"""The exchange between devices and the server half.

It has tickets, sessions, the endpoint, and the ledger of bytes.
"""

from flwr_splitfc.exchange.device.identity import answer_device_query, device_name
from flwr_splitfc.exchange.device.model_codec_mod import model_codec_mod
from flwr_splitfc.exchange.device.session import Session, connect
from flwr_splitfc.exchange.protocol.split_errors import (
    EndpointUnreachable,
    FeaturesRefused,
    GradientRefused,
    LabelsRefused,
    LimitExceeded,
    ProtocolError,
    SessionCancelled,
    SplitError,
    StateRefused,
    StepRefused,
    TicketError,
    TicketExpired,
    TokenRefused,
)
from flwr_splitfc.exchange.protocol.ticket import Ticket, has_ticket
from flwr_splitfc.exchange.server.accounts.budget_rules import (
    BudgetRule,
    DeviceRound,
    LastTurn,
)
from flwr_splitfc.exchange.server.accounts.ledger import Ledger
from flwr_splitfc.exchange.server.accounts.traffic import Traffic
from flwr_splitfc.exchange.server.endpoint.certificate import Certificate
from flwr_splitfc.exchange.server.endpoint.endpoint import SplitEndpoint
from flwr_splitfc.exchange.server.endpoint.endpoint_config import EndpointConfig
from flwr_splitfc.exchange.server.grid.devices import Devices
from flwr_splitfc.exchange.server.grid.metered_grid import MeteredGrid
from flwr_splitfc.exchange.server.grid.model_codec_grid import ModelCodecGrid
from flwr_splitfc.exchange.server.grid.split_grid import SplitGrid
from flwr_splitfc.exchange.server.half.half_trainer import HalfTrainer
from flwr_splitfc.exchange.server.half.halves import CopiedHalves, Halves, SharedHalf
from flwr_splitfc.exchange.server.turn.device_states import DeviceStates
from flwr_splitfc.exchange.server.turn.limits import Limits
from flwr_splitfc.exchange.server.turn.trained_step import StepListener, TrainedStep

__all__ = [
    "BudgetRule",
    "Certificate",
    "CopiedHalves",
    "DeviceRound",
    "DeviceStates",
    "Devices",
    "EndpointConfig",
    "EndpointUnreachable",
    "FeaturesRefused",
    "GradientRefused",
    "HalfTrainer",
    "Halves",
    "LabelsRefused",
    "LastTurn",
    "Ledger",
    "LimitExceeded",
    "Limits",
    "MeteredGrid",
    "ModelCodecGrid",
    "ProtocolError",
    "Session",
    "SessionCancelled",
    "SharedHalf",
    "SplitEndpoint",
    "SplitError",
    "SplitGrid",
    "StateRefused",
    "StepListener",
    "StepRefused",
    "Ticket",
    "TicketError",
    "TicketExpired",
    "TokenRefused",
    "Traffic",
    "TrainedStep",
    "answer_device_query",
    "connect",
    "device_name",
    "has_ticket",
    "model_codec_mod",
]
