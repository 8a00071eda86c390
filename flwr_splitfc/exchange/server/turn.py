"""One device's turn: what the server answers to each frame, and what it counts."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from flwr.app import Array

from flwr_splitfc.codec import CutCodec, Link
from flwr_splitfc.codec.quality import gradient_error, labels_per_row
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.error_samples import MOST_ERROR, is_measured
from flwr_splitfc.exchange.protocol.seeds import derive_seed, seeded_generator
from flwr_splitfc.exchange.protocol.split_errors import (
    FeaturesRefused,
    LimitExceeded,
    ProtocolError,
)
from flwr_splitfc.exchange.protocol.stopwatch import Stopwatch
from flwr_splitfc.exchange.protocol.tensors import (
    gradient_matrix,
    pack_tensor,
    to_matrix,
)
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.device_states import DeviceStates, Kept
from flwr_splitfc.exchange.server.half_steps import ForwardPass, Update
from flwr_splitfc.exchange.server.halves import Halves
from flwr_splitfc.exchange.server.kept_tensors import check_kept
from flwr_splitfc.exchange.server.limits import Limits
from flwr_splitfc.exchange.server.payload_digest import PayloadDigest
from flwr_splitfc.exchange.server.received import (
    check_budget,
    decode_features,
    decode_labels,
    decode_output_gradient,
    matrix_bytes,
)
from flwr_splitfc.exchange.server.traffic import Traffic
from flwr_splitfc.exchange.server.work_budget import WorkBudget

_MOST_SECONDS = 1e6  # a device that says it took longer, or NaN, is not believed


class _Waiting(NamedTuple):
    """The first half of a U-shaped step, until the second comes."""

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
    budget : WorkBudget, optional
        Of memory, which all turns share.

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
        *,
        output_codec: CutCodec | None = None,
        seed: int = 0,
        budget: WorkBudget | None = None,
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
        self.budget = budget or WorkBudget(limits.max_work_bytes)
        self.traffic = Traffic(sessions=1)
        self.done = False
        self._steps = 0
        self._trained_rows = 0
        # The largest batch so far. A smaller one, the last of an epoch, may go over the
        # budget where no payload fits into it, see `CutCodec.encode_features`.
        self._full_rows = 0
        self._sample_shape: tuple[int, ...] | None = None
        self._waiting: _Waiting | None = None
        # what is left to do of the last step, when the device has its answer
        self._unfinished: Callable[[], None] | None = None
        # what the device leaves for its next turn, until it has replied
        self._left: Kept | None = None
        # how long frames were answered so far
        self._busy = Stopwatch()
        self._digest = PayloadDigest(f"{purpose}/{device}/{server_round}/")

    def kept(self) -> pb.Kept:
        """Return what earlier turns left for this one."""
        if self.purpose != "train":
            return pb.Kept()
        kept = self.states.of(self.device)
        return pb.Kept(optimizer=kept.optimizer, state=kept.state)

    def open(self) -> pb.ServerFrame:
        """Answer Open: the turn begins."""
        with self._busy:
            if self.purpose == "train":
                self.half = self.halves.take(self.device, self.server_round)
        return pb.ServerFrame(opened=pb.Opened())

    def answer(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Answer a frame after the first.

        What the device need not wait for is left to `finish`.

        Raises
        ------
        SplitError
            The device is to be refused, and the half is as it was.
        """
        self.finish()
        with self._busy, self.budget.work(self._work_bytes(frame)):
            return self._answer(frame)

    def finish(self) -> None:
        """Do what is left of the last step, once: apply it, and count it.

        Raises
        ------
        StepRefused
            It cannot be applied, and the half is as it was.
        """
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished()

    def _work_bytes(self, frame: pb.DeviceFrame) -> int:
        """The size of the feature matrix, as float32, that a frame is about."""
        match frame.WhichOneof("kind"):
            case "step":
                features = frame.step.features
            case "forward":
                features = frame.forward.features
            case "predict":
                features = frame.predict.features
            case "backward" if self._waiting is not None:
                return self._waiting.passed.features.nbytes
            case _:
                return 0
        size_bytes = matrix_bytes(features)
        # a larger one is refused at once
        return size_bytes if size_bytes <= self.limits.max_matrix_bytes else 0

    def _answer(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        if self.done:
            raise ProtocolError("the session is closed")
        match frame.WhichOneof("kind"):
            case "step":
                return pb.ServerFrame(stepped=self._step(frame.step))
            case "forward":
                return pb.ServerFrame(output=self._forward(frame.forward))
            case "backward":
                return pb.ServerFrame(gradients=self._backward(frame.backward))
            case "predict":
                return pb.ServerFrame(predicted=self._predict(frame.predict))
            case "close":
                return pb.ServerFrame(closed=self._close(frame.close))
            case kind:
                raise ProtocolError(f"a frame of kind {kind!r} cannot come here")

    def forget(self) -> None:
        """Drop what waits for the device: it cannot come any more."""
        self._waiting = None

    def settle(self) -> None:
        """Keep what the turn leaves, once: the device has replied to the strategy.

        That is the trained half, and what the device wants for its next turn.
        """
        half, left = self.half, self._left
        # once: a second settlement finds the run's own half, and nothing left
        self.half, self._left = self.halves.half, None
        if left is not None:
            self.states.keep(self.device, left)
            self.halves.give_back(half, self._trained_rows)

    # -- the frames --------------------------------------------------------------------

    def _step(self, step: pb.Step) -> pb.Stepped:
        self._count_step()
        self._check_trains()
        if self.output_codec is not None:
            raise ProtocolError(
                "the loss is the device's, which has the last layers: "
                "send Forward, not Step"
            )
        coding = Stopwatch()
        with coding:
            features, link = self._features_to_train_on(step.features)
            labels = decode_labels(
                step.labels, link.sent, max_entries=self.limits.max_label_entries
            )
            sent = link.sent_rows(features)

        begun = self.half.begin_step(sent, labels, self._update(), one_way=step.one_way)

        stepped = pb.Stepped(loss=begun.loss)
        measure = None
        if begun.gradient is not None:
            gradient = link.all_rows(begun.gradient)
            with coding:
                encoded = self._encode_gradient(gradient, link, labels_per_row(labels))
            stepped.gradient.CopyFrom(gradient_matrix(encoded))
            measure = partial(self._measure_gradient, gradient, encoded, link)
        self.traffic.server_codec_seconds += coding.seconds

        def finish() -> None:
            begun.finish()
            self._count_trained(features)
            self.traffic.loss_sum += begun.loss * len(features)
            self.traffic.loss_rows += len(features)
            if measure is not None:
                measure()
            self._digest.update(step.features.data, step.labels, stepped.gradient.data)

        self._unfinished = finish
        return stepped

    def _forward(self, forward: pb.Forward) -> pb.Output:
        self._count_step()
        self._check_trains()
        if self.output_codec is None:
            raise ProtocolError("the loss is the server's: send Step, not Forward")
        coding = Stopwatch()
        with coding:
            self.forget()
            features, link = self._features_to_train_on(forward.features)
            if link.samples is not None:
                raise FeaturesRefused(
                    f"{link.sent} of {link.rows} rows came; "
                    "the device's loss needs the output of all"
                )

        passed = self.half.forward(features)
        output = passed.output.detach().cpu()

        with coding:
            encoded, output_link = self._encode_output(output, self.output_codec)
        self._waiting = _Waiting(passed, link, output_link)
        self.traffic.server_codec_seconds += coding.seconds
        self._unfinished = partial(
            self._digest.update, forward.features.data, encoded.data
        )
        return pb.Output(output=encoded)

    def _backward(self, backward: pb.Backward) -> pb.Gradients:
        waiting = self._waiting
        if waiting is None or self.output_codec is None:
            raise ProtocolError("Backward came without a Forward")
        coding = Stopwatch()
        with coding:
            output_gradient = decode_output_gradient(
                backward.gradient, self.output_codec, waiting.output_link
            )

        begun = self.half.begin_backward(
            waiting.passed,
            output_gradient.reshape(waiting.passed.output.shape),
            self._update(),
        )

        # not before: a refused Backward leaves its Forward waiting
        self.forget()
        # the rest of what waited is freed with this frame, and not when it is finished
        link, gradient = waiting.link, begun.gradient
        assert gradient is not None  # the features of a pass have one
        with coding:
            encoded = self._encode_gradient(gradient, link)
        self.traffic.server_codec_seconds += coding.seconds

        def finish() -> None:
            begun.finish()
            self._count_trained(gradient)
            self.traffic.output_entries += output_gradient.numel()
            self._measure_gradient(gradient, encoded, link)
            self._digest.update(backward.gradient.data, encoded.data)

        self._unfinished = finish
        return pb.Gradients(gradient=gradient_matrix(encoded))

    def _predict(self, predict: pb.Predict) -> pb.Predicted:
        self._count_step()
        stype = self.codec.evaluation_stype
        most = self.limits.max_predict_rows
        features, _ = self._features(predict.features, stype, most)
        output = self.half.predict(features)
        self._count_rows(features)
        logits = pack_tensor("logits", output)
        self._unfinished = partial(
            self._digest.update, predict.features.data, logits.data
        )
        return pb.Predicted(logits=logits)

    def _close(self, close: pb.Close) -> pb.Closed:
        if 0 <= close.codec_seconds < _MOST_SECONDS:
            self.traffic.device_codec_seconds = close.codec_seconds
        # of all frames before this one, which is still being answered
        busy_seconds = self._busy.seconds
        if busy_seconds <= close.waited_seconds < _MOST_SECONDS:
            self.traffic.link_seconds = close.waited_seconds - busy_seconds
        if self.purpose == "train":
            self._take_feature_errors(close)
            # each step was counted as one
            if 0 < close.round_trips < self._steps:
                self.traffic.round_trips -= self._steps - close.round_trips
            most_bytes = self.limits.max_state_bytes
            check_kept(close.state, most_bytes)
            check_kept(close.optimizer, self.states.most_optimizer_bytes(most_bytes))
            kept = Kept(optimizer=tuple(close.optimizer), state=tuple(close.state))
            self.states.check(kept)
            self._left = kept
        self.forget()
        self.traffic.digest = self._digest.value
        self.done = True
        return pb.Closed()

    # -- parts of them -----------------------------------------------------------------

    def _check_trains(self) -> None:
        if self.purpose != "train":
            raise ProtocolError("an evaluation's session cannot train")

    def _features_to_train_on(self, matrix: pb.Matrix) -> tuple[torch.Tensor, Link]:
        most = self.limits.max_train_rows
        features, link = self._features(matrix, self.codec.stype, most)
        self._check_budget(self.codec, features)
        self._full_rows = max(self._full_rows, len(features))
        return features, link

    def _features(
        self, matrix: pb.Matrix, stype: str, max_rows: int
    ) -> tuple[torch.Tensor, Link]:
        features, link = decode_features(
            matrix,
            self.codec,
            stype=stype,
            sample_shape=self._sample_shape or self.half.feature_shape,
            max_rows=max_rows,
            max_bytes=self.limits.max_matrix_bytes,
        )
        # of this turn alone: what one device sends must not keep others out
        self._sample_shape = tuple(features.shape[1:])
        return features, link

    def _encode_gradient(
        self, gradient: torch.Tensor, link: Link, labels_per_row: float | None = None
    ) -> Array:
        return self.codec.encode_gradient(
            gradient.flatten(1),
            link,
            full_rows=self._full_rows,
            labels_per_row=labels_per_row,
        )

    def _encode_output(
        self, output: torch.Tensor, output_codec: CutCodec
    ) -> tuple[pb.Matrix, Link]:
        self._check_budget(output_codec, output)
        encoded, link = output_codec.encode_features(
            output,
            generator=seeded_generator(self.seed, "output", self._steps),
            full_rows=self._full_rows,
        )
        return to_matrix(encoded), link

    def _check_budget(self, codec: CutCodec, batch: torch.Tensor) -> None:
        if len(batch) >= self._full_rows:
            columns = batch[0].numel()
            check_budget(codec, len(batch), columns)

    def _update(self) -> Update:
        return Update(self.server_round, self.device, self._steps)

    def _measure_gradient(
        self, gradient: torch.Tensor, encoded: Array, link: Link
    ) -> None:
        """Enter the gradient's error as the device sees it, if the step measures it."""
        if not is_measured(self.server_round, self._steps):
            return
        decoded = self.codec.decode_gradient(encoded, link)
        exact = link.restrict(gradient.flatten(1))
        error = gradient_error(exact, link.restrict(decoded))
        self.traffic.gradient_error_sum += min(error, MOST_ERROR)
        self.traffic.gradient_error_steps += 1

    def _take_feature_errors(self, close: pb.Close) -> None:
        """Enter what a device says of the features' errors, unless it cannot be."""
        measured = close.feature_error_steps
        if measured > self._steps:
            return
        # NaN is in no order, and so not believed
        if 0 <= close.feature_error_sum <= measured * MOST_ERROR:
            self.traffic.feature_error_sum = close.feature_error_sum
            self.traffic.feature_error_steps = measured

    # -- counts ------------------------------------------------------------------------

    def _count_step(self) -> None:
        if self._steps == self.limits.max_steps:
            raise LimitExceeded(f"a session may take {self.limits.max_steps} steps")
        self._steps += 1

    def _count_trained(self, gradient: torch.Tensor) -> None:
        self._trained_rows += len(gradient)
        self._count_rows(gradient)

    def _count_rows(self, batch: torch.Tensor) -> None:
        self.traffic.steps += 1
        self.traffic.rows += len(batch)
        self.traffic.entries += batch.numel()
