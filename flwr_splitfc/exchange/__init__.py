"""The exchange between devices and the server half: tickets, sessions, the endpoint, the ledger of bytes."""

from flwr_splitfc.exchange.budgets import BudgetRule, DeviceRound, LastTurn
from flwr_splitfc.exchange.config import EndpointConfig
from flwr_splitfc.exchange.devices import Devices, answer_device_query, device_name
from flwr_splitfc.exchange.endpoint import SplitEndpoint
from flwr_splitfc.exchange.errors import (
    EndpointUnreachable,
    FeaturesRefused,
    GradientRefused,
    LabelsRefused,
    LimitExceeded,
    ProtocolError,
    SessionCancelled,
    SplitError,
    StepRefused,
    TicketError,
    TicketExpired,
    TokenRefused,
)
from flwr_splitfc.exchange.grid import MeteredGrid, SplitGrid
from flwr_splitfc.exchange.half import HalfTrainer
from flwr_splitfc.exchange.halves import CopiedHalves, Halves, SharedHalf
from flwr_splitfc.exchange.ledger import Ledger, Traffic
from flwr_splitfc.exchange.limits import Limits
from flwr_splitfc.exchange.session import Session, connect
from flwr_splitfc.exchange.states import DeviceStates
from flwr_splitfc.exchange.ticket import Ticket, has_ticket
from flwr_splitfc.exchange.tls import Certificate

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
    "ProtocolError",
    "Session",
    "SessionCancelled",
    "SharedHalf",
    "SplitEndpoint",
    "SplitError",
    "SplitGrid",
    "StepRefused",
    "Ticket",
    "TicketError",
    "TicketExpired",
    "TokenRefused",
    "Traffic",
    "answer_device_query",
    "connect",
    "device_name",
    "has_ticket",
]
