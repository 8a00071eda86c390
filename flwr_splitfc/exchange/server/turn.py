"""The server's end of one session: what it answers to each frame, and what it counts."""

import hashlib
import math
import time
from collections import Counter
from typing import NamedTuple

import torch

from flwr_splitfc.codec import CutCodec, Link, PayloadError, unpack_labels
from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.errors import (
    FeaturesRefused,
    GradientRefused,
    LabelsRefused,
    LimitExceeded,
    ProtocolError,
)
from flwr_splitfc.exchange.protocol.seeds import derive_seed, seeded_generator
from flwr_splitfc.exchange.protocol.tensors import from_matrix, pack_tensor, to_matrix
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.device_states import DeviceStates, Kept
from flwr_splitfc.exchange.server.half_trainer import ForwardPass, Update
from flwr_splitfc.exchange.server.halves import Halves
from flwr_splitfc.exchange.server.limits import Limits
from flwr_splitfc.exchange.server.payload_digest import DIGEST_BITS
from flwr_splitfc.exchange.server.traffic import Traffic

MOST_SECONDS = 1e6  # what a device says of itself is not believed beyond, nor NaN
GRPC_MESSAGE_BYTES = 5  # compression flag and length before every message


class _Begun(NamedTuple):
    """The first half of a step, until the second comes."""

    passed: ForwardPass
    link: Link
    output_link: Link


class Turn:
    """One device's turn with a server half.

    Nothing that a device sends is trusted: whatever is wrong raises a `SplitError` by
    name before the half is touched.

    Parameters
    ----------
    purpose : "train" or "evaluate"
        What the device may do.
    device : str
        Its name.
    server_round : int
    halves : Halves
        Where it gets the server half it works with.
    codec : CutCodec
        What is agreed at the cut.
    states : DeviceStates
        What devices keep between turns.
    limits : Limits
    output_codec : CutCodec, optional
        What is agreed for the server half's output, where the device has the last
        layers.
    seed : int (default: 0)
        The run's seed, for what is random in the coding of the output.

    Attributes
    ----------
    traffic : Traffic
        What was counted so far.
    done : bool
        Whether the device has said that it is through.
    busy_seconds : float
        How long the device's frames were worked on so far.
    """

    def __init__(
        self,
        purpose: Purpose,
        device: str,
        server_round: int,
        halves: Halves,
        codec: CutCodec,
        states: DeviceStates,
        limits: Limits,
        *,
        output_codec: CutCodec | None = None,
        seed: int = 0,
    ) -> None:
        self.purpose = purpose
        self.device = device
        self.server_round = server_round
        self.halves = halves
        self.half = halves.half
        self.codec = codec
        self.output_codec = output_codec.mirror() if output_codec else None
        self.seed = derive_seed(seed, device, server_round)
        self.states = states
        self.limits = limits
        self.traffic = Traffic(sessions=1)
        self.done = False
        self._steps = 0
        self._rows = 0
        self._hash = hashlib.blake2b(
            f"{purpose}/{device}/{server_round}/".encode(), digest_size=DIGEST_BITS // 8
        )
        self._full_rows = 0
        self._begun: _Begun | None = None
        self.busy_seconds = 0.0

    def open(self) -> pb.ServerFrame:
        """The answer to the admission: what earlier turns left."""
        kept = Kept()
        if self.purpose == "train":
            self.half = self.halves.take(self.device, self.server_round)
            kept = self.states.of(self.device)
        return pb.ServerFrame(
            opened=pb.Opened(optimizer=kept.optimizer, state=kept.state)
        )

    def answer(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """The answer to a frame after the first.

        Raises
        ------
        SplitError
            The device is to be refused, and the half is as it was.
        """
        if self.done:
            raise ProtocolError("the session is closed")
        match frame.WhichOneof("kind"):
            case "step":
                self._count_step()
                stepped = self._step(frame.step)
                self._digest(
                    frame.step.features.data, frame.step.labels, stepped.gradient.data
                )
                return pb.ServerFrame(stepped=stepped)
            case "forward":
                self._count_step()
                output = self._forward(frame.forward)
                self._digest(frame.forward.features.data, output.output.data)
                return pb.ServerFrame(output=output)
            case "backward":
                gradients = self._backward(frame.backward)
                self._digest(frame.backward.gradient.data, gradients.gradient.data)
                return pb.ServerFrame(gradients=gradients)
            case "predict":
                self._count_step()
                predicted = self._predict(frame.predict)
                self._digest(frame.predict.features.data, predicted.logits.data)
                return pb.ServerFrame(predicted=predicted)
            case "close":
                return pb.ServerFrame(closed=self._close(frame.close))
            case kind:
                raise ProtocolError(f"a frame of kind {kind!r} cannot come here")

    def _digest(self, *payloads: bytes) -> None:
        for payload in payloads:
            self._hash.update(len(payload).to_bytes(8, "little"))
            self._hash.update(payload)

    def forget(self) -> None:
        """Drop what waits for the device: it cannot come any more."""
        self._begun = None

    def settle(self) -> None:
        """The device has replied to the strategy: hand the trained half back, once."""
        half, self.half = self.half, self.halves.half
        if self.done and self.purpose == "train":
            self.halves.give_back(half, self._rows)
        self._rows = 0

    def _count_step(self) -> None:
        if self._steps == self.limits.max_steps:
            raise LimitExceeded(f"a session may take {self.limits.max_steps} steps")
        self._steps += 1

    def _step(self, step: pb.Step) -> pb.Stepped:
        self._check_trains()
        if self.output_codec is not None:
            raise ProtocolError(
                "the loss is the device's, which has the last layers: send Forward, not Step"
            )
        started = time.perf_counter()
        features, link = self._features_to_train_on(step.features)
        rows = len(features)
        labels = self._labels(step.labels, link.sent)
        sent = link.sent_rows(features)
        decoded = time.perf_counter()

        loss, gradient = self.half.step(
            sent, labels, Update(self.server_round, self.device, self._steps)
        )

        stepped = time.perf_counter()
        array = self._trained(link.all_rows(gradient), link)
        self.traffic.loss_sum += loss * rows
        self.traffic.loss_rows += rows
        self.traffic.server_codec_seconds += (
            decoded - started + time.perf_counter() - stepped
        )
        return pb.Stepped(loss=loss, gradient=array)

    def _forward(self, forward: pb.Forward) -> pb.Output:
        self._check_trains()
        if self.output_codec is None:
            raise ProtocolError("the loss is the server's: send Step, not Forward")
        started = time.perf_counter()
        self.forget()
        features, link = self._features_to_train_on(forward.features)
        if link.samples is not None:
            raise FeaturesRefused(
                f"{link.sent} of {link.rows} rows came; the device's loss needs the output of all"
            )
        decoded = time.perf_counter()

        passed = self.half.forward(features)

        output, passed_at = passed.output.detach().cpu(), time.perf_counter()
        self._check_budget(self.output_codec, len(output), output[0].numel())
        generator = seeded_generator(self.seed, "output", self._steps)
        array, output_link = self.output_codec.encode_features(
            output, generator=generator, full_rows=self._full_rows
        )
        self._begun = _Begun(passed, link, output_link)
        self.traffic.server_codec_seconds += (
            decoded - started + time.perf_counter() - passed_at
        )
        return pb.Output(output=to_matrix(array))

    def _backward(self, backward: pb.Backward) -> pb.Gradients:
        begun = self._begun
        if begun is None or self.output_codec is None:
            raise ProtocolError("Backward came without a Forward")
        started = time.perf_counter()
        try:
            gradient = self.output_codec.decode_gradient(
                from_matrix(backward.gradient), begun.output_link
            )
        except PayloadError as error:
            raise GradientRefused(str(error)) from error
        decoded = time.perf_counter()

        origin = Update(self.server_round, self.device, self._steps)
        x_grad = self.half.backward(
            begun.passed, gradient.reshape(begun.passed.output.shape), origin
        )

        self.forget()
        stepped = time.perf_counter()
        array = self._trained(x_grad, begun.link)
        self.traffic.output_entries += gradient.numel()
        self.traffic.server_codec_seconds += (
            decoded - started + time.perf_counter() - stepped
        )
        return pb.Gradients(gradient=array)

    def _check_trains(self) -> None:
        if self.purpose != "train":
            raise ProtocolError("an evaluation's session cannot train")

    def _features_to_train_on(self, matrix: pb.Matrix) -> tuple[torch.Tensor, Link]:
        features, link = self._features(matrix, self.codec.stype)
        self._check_budget(self.codec, len(features), features[0].numel())
        self._full_rows = max(self._full_rows, len(features))
        return features, link

    def _trained(self, gradient: torch.Tensor, link: Link) -> pb.Matrix:
        """Count a mini-batch that the half was trained on; its features' gradient as it goes down."""
        self._rows += len(gradient)
        self.traffic.steps += 1
        self.traffic.rows += len(gradient)
        self.traffic.entries += gradient.numel()
        return to_matrix(
            self.codec.encode_gradient(
                gradient.flatten(1), link, full_rows=self._full_rows
            )
        )

    def _predict(self, predict: pb.Predict) -> pb.Predicted:
        features, _ = self._features(predict.features, self.codec.evaluation_stype)
        logits = self.half.predict(features)
        self.traffic.steps += 1
        self.traffic.rows += len(features)
        self.traffic.entries += features.numel()
        return pb.Predicted(logits=pack_tensor("logits", logits))

    def _close(self, close: pb.Close) -> pb.Closed:
        if 0 <= close.codec_seconds < MOST_SECONDS:
            self.traffic.device_codec_seconds = close.codec_seconds
        if self.busy_seconds <= close.waited_seconds < MOST_SECONDS:
            self.traffic.link_seconds = close.waited_seconds - self.busy_seconds
        if self.purpose == "train":
            self.states.keep(
                self.device, Kept(tuple(close.optimizer), tuple(close.state))
            )
        self.forget()
        self.traffic.digest = int.from_bytes(self._hash.digest(), "little")
        self.done = True
        return pb.Closed()

    def _features(self, matrix: pb.Matrix, stype: str) -> tuple[torch.Tensor, Link]:
        """Features in their own shape, and the link; every way to be wrong is a `FeaturesRefused`."""
        if len(matrix.shape) > MOST_DIMENSIONS:
            raise FeaturesRefused(
                f"features have {len(matrix.shape)} dimensions, at most {MOST_DIMENSIONS} may be"
            )
        shape = tuple(matrix.shape)
        agreed = self.half.feature_shape
        if matrix.stype != stype:
            raise FeaturesRefused(
                f"features are coded as {matrix.stype!r}, agreed is {stype!r}"
            )
        if len(shape) < 2 or 0 in shape:
            raise FeaturesRefused(
                f"features have shape {shape}, wanted (B, ...) with no empty dimension"
            )
        if agreed is not None and shape[1:] != agreed:
            raise FeaturesRefused(
                f"features of a sample have shape {shape[1:]}, the server half takes {agreed}"
            )
        columns = math.prod(shape[1:])
        max_rows = self.limits.max_matrix_bytes // (4 * columns)
        if shape[0] > max_rows:
            raise FeaturesRefused(
                f"features of shape {shape} are over {self.limits.max_matrix_bytes} bytes"
            )
        try:
            seen, link = self.codec.decode_features(
                from_matrix(matrix), expect=(max_rows, columns)
            )
        except PayloadError as error:
            raise FeaturesRefused(str(error)) from error
        return seen.reshape(shape), link

    def _check_budget(self, codec: CutCodec, rows: int, columns: int) -> None:
        if rows < self._full_rows:
            return
        try:
            codec.check_budget(rows, columns)
        except ValueError as error:
            raise LimitExceeded(str(error)) from error

    def _labels(self, data: bytes, rows: int) -> torch.Tensor:
        try:
            labels = unpack_labels(data, max_entries=self.limits.max_label_entries)
        except PayloadError as error:
            raise LabelsRefused(str(error)) from error
        if labels.ndim < 1 or len(labels) != rows:
            raise LabelsRefused(
                f"labels have shape {tuple(labels.shape)}, wanted {rows} rows"
            )
        return labels


def count_uplink(traffic: Traffic, frame: pb.DeviceFrame) -> None:
    """Enter what a device sent, by kind."""
    with_features = (frame.step, frame.forward, frame.predict)
    kinds = {
        "features": sum(len(kind.features.data) for kind in with_features),
        "output_gradient": len(frame.backward.gradient.data),
        "labels": len(frame.step.labels),
        "state": sum(
            len(tensor.data) for tensor in (*frame.close.optimizer, *frame.close.state)
        ),
    }
    _count(traffic.uplink_bytes, frame.ByteSize(), kinds)


def count_downlink(traffic: Traffic, frame: pb.ServerFrame) -> None:
    """Enter what it was answered, by kind."""
    kinds = {
        "gradient": len(frame.stepped.gradient.data)
        + len(frame.gradients.gradient.data),
        "output": len(frame.output.output.data),
        "logits": len(frame.predicted.logits.data),
        "state": sum(
            len(tensor.data)
            for tensor in (*frame.opened.optimizer, *frame.opened.state)
        ),
    }
    _count(traffic.downlink_bytes, frame.ByteSize(), kinds)


def count_resent(
    traffic: Traffic, frame: pb.DeviceFrame, reply: pb.ServerFrame
) -> None:
    """Enter a frame and its answer that crossed the wire once more."""
    traffic.uplink_bytes["resent"] += frame.ByteSize() + GRPC_MESSAGE_BYTES
    traffic.downlink_bytes["resent"] += reply.ByteSize() + GRPC_MESSAGE_BYTES


def _count(counts: Counter[str], frame_bytes: int, kinds: dict[str, int]) -> None:
    """Enter a frame by kind; what no kind claims is framing."""
    counts.update(kinds)
    counts["framing"] += frame_bytes + GRPC_MESSAGE_BYTES - sum(kinds.values())
