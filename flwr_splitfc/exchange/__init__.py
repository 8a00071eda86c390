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
from flwr_splitfc.exchange.server.budget_rules import BudgetRule, DeviceRound, LastTurn
from flwr_splitfc.exchange.server.certificate import Certificate
from flwr_splitfc.exchange.server.device_states import DeviceStates
from flwr_splitfc.exchange.server.devices import Devices
from flwr_splitfc.exchange.server.endpoint import SplitEndpoint
from flwr_splitfc.exchange.server.endpoint_config import EndpointConfig
from flwr_splitfc.exchange.server.half_trainer import HalfTrainer
from flwr_splitfc.exchange.server.halves import CopiedHalves, Halves, SharedHalf
from flwr_splitfc.exchange.server.ledger import Ledger
from flwr_splitfc.exchange.server.limits import Limits
from flwr_splitfc.exchange.server.metered_grid import MeteredGrid
from flwr_splitfc.exchange.server.model_codec_grid import ModelCodecGrid
from flwr_splitfc.exchange.server.split_grid import SplitGrid
from flwr_splitfc.exchange.server.traffic import Traffic
from flwr_splitfc.exchange.server.trained_step import StepListener, TrainedStep

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
