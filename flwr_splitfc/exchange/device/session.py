"""The device's end of the exchange: `connect(msg)` opens the session of one turn."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from types import TracebackType
from typing import NamedTuple, Protocol

import torch
from flwr.app import Context, Message
from torch import Tensor
from torch.autograd.function import once_differentiable

from flwr_splitfc.codec import CutCodec, Link, PayloadError, cut_codec, pack_labels
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.errors import ProtocolError, TicketError
from flwr_splitfc.exchange.protocol.seeds import derive_seed, seeded_generator
from flwr_splitfc.exchange.protocol.tensors import (
    from_matrix,
    optimizer_tensors,
    pack_tensors,
    restore_optimizer,
    to_matrix,
    unpack_tensor,
    unpack_tensors,
)
from flwr_splitfc.exchange.protocol.ticket import Ticket

ADDRESS_KEY = "split-address"
_COUNTS = {
    "number": int,
    "full_rows": int,
    "rows": int,
    "loss_sum": float,
    "codec_seconds": float,
}


@contextmanager
def _full_precision() -> Iterator[None]:
    """Codecs compute in float32, also in a training loop under autocast."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def connect(
    message: Message,
    context: Context | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> "Session":
    """The session that the ticket in `message` admits to; enter it with ``with``.

    Parameters
    ----------
    message : Message
        A train or evaluate message from a split strategy.
    context : Context, optional
        The node's: its config may name the address by which this node reaches the split
        endpoint (``split-address``, a host or host:port), where that is not the one
        that the strategy tells.
    optimizer : torch.optim.Optimizer, optional
        The device half's optimizer. If given, it starts from the state that the
        strategy's ``optimizer_state`` says, and its state at the end of the turn is
        handed on.

    Raises
    ------
    TicketError, ProtocolError
        If the message carries no ticket, or one that this version cannot read.
    ValueError
        If the node config's address is none.

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
    if not ticket.address:
        raise TicketError(
            "the strategy sends frames in Flower's messages (transport 'messages'), which a training loop of "
            "one's own cannot follow from message to message: use SplitClientApp"
        )
    address = "" if context is None else str(context.node_config.get(ADDRESS_KEY, ""))
    return Session(ticket, Stream(ticket, address), optimizer=optimizer)


class Transport(Protocol):
    """What carries a session's frames: `Stream` or `Mailbox`."""

    uplink_bytes: int
    downlink_bytes: int
    reconnects: int

    def open(self) -> pb.Opened:
        """Open the session."""

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """The answer to a frame."""

    def finish(self) -> None:
        """After the last answer."""

    def close(self) -> None:
        """In any case."""


class Session:
    """A device's turn with the server half. Made by `connect`; not for use from several threads.

    Attributes
    ----------
    ticket : Ticket
    seed : int
        Derived from the run's seed, the device and the round: for whatever is random in
        the turn.
    state : dict of str to Tensor
        What this device left at the end of its last turn; what it holds at the end of
        this one is kept by the strategy until the next.
    """

    def __init__(
        self,
        ticket: Ticket,
        transport: Transport,
        *,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.ticket = ticket
        try:
            self.codec = cut_codec(ticket.codec)
            self.output_codec = (
                cut_codec(ticket.output_codec).mirror() if ticket.output_codec else None
            )
        except ValueError as error:
            raise TicketError(
                f"the ticket's codec cannot be made here: {error}"
            ) from error
        self.seed = derive_seed(ticket.seed, ticket.device, ticket.server_round)
        self.state: dict[str, Tensor] = {}
        self._optimizer = optimizer
        self._transport = transport
        self._is_open = False
        self._number = 0
        self._begun = 0  # the step whose Backward may be sent
        self._full_rows = 0
        self._rows = 0
        self._loss_sum = 0.0
        self._codec_seconds = 0.0
        self._waited_seconds = 0.0

    # -- what a training loop calls
    # --------------------------------------------------------------

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The server half's loss on one mini-batch; the server half has been trained on it on return.

        Parameters
        ----------
        features : Tensor of shape (B, ...)
            The output of the device half, with its autograd graph.
        labels : Tensor of shape (B, ...)

        Returns
        -------
        Tensor
            A scalar; its ``backward()`` hands the gradient that the server sent on to
            the device half.

        Raises
        ------
        RuntimeError
            If `features` carry no graph, for example under ``torch.no_grad()``.
        ValueError
            For features that are not finite, and for a budget too small for any
            payload.
        SplitError
            One of its kinds if the server refuses the step or the session broke; the
            server half is then as it was.
        """
        if self.output_codec is not None:
            raise RuntimeError(
                "the strategy has no loss_fn, so the loss is this device's: train with "
                "criterion(tail(server.forward(features)), labels)"
            )
        _check_graph(features)
        return _ServerLoss.apply(features, labels, self)  # type: ignore[no-any-return]

    def forward(self, features: Tensor) -> Tensor:
        """The server half's output for one mini-batch, for last layers and a loss of the device's own.

        Its backward pass, once, trains the server half and goes on into the device's
        first layers. Until then nothing has changed, and another `forward` takes this
        one's place. The gradient goes up as it is: scaling the loss scales it for the
        server half, too.

        Parameters
        ----------
        features : Tensor of shape (B, ...)
            The output of the first layers, with its autograd graph.

        Returns
        -------
        Tensor of shape (B, ...)
            float32, on the device of the features.

        Raises
        ------
        RuntimeError, ValueError, SplitError
            As `loss`; the backward pass raises them, too, and a `ValueError` for a
            gradient that is not finite.
        """
        if self.output_codec is None:
            raise RuntimeError(
                "the strategy has a loss_fn, so the loss is the server's: train with server.loss(features, labels), "
                "or make the strategy with loss_fn=None"
            )
        _check_graph(features)
        return _ServerOutput.apply(features, self, self.output_codec)  # type: ignore[no-any-return]

    @torch.no_grad()
    @_full_precision()
    def predict(self, features: Tensor) -> Tensor:
        """The server half's output for features of shape (B, ...), in evaluation mode.

        No labels leave the device, nothing trains, and the codec's `evaluation` says
        how features go up.
        """
        started = time.perf_counter()
        self._full_rows = max(self._full_rows, len(features))
        array, _ = self.codec.encode_features(
            features, training=False, full_rows=self._full_rows
        )
        self._codec_seconds += time.perf_counter() - started
        self._number += 1
        self._rows += len(features)
        reply = self._ask(pb.DeviceFrame(predict=pb.Predict(features=to_matrix(array))))
        return unpack_tensor(self._expect(reply, "predicted").predicted.logits).to(
            features.device
        )

    def metrics(self) -> dict[str, int | float]:
        """What Flower's strategies need, and what this session moved so far.

        ``num-examples``, ``steps``, ``train_loss`` (mean over the samples; not in
        evaluation, nor where the loss is the device's: its code adds it),
        ``uplink_bytes`` and ``downlink_bytes`` (all frames of the session),
        ``reconnects`` (connections that broke and were opened again), ``codec_seconds``
        (this device's).
        """
        metrics: dict[str, int | float] = {
            "num-examples": self._rows,
            "steps": self._number,
            "uplink_bytes": self._transport.uplink_bytes,
            "downlink_bytes": self._transport.downlink_bytes,
            "reconnects": max(self._transport.reconnects, 0),
            "codec_seconds": self._codec_seconds,
        }
        if self.ticket.purpose == "train" and self.output_codec is None:
            metrics["train_loss"] = self._loss_sum / max(self._rows, 1)
        return metrics

    # -- life --------------------------------------------------------------------------
    # ----------

    def __enter__(self) -> "Session":
        opened = self._transport.open()
        self._is_open = True
        try:
            self.state = unpack_tensors(opened.state)
            if self._optimizer is not None and opened.optimizer:
                restore_optimizer(self._optimizer, unpack_tensors(opened.optimizer))
        except BaseException:
            self._hang_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._close()
        finally:
            self._hang_up()

    def _close(self) -> None:
        """Leave what is kept until the next turn, and let the stream end on both sides."""
        kept = optimizer_tensors(self._optimizer) if self._optimizer is not None else {}
        close = pb.Close(
            optimizer=pack_tensors(kept),
            state=pack_tensors(self.state),
            codec_seconds=self._codec_seconds,
            waited_seconds=self._waited_seconds,
        )
        self._expect(self._ask(pb.DeviceFrame(close=close)), "closed")
        self._transport.finish()

    def _hang_up(self) -> None:
        self._transport.close()
        self._is_open = False

    # -- between messages
    # ------------------------------------------------------------------------

    def counts(self) -> dict[str, float]:
        """What `metrics` and the next step depend on, where a turn is interrupted between two steps."""
        moved = {
            "uplink_bytes": self._transport.uplink_bytes,
            "downlink_bytes": self._transport.downlink_bytes,
        }
        return {**{key: getattr(self, f"_{key}") for key in _COUNTS}, **moved}

    def resume(self, counts: Mapping[str, float], state: Mapping[str, Tensor]) -> None:
        """Go on from `counts`, and the `state` that was there then."""
        for key, kind in _COUNTS.items():
            setattr(self, f"_{key}", kind(counts[key]))
        self._transport.uplink_bytes = int(counts["uplink_bytes"])
        self._transport.downlink_bytes = int(counts["downlink_bytes"])
        self.state = dict(state)

    # -- one step
    # --------------------------------------------------------------------------------

    @_full_precision()
    def _step(self, features: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """One exchange: the loss, and the gradient by `features` as (B, D)."""
        started = time.perf_counter()
        matrix, link = self._encode(features)
        step = pb.Step(features=matrix, labels=pack_labels(link.sent_rows(labels)))
        encoded = time.perf_counter()
        self._number += 1

        stepped = self._expect(self._ask(pb.DeviceFrame(step=step)), "stepped").stepped

        answered = time.perf_counter()
        gradient = self.codec.decode_gradient(from_matrix(stepped.gradient), link)
        self._codec_seconds += encoded - started + time.perf_counter() - answered
        self._rows += len(features)
        self._loss_sum += stepped.loss * len(features)
        return stepped.loss, gradient

    def _encode(
        self, features: Tensor, *, all_rows: bool = False
    ) -> tuple[pb.Matrix, Link]:
        """Features as the next step sends them."""
        rows = len(features)
        if rows > self._full_rows:
            self.codec.check_budget(rows, features[0].numel())
            self._full_rows = rows
        generator = seeded_generator(self.seed, self._number + 1)
        array, link = self.codec.encode_features(
            features, generator=generator, full_rows=self._full_rows, all_rows=all_rows
        )
        return to_matrix(array), link

    @_full_precision()
    def _begin(self, features: Tensor, codec: CutCodec) -> tuple[Tensor, "_Step"]:
        """The first exchange of a step whose loss is the device's: the output."""
        started = time.perf_counter()
        matrix, link = self._encode(features, all_rows=True)
        encoded = time.perf_counter()
        self._begun = self._number = self._number + 1

        output = self._expect(
            self._ask(pb.DeviceFrame(forward=pb.Forward(features=matrix))), "output"
        ).output.output

        answered = time.perf_counter()
        shape = tuple(output.shape)
        seen, output_link = codec.decode_features(
            from_matrix(output), expect=(len(features), prod(shape[1:]))
        )
        if shape[0] != len(features):
            raise PayloadError(
                f"the output has {shape[0]} rows, the features {len(features)}"
            )
        self._codec_seconds += encoded - started + time.perf_counter() - answered
        return seen.reshape(shape).to(features.device), _Step(
            self._begun, link, output_link
        )

    @_full_precision()
    def _end(self, gradient: Tensor, step: "_Step", codec: CutCodec) -> Tensor:
        """The second: the gradient by the features, as (B, D)."""
        if step.number != self._begun:
            raise RuntimeError(
                "the backward pass through server.forward runs once for each, and before the next server.forward"
            )
        started = time.perf_counter()
        array = codec.encode_gradient(
            gradient.flatten(1), step.output_link, full_rows=self._full_rows
        )
        encoded = time.perf_counter()
        self._begun = 0

        backward = pb.DeviceFrame(backward=pb.Backward(gradient=to_matrix(array)))
        gradients = self._expect(self._ask(backward), "gradients").gradients

        answered = time.perf_counter()
        by_features = self.codec.decode_gradient(
            from_matrix(gradients.gradient), step.link
        )
        self._codec_seconds += encoded - started + time.perf_counter() - answered
        self._rows += len(gradient)
        return by_features

    def _ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Send one frame and wait for its answer; a refusal or a lost server raises by name."""
        if not self._is_open:
            raise RuntimeError(
                "the session is not open: use `with connect(msg, context) as server:`"
            )
        asked = time.perf_counter()
        reply = self._transport.ask(frame)
        self._waited_seconds += time.perf_counter() - asked
        return reply

    @staticmethod
    def _expect(reply: pb.ServerFrame, kind: str) -> pb.ServerFrame:
        if reply.WhichOneof("kind") != kind:
            raise ProtocolError(
                f"the server answered {reply.WhichOneof('kind')!r}, wanted {kind!r}"
            )
        return reply


class _Step(NamedTuple):
    """What a step's second exchange needs of its first."""

    number: int
    link: Link
    output_link: Link


class _ServerLoss(torch.autograd.Function):
    """The network between the two halves, as one autograd node."""

    @staticmethod
    def forward(ctx, features: Tensor, labels: Tensor, session: Session) -> Tensor:  # type: ignore[no-untyped-def]
        loss, gradient = session._step(features.detach(), labels.detach())
        ctx.save_for_backward(gradient.reshape(features.shape).to(features.dtype))
        return torch.tensor(loss, dtype=torch.float32, device=features.device)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None


class _ServerOutput(torch.autograd.Function):
    """The network, the server half, and the network, as one autograd node."""

    @staticmethod
    def forward(ctx, features: Tensor, session: Session, codec: CutCodec) -> Tensor:  # type: ignore[no-untyped-def]
        output, step = session._begin(features.detach(), codec)
        ctx.end = partial(session._end, step=step, codec=codec)
        ctx.shape, ctx.dtype = features.shape, features.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        return ctx.end(grad_output).reshape(ctx.shape).to(ctx.dtype), None, None


def _check_graph(features: Tensor) -> None:
    if not (torch.is_grad_enabled() and features.requires_grad):
        raise RuntimeError(
            "server.loss and server.forward train the server half, so they need features with an autograd graph: "
            "not under torch.no_grad(), and with a device half that has parameters to train. "
            "Use server.predict to evaluate."
        )
