"""The parts of a ClientApp that trains alike with the server half and without it.

Under a split strategy a message carries a ticket, the model is the device half, and the
session's loss is the server half's. Under one of Flower's own there is no ticket, and
the device has the whole model and the loss.
"""

from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import nn

from flwr_splitfc.apps.local_session import LocalSession
from flwr_splitfc.apps.turn_seed import turn_seed
from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.defence.asked_defence import device_defence
from flwr_splitfc.exchange.device.identity import answer_device_query
from flwr_splitfc.exchange.device.model_codec_mod import model_codec_mod
from flwr_splitfc.exchange.device.session import Session, connect
from flwr_splitfc.exchange.protocol.device_query import ACTION
from flwr_splitfc.exchange.protocol.ticket import Ticket, has_ticket
from flwr_splitfc.model import JoinedModel, LossFn, split_at
from flwr_splitfc.model.joined import check_cuts


class DeviceApp(ClientApp):
    """A `ClientApp` for training loops of one's own, ready for split strategies.

    It answers the query for the device's name, and decodes models.

    Parameters
    ----------
    mods : sequence of Mod
        As in `ClientApp`.

    Examples
    --------
    The same loop under ``SplitFC`` and under ``FedAvg``::

        app = DeviceApp()

        @app.train()
        def train(msg, context):
            model = model_for(msg, Net(), "features")
            optimizer = torch.optim.Adam(model.parameters())
            with session_for(msg, context, criterion, optimizer=optimizer) as server:
                for x, y in trainloader:
                    optimizer.zero_grad()
                    server.loss(model(x), y).backward()
                    optimizer.step()
                metrics = server.metrics()
            ...
    """

    def __init__(self, mods: Sequence[Mod] = ()) -> None:
        # the first, so that the others see whole models
        super().__init__(mods=[model_codec_mod, *mods])
        super().query(ACTION)(answer_device_query)


def model_for(
    message: Message,
    whole: nn.Module,
    cut: str | int | None = None,
    *,
    also: Sequence[str] = (),
    inputs: Sequence[str] | None = None,
) -> nn.Module:
    """Return the model that a message is about, with the weights that it brings.

    Parameters
    ----------
    message : Message
        To train or to evaluate.
    whole : nn.Module
        The whole model.
    cut : str or int, optional
        The layer after which it is cut, as in `split_at`. Not needed for a
        `JoinedModel`, which has two halves.
    also, inputs
        As in `split_at`.

    Returns
    -------
    nn.Module
        The device half if the message carries a ticket; otherwise `whole`.

    Raises
    ------
    ValueError
        If the model is to be cut, and nothing says where; if it is cut elsewhere than
        on the server, where `split_at` cut it there; or if the message does not bring
        the arrays of one model.
    """
    model = whole
    if has_ticket(message):
        model = _device_half(whole, cut, also, inputs)
        ticket = Ticket.from_message(message)
        check_cuts(model, ticket.cut, ticket.output_cut)
    model.load_state_dict(_only_arrays(message).to_torch_state_dict())
    return model


def _only_arrays(message: Message) -> ArrayRecord:
    records = message.content.array_records
    if len(records) != 1:
        names = ", ".join(map(repr, records)) or "none"
        raise ValueError(
            f"the message has the ArrayRecords {names}, and model_for wants one, the "
            "model's: take others out of message.content first"
        )
    (arrays,) = records.values()
    return arrays


def _device_half(
    whole: nn.Module,
    cut: str | int | None,
    also: Sequence[str],
    inputs: Sequence[str] | None,
) -> nn.Module:
    if cut is not None:
        device, _ = split_at(whole, cut, also=also, inputs=inputs)
        return device
    if isinstance(whole, JoinedModel):
        return whole.device
    raise ValueError(
        "the strategy trains the device half: name the layer after which the model is "
        "cut, as in model_for(msg, Net(), 'features'), or give a JoinedModel"
    )


def defence_for(context: Context) -> FeatureDefence:
    """Return the defence of features that a device's config or the run's asks for.

    The keys ``feature-clip-norm``, ``feature-noise`` and ``nopeek``; the node's config
    wins.

    Examples
    --------
    In a training loop::

        defence = defence_for(context)
        with session_for(msg, context, criterion, defence=defence) as server:
            for x, y in trainloader:
                loss = server.loss(defence(x, model(x)), y)
    """
    return device_defence(context)


def session_for(
    message: Message,
    context: Context,
    loss_fn: LossFn,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    defence: FeatureDefence | None = None,
) -> Session | LocalSession:
    """Return the session of a turn: with the server half, or of the device alone.

    A message with a ticket admits to one session. So a turn that trains and validates
    does both within one ``with``, validation by ``server.predict``; its metrics stay
    those of training.

    Parameters
    ----------
    message, context, optimizer, defence
        As in `connect`.
    loss_fn : callable
        ``loss_fn(outputs, labels)``, for a device alone. With a ticket the loss is the
        strategy's.

    Returns
    -------
    Session or LocalSession
        To be entered by ``with``. Both have ``loss``, ``predict``, ``metrics``, and a
        ``seed`` for what is random in the turn.

    Raises
    ------
    TicketError, ProtocolError, ValueError
        As in `connect`.
    """
    if has_ticket(message):
        return connect(message, context, optimizer=optimizer, defence=defence)
    return LocalSession(loss_fn, turn_seed(message, context))
