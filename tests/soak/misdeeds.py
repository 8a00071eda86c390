"""What a hostile device does in a turn, one thing at a time, drawn at random."""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from torch import Tensor

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import FRAME_KEY, frame_record
from flwr_splitfc.exchange.protocol.rpc import SESSION_METHOD, TOKEN_KEY
from flwr_splitfc.exchange.protocol.tensors import pack_tensor, to_matrix
from flwr_splitfc.exchange.protocol.ticket import PROTOCOLS, Ticket
from fuzz.choices import Choices
from fuzz.mutations import change_message, changed_bytes
from tests.exchange.raw_device import (
    NONCE,
    RawDevice,
    drain,
    open_frame,
    session_call,
    with_refusal,
)
from tests.exchange.step_frames import label_bytes
from tests.exchange.test_hostile_replies import ARRAYS, FRAMES, METRICS, OTHERS
from tests.halves import DeviceHalf, batches, seeded
from tests.soak.legs import LIMITS, Leg

FEATURES = (4, 4, 4)
ROWS = 16_384
REPLY_METRICS = {
    "num-examples": 48,
    "steps": 3,
    "uplink_bytes": 1000,
    "downlink_bytes": 1000,
    "reconnects": 0,
    "codec_seconds": 0.1,
    "train_loss": 1.0,
}


class Misbehaved(Exception):
    """The error reply of a device that has had its way."""


@dataclass(frozen=True)
class Turn:
    """A hostile device's turn: the message, and what it decides by."""

    leg: Leg
    message: Message
    context: Context
    draw: random.Random
    over: threading.Event

    @property
    def ticket(self) -> Ticket:
        return Ticket.from_message(self.message)

    @property
    def address(self) -> str:
        """As of an endpoint, which `RawDevice` asks for it."""
        return self.ticket.address

    def raw(self) -> RawDevice:
        return RawDevice(self, self.ticket)

    def wait(self, seconds: float) -> None:
        self.over.wait(seconds)

    def features(self, scale: float = 1.0, rows: int = 8) -> pb.Matrix:
        """Features coded as agreed."""
        codec = cut_codec(self.ticket.codec)
        encoded, _ = codec.encode_features(
            scale * torch.rand(rows, *FEATURES),
            generator=torch.Generator().manual_seed(0),
            all_rows=bool(self.ticket.output_codec),
        )
        return to_matrix(encoded)

    def step(self, number: int = 1, rows: int = 8, label: int = 0) -> pb.DeviceFrame:
        step = pb.Step(
            features=self.features(rows=rows), labels=label_bytes(rows, label)
        )
        return pb.DeviceFrame(number=number, step=step)

    def reply(self) -> Message:
        """The reply of a device that says that it has trained, and has not."""
        arrays = dict(self.message.content.array_records.get("arrays", {}))
        metrics = dict(REPLY_METRICS)
        if self.ticket.purpose == "evaluate":
            metrics["eval_loss"] = metrics.pop("train_loss")
        content = {"metrics": MetricRecord(metrics)}
        if self.ticket.purpose == "train":
            content["arrays"] = ArrayRecord(arrays)
        return Message(RecordDict(content), reply_to=self.message)


Misdeed = Callable[[Turn], Message | None]


@contextlib.contextmanager
def raw_device(turn: Turn) -> Iterator[RawDevice]:
    device = turn.raw()
    try:
        yield device
    finally:
        device.drop()


# -- in the session --------------------------------------------------------------------


def never_opens(turn: Turn) -> None:
    turn.wait(1.5 * LIMITS.open_timeout_s)


def asks_now_and_then(turn: Turn) -> None:
    x, _ = batches(1)[0]
    with connect(turn.message) as session:
        while not turn.over.is_set():
            session.predict(seeded(DeviceHalf)(x))
            turn.wait(1.0)


def falls_silent(turn: Turn) -> None:
    with raw_device(turn):
        turn.wait(1.5 * LIMITS.idle_timeout_s)


def breaks_off(turn: Turn) -> None:
    for _ in range(turn.draw.randrange(1, 10)):
        with raw_device(turn):
            pass


def never_replies(turn: Turn) -> None:
    with raw_device(turn) as device:
        if turn.draw.random() < 0.5:
            device.send(pb.DeviceFrame(leave=pb.Leave()))
            turn.wait(1.0)
        else:
            device.ask(pb.DeviceFrame(number=1, close=pb.Close()))
    turn.wait(1.5 * LIMITS.reply_timeout_s)


def hoards(turn: Turn) -> Message | None:
    empty = [pb.Tensor()] * 200_000
    much = [pack_tensor(name, torch.zeros(1_000_000)) for name in "ab"]
    closes = [
        pb.Close(state=empty),
        pb.Close(optimizer=empty),
        pb.Close(state=much),
        pb.Close(state=[pb.Tensor(name="n" * 3_000_000)]),
        pb.Close(state=[pb.Tensor(shape=[1] * 3_000_000)]),
    ]
    return _close(turn, turn.draw.choice(closes))


def leaves_wrong_state(turn: Turn) -> Message | None:
    weight = torch.zeros(4, 1, 3, 3)
    wrong = [
        pack_tensor("0.exp_avg", weight + float("nan")),
        pack_tensor("99.exp_avg", weight),
        pack_tensor("nobody", weight),
        pack_tensor("0.exp_avg", torch.zeros(7)),
    ]
    close = pb.Close(optimizer=[turn.draw.choice(wrong)])
    # what is not relayed is the device's own business
    is_refused = turn.leg.options.get("optimizer_state") == "relay"
    return _close(turn, close, with_reply=is_refused)


def _close(turn: Turn, close: pb.Close, with_reply: bool = True) -> Message | None:
    """On the stream, or with the reply, which is otherwise a good one."""
    frame = pb.DeviceFrame(number=1, close=close)
    if with_reply and turn.draw.random() < 0.5:
        reply = turn.reply()
        reply.content[FRAME_KEY] = frame_record(frame)
        return reply
    with raw_device(turn) as device:
        device.ask(frame)
    return None


def many_streams(turn: Turn) -> None:
    """Sixty connections with the token of one session."""
    with raw_device(turn), contextlib.ExitStack() as at_end:
        never = threading.Event()
        at_end.callback(never.set)

        def frames() -> Iterator[pb.DeviceFrame]:
            if turn.draw.random() < 0.5:
                yield open_frame(NONCE)
            never.wait()

        for _ in range(60):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.insecure_channel(turn.address, options=options)
            at_end.callback(channel.close)
            replies = session_call(channel, turn.ticket.token, frames())
            threading.Thread(target=drain, args=(replies,), daemon=True).start()
        turn.wait(2.0)


def many_rows(turn: Turn) -> None:
    with raw_device(turn) as device:
        device.ask(turn.step(rows=ROWS))


def wrong_shape(turn: Turn) -> None:
    step = turn.step()
    step.step.features.shape[:] = turn.draw.choice([(8, 64), (8, 4, 16), (8,), ()])
    with raw_device(turn) as device:
        device.ask(step)


def no_numbers(turn: Turn) -> None:
    """Features that are not finite, in the place of payloads of any codec."""
    step = turn.step()
    nan = torch.full((8, *FEATURES), float("nan")).numpy().tobytes()
    step.step.features.data = nan[: max(len(step.step.features.data), 64)]
    step.step.features.shape[:] = (8, *FEATURES, 1, 1, 1, 1, 1, 1)
    with raw_device(turn) as device:
        device.ask(step)


def features_that_overflow(turn: Turn) -> None:
    """Legal, but the running statistics would be infinite."""
    step = pb.Step(features=turn.features(1e30), labels=label_bytes(8))
    with raw_device(turn) as device:
        device.ask(pb.DeviceFrame(number=1, step=step))


def wrong_labels(turn: Turn) -> None:
    with raw_device(turn) as device:
        device.ask(turn.step(label=turn.draw.choice([4, 99, 2**30])))


def frames_out_of_order(turn: Turn) -> None:
    with raw_device(turn) as device:
        device.ask(turn.step(number=turn.draw.choice([0, 2, 7, 2**63])))


def one_frame_again_and_again(turn: Turn) -> None:
    """It is applied once."""
    frame = turn.step()
    for _ in range(5):
        with raw_device(turn) as device:
            device.ask(frame)


def steps_without_end(turn: Turn) -> None:
    with raw_device(turn) as device:
        for number in range(1, 1000):
            device.ask(turn.step(number))


def huge_open(turn: Turn) -> None:
    software = "s" * turn.draw.choice([1000, 10_000, 10_000_000])
    hello = pb.Open(protocol=PROTOCOLS[-1], nonce=NONCE, software=software)
    _send_bytes(turn, [pb.DeviceFrame(open=hello).SerializeToString()])


def compressed_frames(turn: Turn) -> None:
    data = [open_frame().SerializeToString(), bytes(20_000_000)]
    _send_bytes(turn, data, grpc.Compression.Gzip)


def mutated_frames(turn: Turn) -> None:
    choices = Choices(turn.draw.randbytes(300))
    data = [open_frame().SerializeToString()]
    for number in range(1, 6):
        frame = turn.step(number)
        while choices.one_in(2):
            change_message(frame, choices)
        changed = frame.SerializeToString()
        if choices.one_in(2):
            changed = changed_bytes(changed, choices)
        data.append(changed)
    _send_bytes(turn, data)


def _send_bytes(
    turn: Turn,
    frames: list[bytes],
    compression: grpc.Compression = grpc.Compression.NoCompression,
) -> None:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
    ]
    with grpc.insecure_channel(
        turn.address, options=options, compression=compression
    ) as channel:
        call = channel.stream_stream(
            SESSION_METHOD, lambda data: data, pb.ServerFrame.FromString
        )
        metadata = ((TOKEN_KEY, turn.ticket.token),)
        list(with_refusal(call(iter(frames), metadata=metadata)))


# -- in the reply ----------------------------------------------------------------------


def raises_an_error(turn: Turn) -> Message:
    reasons = ["no\n\x1b[2Jspace", "x" * 100_000, "", "\n" * 10_000, "\x00%s"]
    return Message(Error(2, turn.draw.choice(reasons)), reply_to=turn.message)


def hostile_reply(turn: Turn) -> Message:
    reply = turn.reply()
    change, _ = turn.draw.choice(METRICS + FRAMES + ARRAYS + OTHERS)
    return change(reply) or reply


def frame_in_the_reply(turn: Turn) -> Message:
    """Where frames travel in messages: one that is none, or is changed."""
    choices = Choices(turn.draw.randbytes(100))
    data = turn.step().SerializeToString()
    while choices.one_in(2):
        data = changed_bytes(data, choices)
    if turn.draw.random() < 0.3:
        data = turn.draw.randbytes(50)
    content = {FRAME_KEY: ConfigRecord({"frame": data})}
    if not turn.message.content.array_records:
        # or a step that is taken would be followed by another for ever
        return raises_an_error(turn)
    return Message(RecordDict(content), reply_to=turn.message)


# -- what is allowed, and wrong on purpose ---------------------------------------------


def wrong_weights(turn: Turn) -> Message:
    """Finite, and of the right shapes: they end in the average."""
    reply = turn.reply()
    arrays = reply.content.array_records["arrays"]
    for name, array in list(arrays.items()):
        values: Tensor = 0.1 * torch.randn(array.shape)
        arrays[name] = Array(values.numpy())
    return reply


def huge_features(turn: Turn) -> None:
    """As large as the half takes them."""
    scale = 10.0 ** turn.draw.randrange(2, 15)
    with raw_device(turn) as device:
        for number in (1, 2, 3):
            step = pb.Step(features=turn.features(scale), labels=label_bytes(8))
            device.ask(pb.DeviceFrame(number=number, step=step))


def infinite_loss(turn: Turn) -> Message:
    reply = turn.leg.app(turn.message, turn.context)
    reply.content.metric_records["metrics"]["train_loss"] = float("inf")
    return reply


def wrong_output_gradients(turn: Turn) -> None:
    """Of a device with the last layers: gradients of any size, or none."""
    gradient = 10.0 ** turn.draw.randrange(0, 38) * torch.ones(8, 4)
    codec = cut_codec(turn.ticket.output_codec).mirror()
    with raw_device(turn) as device:
        forward = pb.Forward(features=turn.features())
        device.ask(pb.DeviceFrame(number=1, forward=forward))
        encoded, _ = codec.encode_features(gradient)
        backward = pb.Backward(gradient=to_matrix(encoded))
        if turn.draw.random() < 0.5:
            backward.gradient.shape[:] = [8, 5]
        device.ask(pb.DeviceFrame(number=2, backward=backward))


# -- which of them where ---------------------------------------------------------------

# those of the last line take as long as a limit lets them, so they are drawn seldom
LATE: list[Misdeed] = [asks_now_and_then, falls_silent, never_opens, never_replies]
WITHOUT_A_STEP: list[Misdeed] = [
    *(breaks_off, compressed_frames, frames_out_of_order, hoards, huge_open),
    *(leaves_wrong_state, many_rows, many_streams, no_numbers, wrong_labels),
    *(features_that_overflow, raises_an_error, wrong_shape),
    *(hostile_reply, hostile_reply, hostile_reply, hostile_reply),
]
WITH_STEPS: list[Misdeed] = [
    *(mutated_frames, mutated_frames, mutated_frames, mutated_frames),
    *(one_frame_again_and_again, steps_without_end),
]
ALLOWED: list[Misdeed] = [huge_features, wrong_weights]

MISDEEDS: dict[str, list[Misdeed]] = {
    "copies": WITHOUT_A_STEP + WITH_STEPS,
    "in turn": WITHOUT_A_STEP,
    "together": WITHOUT_A_STEP + WITH_STEPS + ALLOWED + ALLOWED,
    "in messages": [raises_an_error, hostile_reply, frame_in_the_reply],
    "u-shaped": [
        *(infinite_loss, wrong_output_gradients, wrong_output_gradients),
        *(hoards, hostile_reply, mutated_frames, breaks_off),
    ],
}
LATE_ONCE_IN = 30


def misbehave(turn: Turn) -> Message:
    """The reply of a hostile device.

    Raises
    ------
    Exception
        Mostly: the server refuses what the device does.
    """
    if turn.message.metadata.message_type.startswith("query"):
        return wrong_name(turn)
    if turn.ticket.purpose == "evaluate":
        change, _ = turn.draw.choice(METRICS + FRAMES)
        reply = turn.reply()
        return change(reply) or reply
    misdeeds = MISDEEDS[turn.leg.name]
    if turn.ticket.address and turn.draw.randrange(LATE_ONCE_IN) == 0:
        misdeeds = LATE
    reply = turn.draw.choice(misdeeds)(turn)
    if reply is None:
        raise Misbehaved("it has done what it wanted")
    return reply


def wrong_name(turn: Turn) -> Message:
    """Its own, one that is none, or an honest device's; and a config with any budget."""
    own = str(turn.context.node_config["partition-id"])
    names = [own, own, "3", "9" * 5000, "\x1b[2J\n", "", "x" * 101, 7, ["0"], b"0"]
    bits = [1.0, float("nan"), -1.0, "much", True]
    config = ConfigRecord({"partition-id": 3})
    if turn.draw.random() < 0.05:
        config["uplink-bits"] = turn.draw.choice(bits)
    name = ConfigRecord({"device-name": turn.draw.choice(names)})
    content = {"device-name": name, "node-config": config}
    return Message(RecordDict(content), reply_to=turn.message)
