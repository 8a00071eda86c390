"""The server's end of one session: what it answers to each frame, and what it counts."""

import hashlib
import math
import time
from collections import Counter

import torch
from flwr.app import Array

from flwr_splitfc.codec import CutCodec, Link, PayloadError, unpack_labels
from flwr_splitfc.exchange import split_pb2 as pb
from flwr_splitfc.exchange.errors import FeaturesRefused, LabelsRefused, LimitExceeded, ProtocolError
from flwr_splitfc.exchange.half import Update
from flwr_splitfc.exchange.halves import Halves
from flwr_splitfc.exchange.ledger import DIGEST_BITS, Traffic
from flwr_splitfc.exchange.limits import Limits
from flwr_splitfc.exchange.states import DeviceStates, Kept
from flwr_splitfc.exchange.tensors import MOST_DIMENSIONS, pack_tensor
from flwr_splitfc.exchange.ticket import Purpose

MOST_CODEC_SECONDS = 1e6  # what a device says of itself is not believed beyond, nor NaN
GRPC_MESSAGE_BYTES = 5  # compression flag and length before every message


class Turn:
    """One device's turn with a server half.

    Nothing that a device sends is trusted: whatever is wrong raises a `SplitError` by name before the
    half is touched.

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

    Attributes
    ----------
    traffic : Traffic
        What was counted so far.
    done : bool
        Whether the device has said that it is through.
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
    ) -> None:
        self.purpose = purpose
        self.device = device
        self.server_round = server_round
        self.halves = halves
        self.half = halves.half
        self.codec = codec
        self.states = states
        self.limits = limits
        self.traffic = Traffic(sessions=1)
        self.done = False
        self._steps = 0
        self._rows = 0
        self._hash = hashlib.blake2b(f"{purpose}/{device}/{server_round}/".encode(), digest_size=DIGEST_BITS // 8)
        self._full_rows = 0

    def open(self) -> pb.ServerFrame:
        """The answer to the admission: what earlier turns left."""
        kept = Kept()
        if self.purpose == "train":
            self.half = self.halves.take(self.device, self.server_round)
            kept = self.states.of(self.device)
        return pb.ServerFrame(opened=pb.Opened(optimizer=kept.optimizer, state=kept.state))

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
                self._digest(frame.step.features.data, frame.step.labels, stepped.gradient.data)
                return pb.ServerFrame(stepped=stepped)
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
        if self.purpose != "train":
            raise ProtocolError("an evaluation's session cannot train")
        started = time.perf_counter()
        features, link = self._features(step.features, self.codec.stype)
        rows = len(features)
        if rows > self._full_rows:
            self._check_budget(rows, features[0].numel())
            self._full_rows = rows
        labels = self._labels(step.labels, rows)
        decoded = time.perf_counter()

        loss, gradient = self.half.step(features, labels, Update(self.server_round, self.device, self._steps))

        self._rows += rows
        stepped = time.perf_counter()
        array = self.codec.encode_gradient(gradient.flatten(1), link, full_rows=self._full_rows)
        traffic = self.traffic
        traffic.steps += 1
        traffic.rows += rows
        traffic.loss_sum += loss * rows
        traffic.entries += features.numel()
        traffic.server_codec_seconds += decoded - started + time.perf_counter() - stepped
        return pb.Stepped(loss=loss, gradient=pb.Matrix(stype=array.stype, shape=array.shape, data=array.data))

    def _predict(self, predict: pb.Predict) -> pb.Predicted:
        features, _ = self._features(predict.features, self.codec.evaluation_stype)
        logits = self.half.predict(features)
        self.traffic.steps += 1
        self.traffic.rows += len(features)
        self.traffic.entries += features.numel()
        return pb.Predicted(logits=pack_tensor("logits", logits))

    def _close(self, close: pb.Close) -> pb.Closed:
        if 0 <= close.codec_seconds < MOST_CODEC_SECONDS:
            self.traffic.device_codec_seconds = close.codec_seconds
        if self.purpose == "train":
            self.states.keep(self.device, Kept(tuple(close.optimizer), tuple(close.state)))
        self.traffic.digest = int.from_bytes(self._hash.digest(), "little")
        self.done = True
        return pb.Closed()

    def _features(self, matrix: pb.Matrix, stype: str) -> tuple[torch.Tensor, Link]:
        """Features in their own shape, and the link; every way to be wrong is a `FeaturesRefused`."""
        if len(matrix.shape) > MOST_DIMENSIONS:
            raise FeaturesRefused(f"features have {len(matrix.shape)} dimensions, at most {MOST_DIMENSIONS} may be")
        shape = tuple(matrix.shape)
        agreed = self.half.feature_shape
        if matrix.stype != stype:
            raise FeaturesRefused(f"features are coded as {matrix.stype!r}, agreed is {stype!r}")
        if len(shape) < 2 or 0 in shape:
            raise FeaturesRefused(f"features have shape {shape}, wanted (B, ...) with no empty dimension")
        if agreed is not None and shape[1:] != agreed:
            raise FeaturesRefused(f"features of a sample have shape {shape[1:]}, the server half takes {agreed}")
        columns = math.prod(shape[1:])
        max_rows = self.limits.max_matrix_bytes // (4 * columns)
        if shape[0] > max_rows:
            raise FeaturesRefused(f"features of shape {shape} are over {self.limits.max_matrix_bytes} bytes")
        array = Array(dtype="float32", shape=shape, stype=matrix.stype, data=matrix.data)
        try:
            seen, link = self.codec.decode_features(array, expect=(max_rows, columns))
        except PayloadError as error:
            raise FeaturesRefused(str(error)) from error
        return seen.reshape(shape), link

    def _check_budget(self, rows: int, columns: int) -> None:
        try:
            self.codec.check_budget(rows, columns)
        except ValueError as error:
            raise LimitExceeded(str(error)) from error

    def _labels(self, data: bytes, rows: int) -> torch.Tensor:
        try:
            labels = unpack_labels(data, max_entries=self.limits.max_label_entries)
        except PayloadError as error:
            raise LabelsRefused(str(error)) from error
        if labels.ndim < 1 or len(labels) != rows:
            raise LabelsRefused(f"labels have shape {tuple(labels.shape)}, wanted {rows} rows")
        return labels


def count_uplink(traffic: Traffic, frame: pb.DeviceFrame) -> None:
    """Enter what a device sent, by kind."""
    kinds = {
        "features": len(frame.step.features.data) + len(frame.predict.features.data),
        "labels": len(frame.step.labels),
        "state": sum(len(tensor.data) for tensor in (*frame.close.optimizer, *frame.close.state)),
    }
    _count(traffic.uplink_bytes, frame.ByteSize(), kinds)


def count_downlink(traffic: Traffic, frame: pb.ServerFrame) -> None:
    """Enter what it was answered, by kind."""
    kinds = {
        "gradient": len(frame.stepped.gradient.data),
        "logits": len(frame.predicted.logits.data),
        "state": sum(len(tensor.data) for tensor in (*frame.opened.optimizer, *frame.opened.state)),
    }
    _count(traffic.downlink_bytes, frame.ByteSize(), kinds)


def count_resent(traffic: Traffic, frame: pb.DeviceFrame, reply: pb.ServerFrame) -> None:
    """Enter a frame and its answer that crossed the wire once more."""
    traffic.uplink_bytes["resent"] += frame.ByteSize() + GRPC_MESSAGE_BYTES
    traffic.downlink_bytes["resent"] += reply.ByteSize() + GRPC_MESSAGE_BYTES


def _count(counts: Counter[str], frame_bytes: int, kinds: dict[str, int]) -> None:
    """Enter a frame by kind; what no kind claims is framing."""
    counts.update(kinds)
    counts["framing"] += frame_bytes + GRPC_MESSAGE_BYTES - sum(kinds.values())
