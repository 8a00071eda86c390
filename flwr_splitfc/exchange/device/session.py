"""A device's session with the server half: `connect(msg)` gives that of one turn."""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from flwr_splitfc.codec import CutCodec, cut_codec
from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.defence.asked_defence import check_defence
from flwr_splitfc.exchange.device.autograd import server_loss, server_output
from flwr_splitfc.exchange.device.backward_watch import BackwardWatch
from flwr_splitfc.exchange.device.batch_checks import (
    check_features,
    check_label_entries,
    check_labels,
    check_optimizer,
    check_rows,
)
from flwr_splitfc.exchange.device.one_way import OneWaySteps
from flwr_splitfc.exchange.device.optimizer_state import (
    check_handed_on,
    optimizer_tensors,
    pack_optimizer,
    restore_optimizer,
    start_from_kept,
)
from flwr_splitfc.exchange.device.pipeline import LabelledBatches, pipelined_losses
from flwr_splitfc.exchange.device.state_names import StateNames
from flwr_splitfc.exchange.device.steps import Steps
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.device.transport import Line, SessionTransport
from flwr_splitfc.exchange.device.turn_counts import TurnCounts
from flwr_splitfc.exchange.device.u_shaped_steps import UShapedSteps
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import server_frame
from flwr_splitfc.exchange.protocol.records import without_prefix
from flwr_splitfc.exchange.protocol.split_errors import TicketError
from flwr_splitfc.exchange.protocol.tensors import pack_tensors, unpack_plain
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.model.structures import Structure, float_tensors, plain_tensors
from flwr_splitfc.settings import Scalar, check_dashes

ADDRESS_KEY = "split-address"
"""Key of a node config: the address by which the node reaches the endpoint."""

_LEVELLED_PREFIX = "levelled."

_APPLY_DEFENCE = (
    "let them go through defence = defence_for(context), as in defence(x, model(x)), "
    "and give it to session_for(..., defence=defence), or to connect"
)


def connect(
    message: Message,
    context: Context | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    defence: FeatureDefence | None = None,
) -> "Session":
    """Return the session that the ticket in `message` admits to.

    Enter it with ``with``. The connection is opened with the first frame that is sent:
    what keeps it from standing is an error of the first step, and none of ``with``.
    A message admits to one session: a second one is refused with `TokenRefused`.

    Parameters
    ----------
    message : Message
        A train or evaluate message from a split strategy.
    context : Context, optional
        The node's. Its config may name the address by which this node reaches the split
        endpoint (``split-address``, a host or host:port), where that is not the one
        that the strategy tells. Without a context nothing checks whether a config asks
        for a defence.
    optimizer : torch.optim.Optimizer, optional
        The device half's optimizer. If given, it starts from the state that the
        strategy's ``optimizer_state`` says, and its state at the end of the turn is
        handed on, if another turn starts from it.
    defence : FeatureDefence, optional
        What the loop lets features go through, before it gives them to the session;
        `defence_for` has that of the context. The session does not apply it.

    Raises
    ------
    TicketError, ProtocolError
        If the message carries no ticket, or one that this version cannot read.
    TypeError
        If `optimizer` is no optimizer.
    ValueError
        If the node config's address is none, or `optimizer` would ask for the server
        half's loss several times in a step, as LBFGS does; or if the node's config or
        the run-config asks for a defence that is not the one given.

    Examples
    --------
    One turn of a device, in a `ClientApp`'s train function::

        with connect(msg, context, optimizer=optimizer) as server:
            for x, y in trainloader:
                optimizer.zero_grad()
                loss = server.loss(model(x), y)
                loss.backward()
                optimizer.step()
            metrics = server.metrics()

    Where the device has the last layers, too, and the loss::

        loss = criterion(tail(server.forward(head(x))), y)
    """
    ticket = Ticket.from_message(message)
    if ticket.is_for_messages:
        raise TicketError(
            "the strategy sends frames in Flower's messages (transport 'messages'), "
            "which a training loop of one's own cannot follow from message to message: "
            "use SplitClientApp"
        )
    if context is not None:
        check_defence(context, defence, _APPLY_DEFENCE)
    stream = Stream(ticket, own_address(context))
    kept = server_frame(message).kept
    return Session(ticket, stream, optimizer=optimizer, kept=kept)


def own_address(context: Context | None) -> str:
    """Return the address by which a node reaches the endpoint, if its config has one.

    Otherwise it is empty: the node goes by its ticket.
    """
    if context is None:
        return ""
    check_dashes(context.node_config, [ADDRESS_KEY])
    return str(context.node_config.get(ADDRESS_KEY, ""))


class Session:
    """A device's turn with the server half.

    It is made by `connect`, and not for use from several threads.

    Attributes
    ----------
    ticket : Ticket
    seed : int
        Derived from the run's seed, the device and the round: for whatever is random in
        the turn.
    state : dict of str to Tensor
        What this device left at the end of its last turn. What it holds at the end of
        this one is kept by the strategy until the next.
    """

    def __init__(
        self,
        ticket: Ticket,
        transport: SessionTransport,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        kept: pb.Kept | None = None,
    ) -> None:
        if optimizer is not None:
            check_optimizer(optimizer, decoupled=ticket.decoupled)
            if ticket.keeps_optimizer:
                check_handed_on(optimizer)
        self.ticket = ticket
        self.seed = ticket.turn_seed
        self.state: dict[str, Tensor] = {}
        self._optimizer = optimizer
        # of the optimizer's state, as of when the turn begins
        self._state_names = StateNames([])
        # what earlier turns left, as the message brought it
        self._kept = kept or pb.Kept()
        self._watch = BackwardWatch(ticket.device, optimizer)
        self._line = Line(transport)
        self._steps = Steps(
            self._line, _codec_of(ticket.codec), self.seed, ticket.server_round
        )
        self._steps.levelled.update(dict.fromkeys(self._kept.levels, True))
        self._one_way_steps = OneWaySteps(
            self._steps, ticket.pipeline_depth, ticket.send_every
        )
        self._u_shaped_steps: UShapedSteps | None = None
        if ticket.output_codec:
            # the server encodes outputs, as a device encodes features
            output_codec = _codec_of(ticket.output_codec).mirror()
            self._u_shaped_steps = UShapedSteps(self._steps, output_codec)

    # What a training loop calls

    def loss(self, features: Structure, labels: Tensor) -> Tensor:
        """Return the server half's loss on one mini-batch, having trained it on that.

        Parameters
        ----------
        features : Tensor of shape (B, ...), or a tuple, list or dict of tensors
            The output of the device half, with its autograd graph. Without one, as
            from a frozen backbone, only the server half trains, and no gradient comes
            down. The server half gets a structure as it is here. Its floating point
            tensors have a row for each sample, and each is coded, but for whole numbers
            without a graph. These arrive exactly, and so do others, such as masks,
            whatever their shape.
        labels : Tensor of shape (B, ...)

        Returns
        -------
        Tensor
            A scalar; its ``backward()`` hands the gradient that the server sent on to
            the device half. Of a mini-batch without rows nothing is sent, and no step
            is made: its loss is NaN, as torch's mean of nothing, its gradient empty.

        Raises
        ------
        RuntimeError
            Under ``torch.no_grad()``.
        TypeError, ValueError
            For what is no batch of features and labels, for features that are not
            finite, and for a budget too small for any payload.
        SplitError
            One of its kinds if the server cannot be reached, refuses the step, or the
            session broke; the server half is then as it was. The session is over: each
            later call raises an error, too.
        """
        if self._u_shaped_steps is not None:
            raise RuntimeError(
                "the strategy has no loss_fn, so the loss is this device's: train with "
                "criterion(tail(server.forward(features)), labels)"
            )
        check_features("server.loss", features)
        check_labels("server.loss", labels)
        if self.ticket.decoupled and any(
            tensor.requires_grad for tensor in float_tensors(features)
        ):
            self._check_coupled()
        self._one_way_steps.settle()
        features, labels = plain_tensors(features), plain_tensors(labels)
        return server_loss(self._steps, features, labels, self._watch)

    def send(self, features: Structure, labels: Tensor) -> None:
        """Train the server half on one mini-batch, and wait for nothing.

        No gradient comes down. So the device half learns from a loss of its own, or not
        at all::

            features = model(x)
            server.send(features, y)
            criterion(auxiliary(features), y).backward()

        Where the strategy's ``pipeline_depth`` of mini-batches are under way, this one
        included, it waits for the first answer. The session's end, its `metrics` and
        whatever else it sends wait for all answers.

        Where the strategy's ``send_every`` is n, the session's first mini-batch goes
        up, and each n-th after it. A call with another one checks and counts it. One
        without rows is left out of all this.

        Parameters
        ----------
        features : Tensor of shape (B, ...), or a tuple, list or dict of tensors
            As for `loss`. An autograd graph is left alone.
        labels : Tensor of shape (B, ...)

        Raises
        ------
        RuntimeError
            Where the loss is this device's: there is no server half with a loss.
        TypeError, ValueError
            As `loss`.
        SplitError
            As `loss`, for this step or one before it.
        """
        if self._u_shaped_steps is not None:
            raise RuntimeError(
                "the strategy has no loss_fn, so the server half cannot train without "
                "this device's last layers; use server.forward"
            )
        check_features("server.send", features)
        check_labels("server.send", labels)
        self._one_way_steps.offer(plain_tensors(features), plain_tensors(labels))

    def pipelined(
        self, model: nn.Module, batches: LabelledBatches, depth: int | None = None
    ) -> Iterator[Tensor]:
        """Return the losses of mini-batches of which several are under way at once.

        While the answer to one travels, the next are computed and sent. So a link's
        latency is waited for once, and not for each::

            for loss in server.pipelined(model, trainloader):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        A gradient is that of the weights with which its forward pass was made, and is
        applied up to ``depth - 1`` steps later. Those weights are kept until then. With
        a depth of 1 this is the loop with `loss`.

        Parameters
        ----------
        model : nn.Module
            The device half.
        batches : iterable of (Tensor, Tensor)
            Inputs and labels (B, ...). Inputs may be what `model` takes as one.
        depth : int, optional
            How many mini-batches are under way at most. Default, and the most: the
            strategy's ``pipeline_depth``.

        Returns
        -------
        iterator of Tensor
            A scalar for each batch, in their order. A loop that is left early waits for
            the answers that are under way; the server half has trained on these.

        Raises
        ------
        RuntimeError, TypeError, ValueError, SplitError
            As `loss`.
        """
        if self._u_shaped_steps is not None:
            raise RuntimeError(
                "pipelined training is for a loss of the server's: with last layers on "
                "the device each step needs its own output first; use server.forward"
            )
        self._check_coupled()
        most = self.ticket.pipeline_depth
        depth = most if depth is None else depth
        if not 1 <= depth <= most:
            raise ValueError(
                f"depth is {depth}, wanted 1 to {most}, the strategy's pipeline_depth"
            )
        self._one_way_steps.settle()
        return pipelined_losses(self._steps, model, batches, depth, self._watch)

    def forward(
        self, features: Structure, *, label_entries: int | None = None
    ) -> Tensor:
        """Return the server half's output for one mini-batch.

        It is for last layers and a loss of the device's own. The backward pass through
        it, once, trains the server half and goes on into the device's first layers.
        Until then nothing has changed, and another `forward` takes this one's place.
        The gradient goes up as it is: scaling the loss scales it for the server half,
        too.

        Parameters
        ----------
        features : Tensor of shape (B, ...), or a tuple, list or dict of tensors
            The output of the first layers, as for `loss`: with its autograd graph, or
            without one, where these layers do not train.
        label_entries : int, optional
            How many entries the mini-batch's labels have, ``labels.numel()``. The
            automatic quality of `splitfc-rd` goes by it, and the server is told it. By
            default a sample counts as having one label, or one for each position of a
            sequence: too few where labels are maps.

        Returns
        -------
        Tensor of shape (B, ...)
            float32, on the device of the features.

        Raises
        ------
        RuntimeError, TypeError, ValueError, SplitError
            As `loss`; the backward pass raises them, too, and a `ValueError` for a
            gradient that is not finite.
        """
        if self._u_shaped_steps is None:
            raise RuntimeError(
                "the strategy has a loss_fn, so the loss is the server's: train with "
                "server.loss(features, labels), or make the strategy with loss_fn=None"
            )
        check_features("server.forward", features)
        check_rows("server.forward", features)
        if label_entries is not None:
            check_label_entries("server.forward", label_entries)
        features = plain_tensors(features)
        return server_output(self._u_shaped_steps, features, label_entries, self._watch)

    @torch.no_grad()
    def predict(self, features: Structure) -> Structure:
        """Return the server half's output for features, in evaluation mode.

        No labels leave the device, nothing trains, and the codec's `evaluation` says
        how features go up. In a turn of training it validates, and `metrics` stay those
        of what was trained.

        Parameters
        ----------
        features : Tensor of shape (B, ...), or a tuple, list or dict of tensors

        Returns
        -------
        Tensor, or a tuple, list or dict of tensors
            As the server half gives it; floating point numbers are float32 where the
            last layers are on this device.

        Raises
        ------
        ValueError
            If the features are no numbers to send, or have no row.
        SplitError
            One of its kinds if the server refuses them or cannot be reached.
        """
        check_features("server.predict", features)
        check_rows("server.predict", features)
        self._one_way_steps.settle()
        features = plain_tensors(features)
        if self._u_shaped_steps is not None:
            return self._u_shaped_steps.predict(features)
        return self._steps.predict(features)

    # Any, because Flower's MetricRecord takes no dict of int | float alone
    def metrics(self) -> dict[str, Any]:
        """Return what Flower's strategies need, and what this session moved so far.

        Returns
        -------
        dict of str to int or float
            ``num-examples`` (of all mini-batches, also those that `send` left here; in
            a turn of training, of those that trained), ``steps`` (of the server half,
            likewise), ``train_loss`` (mean over the samples that went up; not in
            evaluation, nor where the loss is the device's: its code adds it),
            ``uplink_bytes`` and ``downlink_bytes`` (all frames of the session),
            ``reconnects`` (connections that broke and were opened again) and
            ``codec_seconds`` (this device's).

        Raises
        ------
        SplitError
            As of the mini-batches that are under way, whose answers it waits for.
        """
        self._one_way_steps.settle()
        counts = self._steps.counts
        transport = self._line.transport
        trains = self.ticket.purpose == "train"
        rows, steps = counts.predicted_rows, counts.predictions
        if trains:
            rows, steps = counts.rows + counts.unsent_rows, counts.steps
        metrics: dict[str, Any] = {
            "num-examples": rows,
            "steps": steps,
            "uplink_bytes": transport.uplink_bytes,
            "downlink_bytes": transport.downlink_bytes,
            "reconnects": max(transport.reconnects, 0),
            "codec_seconds": counts.coding.seconds,
        }
        if trains and self._u_shaped_steps is None:
            metrics["train_loss"] = counts.loss_sum / max(counts.loss_rows, 1)
        return metrics

    def _check_coupled(self) -> None:
        if self.ticket.decoupled:
            raise RuntimeError(
                "training is decoupled, so no gradient comes down: train the server "
                "half by server.send(features, y), the device half by its own loss"
            )

    # Opening and closing

    def __enter__(self) -> "Session":
        self.state = {frame.name: unpack_plain(frame) for frame in self._kept.state}
        hands_on = self.ticket.keeps_optimizer or self.ticket.is_for_messages
        if self._optimizer is not None and hands_on:
            names = self._state_names = StateNames.of(self._optimizer)
            if self._kept.optimizer:
                start_from_kept(self._optimizer, self._kept.optimizer, names)
        self._line.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # after an error, nothing of this turn is kept for the next
        try:
            if error is None:
                self._one_way_steps.settle()
                self._watch.end()
                self._close()
        finally:
            self._line.hang_up()

    def _close(self) -> None:
        """Leave what is kept until the next turn, and let the stream end."""
        optimizer_state: list[pb.Tensor] = []
        if self._optimizer is not None and self.ticket.keeps_optimizer:
            optimizer_state = pack_optimizer(
                self._optimizer, self.ticket.state_bits, self.seed, self._state_names
            )
        counts, levelled = self._steps.counts, self._steps.levelled
        close = pb.Close(
            optimizer=optimizer_state,
            state=pack_tensors(self.state),
            codec_seconds=counts.coding.seconds,
            waited_seconds=self._line.waited_s,
            feature_error_sum=counts.feature_error_sum,
            feature_error_steps=counts.feature_error_steps,
            round_trips=self._line.transport.round_trips,
            levels=[number for number, is_so in levelled.items() if is_so],
            no_levels=[number for number, is_so in levelled.items() if not is_so],
        )
        self._line.ask(pb.DeviceFrame(close=close), "closed")
        self._line.transport.finish()

    @property
    def closing(self) -> pb.DeviceFrame | None:
        """The session's last frame, where it goes with the reply to Flower's message.

        It is None before the session is over, and where the stream carries the frame.
        """
        return self._line.transport.closing

    # Between the messages of a turn that is interrupted between two steps

    def counts(self) -> dict[str, float]:
        """Return what `metrics` and the next step depend on."""
        transport = self._line.transport
        return {
            **self._steps.counts.saved(),
            **{
                f"{_LEVELLED_PREFIX}{number}": float(is_so)
                for number, is_so in self._steps.levelled.items()
            },
            "uplink_bytes": transport.uplink_bytes,
            "downlink_bytes": transport.downlink_bytes,
        }

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the state of the device half's optimizer, if the session has one."""
        if self._optimizer is None:
            return {}
        return optimizer_tensors(self._optimizer, self._state_names)

    def resume(
        self,
        counts: Mapping[str, float],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> None:
        """Go on from `counts`, `optimizer_state` and `state` as they were then."""
        if self._optimizer is not None:
            restore_optimizer(self._optimizer, optimizer_state, self._state_names)
        transport = self._line.transport
        self._steps.counts = TurnCounts.restored(counts)
        for number, is_so in without_prefix(_LEVELLED_PREFIX, counts).items():
            self._steps.levelled[int(number)] = bool(is_so)
        transport.uplink_bytes = int(counts["uplink_bytes"])
        transport.downlink_bytes = int(counts["downlink_bytes"])
        self.state = dict(state)


def _codec_of(settings: Mapping[str, Scalar]) -> CutCodec:
    try:
        return cut_codec(settings)
    except ValueError as error:
        raise TicketError(f"the ticket's codec cannot be made here: {error}") from error
