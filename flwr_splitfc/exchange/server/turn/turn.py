"""One device's turn: what the server answers to each frame, and what it counts."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isnan
from statistics import mean
from typing import NamedTuple

import torch
from flwr.app import Array

from flwr_splitfc.codec import CutCodec, Link
from flwr_splitfc.codec.quality import feature_error, labels_per_row
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.error_samples import (
    MOST_ERROR,
    error_of_gradient,
    is_measured,
    sent_and_seen,
)
from flwr_splitfc.exchange.protocol.parts import exact_part, pack_parts
from flwr_splitfc.exchange.protocol.payloads import (
    output_payloads,
    tensor_payloads,
    total_bytes,
)
from flwr_splitfc.exchange.protocol.seeds import derive_seed, seeded_generator
from flwr_splitfc.exchange.protocol.split_errors import (
    FeaturesRefused,
    LimitExceeded,
    ProtocolError,
)
from flwr_splitfc.exchange.protocol.stopwatch import Stopwatch
from flwr_splitfc.exchange.protocol.tensors import (
    from_matrix,
    pack_tensor,
    write_matrix,
)
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.accounts.frame_traffic import Moved
from flwr_splitfc.exchange.server.accounts.payload_digest import PayloadDigest
from flwr_splitfc.exchange.server.accounts.traffic import Traffic, bits_per_entry
from flwr_splitfc.exchange.server.half.half_steps import BegunStep, ForwardPass, Update
from flwr_splitfc.exchange.server.half.halves import Halves
from flwr_splitfc.exchange.server.turn.device_states import DeviceStates, Kept
from flwr_splitfc.exchange.server.turn.kept_tensors import check_kept, check_levels
from flwr_splitfc.exchange.server.turn.limits import Limits
from flwr_splitfc.exchange.server.turn.received import (
    BatchCounts,
    FeatureFrame,
    FeatureRules,
    Received,
    ReceivedTensor,
    RowsLimit,
    check_budget,
    claimed_bytes,
    decode_features,
    decode_labels,
    decode_output_gradient,
)
from flwr_splitfc.exchange.server.turn.trained_step import StepListener, TrainedStep
from flwr_splitfc.exchange.server.turn.work_budget import WorkBudget
from flwr_splitfc.model.structures import leaves_of

_MOST_SECONDS = 1e6  # a device that says it took longer, or NaN, is not believed


class _Waiting(NamedTuple):
    """The first half of a U-shaped step, until the second comes."""

    passed: ForwardPass
    received: Received
    feature_bytes: int
    output_link: Link
    labels_per_row: float | None


class _Returned(NamedTuple):
    """A gradient by a floating point tensor of the features."""

    gradient: torch.Tensor
    encoded: Array
    link: Link


class _Trained(NamedTuple):
    """What is left to do of a step of training, and to count."""

    begun: BegunStep
    counts: BatchCounts
    feature_bytes: int
    returned: list[_Returned]
    loss: float | None = None
    output_entries: int = 0

    @property
    def gradient_bytes(self) -> int:
        return total_bytes([one.encoded.data for one in self.returned])


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
    decoupled : bool (default: False)
        Whether no gradient goes down.
    seed : int (default: 0)
        The run's seed, for what is random in the coding of the output.
    budget : WorkBudget, optional
        Of memory, which all turns share.
    on_step : StepListener, optional
        Called after each step of training, when its answer is on its way.

    Attributes
    ----------
    traffic : Traffic
        What was counted so far.
    moved : Moved
        The payloads of the last frame and of its answer.
    digest : PayloadDigest
        Of the payloads so far.
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
        decoupled: bool = False,
        seed: int = 0,
        budget: WorkBudget | None = None,
        on_step: StepListener | None = None,
    ) -> None:
        self.purpose = purpose
        self.device = device
        self.server_round = server_round
        self.halves = halves
        self.half = halves.half
        self.codec = codec
        self.output_codec = output_codec.mirror() if output_codec else None
        self.decoupled = decoupled
        self.seed = derive_seed(seed, device, server_round)
        self.states = states
        self.limits = limits
        self.budget = budget or WorkBudget(limits.max_work_bytes)
        self.on_step = on_step
        self.traffic = Traffic(sessions=1)
        self.moved = Moved()
        self.done = False
        # of training, and of prediction
        self._steps = 0
        self._predictions = 0
        self._trained_rows = 0
        # The largest batch so far. A smaller one, the last of an epoch, may go over the
        # budget where no payload fits into it, see `CutCodec.encode_features`.
        self._full_rows = 0
        self._waiting: _Waiting | None = None
        # of the output that went down, in a measured step
        self._output_error: float | None = None
        # what is left to do of the last step, when the device has its answer
        self._unfinished: Callable[[], None] | None = None
        # what the device leaves for its next turn, until it has replied
        self._left: Kept | None = None
        self._start = Kept()
        # how long frames were answered so far
        self._busy = Stopwatch()
        self.digest = PayloadDigest(f"{purpose}/{device}/{server_round}/")

    def kept(self) -> pb.Kept:
        """Return what earlier turns left for this one."""
        kept = self.states.of(self.device)
        if self.purpose != "train":
            return pb.Kept(levels=kept.levels)
        self._start = kept
        return pb.Kept(optimizer=kept.optimizer, state=kept.state, levels=kept.levels)

    def note_failure(self) -> bool:
        """Note that the turn failed; the state that it started from may be the cause.

        Returns
        -------
        bool
            Whether that state was dropped, see `DeviceStates.note_failure`.
        """
        return self.states.note_failure(self._start, self._steps > 0)

    def open(self) -> None:
        """Begin the turn."""
        with self._busy:
            if self.purpose == "train":
                self.half = self.halves.take(self.device, self.server_round)

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
        """The size of the features, as float32, that a frame is about."""
        match frame.WhichOneof("kind"):
            case "step":
                size_bytes = claimed_bytes(frame.step)
            case "forward":
                size_bytes = claimed_bytes(frame.forward)
            case "predict":
                size_bytes = claimed_bytes(frame.predict)
            case "backward" if self._waiting is not None:
                tensors = leaves_of(self._waiting.passed.features)
                size_bytes = sum(tensor.nbytes for tensor in tensors)
            case _:
                return 0
        # a larger one is refused at once
        return size_bytes if size_bytes <= self.limits.max_matrix_bytes else 0

    def _answer(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        if self.done:
            raise ProtocolError("the session is closed")
        self.moved = Moved()
        # filled in its place: protobuf copies a message that is put into another
        reply = pb.ServerFrame()
        match frame.WhichOneof("kind"):
            case "step":
                self._step(frame.step, reply.stepped)
            case "forward":
                self._forward(frame.forward, reply.output)
            case "backward":
                self._backward(frame.backward, reply.gradients)
            case "predict":
                self._predict(frame.predict, reply.predicted)
            case "close":
                self._close(frame.close)
                reply.closed.SetInParent()
            case kind:
                raise ProtocolError(f"a frame of kind {kind!r} cannot come here")
        return reply

    def forget(self) -> None:
        """Drop what waits for the device: it cannot come any more."""
        self._waiting = None

    def end_steps(self) -> None:
        """Drop what only further steps need of a copy: the device has made its last."""
        if self.half is not self.halves.half:
            self.half.end_training()

    def abandon(self) -> None:
        """Drop what only further frames need: the session is over.

        A copy of the half that the device has closed waits for its reply.
        """
        self.forget()
        if self._left is None:
            self.half = self.halves.half

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

    def _step(self, step: pb.Step, stepped: pb.Stepped) -> None:
        self._count_step()
        self._check_trains()
        if self.output_codec is not None:
            raise ProtocolError(
                "the loss is the device's, which has the last layers: "
                "send Forward, not Step"
            )
        coding = Stopwatch()
        with coding:
            received, payloads = self._features_to_train_on(step)
            if self.decoupled and any(received.wanted):
                raise ProtocolError("training is decoupled: no gradient comes down")
            label_payload = step.labels
            labels = decode_labels(
                label_payload,
                received.links[0].sent,
                max_entries=self.limits.max_label_entries,
            )
            features = received.sent

        begun = self.half.begin_step(
            features, labels, self._update(), wanted=received.wanted
        )

        stepped.loss = begun.loss
        with coding:
            returned = self._encode_gradients(
                begun.gradients, received, labels_per_row(labels.numel(), len(labels))
            )
        _fill(stepped, received, returned)
        self.traffic.server_codec_seconds += coding.seconds
        trained = _Trained(
            begun, received.counts, total_bytes(payloads), returned, begun.loss
        )
        self.moved = Moved(
            {"features": trained.feature_bytes, "labels": len(label_payload)},
            {"gradient": trained.gradient_bytes},
        )
        self._unfinished = partial(self._trained, trained, *payloads, label_payload)

    def _forward(self, forward: pb.Forward, answer: pb.Output) -> None:
        self._count_step()
        self._check_trains()
        if self.output_codec is None:
            raise ProtocolError("the loss is the server's: send Step, not Forward")
        coding = Stopwatch()
        with coding:
            self.forget()
            received, payloads = self._features_to_train_on(forward)
            link = received.links[0]
            if link.samples is not None:
                raise FeaturesRefused(
                    f"{link.sent} of {link.rows} rows came; "
                    "the device's loss needs the output of all"
                )

        passed = self.half.forward(received.sent, wanted=received.wanted)
        output = passed.output.detach().cpu()

        with coding:
            per_row = _told_labels(forward, received)
            encoded, output_link = self._encode_output(
                output, self.output_codec, per_row
            )
            write_matrix(answer.output, encoded)
        feature_bytes = total_bytes(payloads)
        self.moved = Moved({"features": feature_bytes}, {"output": len(encoded.data)})
        self._waiting = _Waiting(passed, received, feature_bytes, output_link, per_row)
        self.traffic.server_codec_seconds += coding.seconds
        measure = partial(
            self._measure_output, self.output_codec, output, encoded, output_link
        )
        self._unfinished = partial(self._passed, measure, *payloads, encoded.data)

    def _passed(self, measure: Callable[[], None], *payloads: bytes) -> None:
        """Count a forward pass whose output is on its way."""
        measure()
        self.digest.add(*payloads)

    def _backward(self, backward: pb.Backward, answer: pb.Gradients) -> None:
        waiting = self._waiting
        if waiting is None or self.output_codec is None:
            raise ProtocolError("Backward came without a Forward")
        coding = Stopwatch()
        with coding:
            coded = from_matrix(backward.gradient)
            output_gradient = decode_output_gradient(
                coded, self.output_codec, waiting.output_link
            )

        begun = self.half.begin_backward(
            waiting.passed,
            output_gradient.reshape(waiting.passed.output.shape),
            self._update(),
        )

        # not before: a refused Backward leaves its Forward waiting
        self.forget()
        received = waiting.received
        with coding:
            returned = self._encode_gradients(
                begun.gradients, received, waiting.labels_per_row
            )
        # for features that all go one way it is empty
        answer.SetInParent()
        _fill(answer, received, returned)
        self.traffic.server_codec_seconds += coding.seconds
        trained = _Trained(
            begun,
            received.counts,
            waiting.feature_bytes,
            returned,
            output_entries=output_gradient.numel(),
        )
        self.moved = Moved(
            {"output_gradient": len(coded.data)}, {"gradient": trained.gradient_bytes}
        )
        # what waited is freed with this frame, and not when it is finished
        self._unfinished = partial(self._trained, trained, coded.data)

    def _trained(self, step: _Trained, *payloads: bytes) -> None:
        """Apply a step of training whose answer is on its way, and count it."""
        step.begun.finish()
        self._trained_rows += step.counts.rows
        self._count_rows(step.counts)
        self.traffic.output_entries += step.output_entries
        # NaN is the mean over no label, and of no account
        if step.loss is not None and not isnan(step.loss):
            self.traffic.loss_sum += step.loss * step.counts.rows
            self.traffic.loss_rows += step.counts.rows
        self._measure(step.returned)
        self.digest.add(*payloads, *(one.encoded.data for one in step.returned))
        self._tell(step)

    def _predict(self, predict: pb.Predict, predicted: pb.Predicted) -> None:
        self._check_steps()
        self._predictions += 1
        stypes = self.codec.evaluation_stypes
        received, payloads = self._features(predict, stypes, "max_predict_rows")
        output = self.half.predict(received.sent)
        kind = self._count_predicted(received.counts)
        if isinstance(output, torch.Tensor):
            predicted.logits.CopyFrom(pack_tensor("logits", output))
        else:
            predicted.parts.extend(pack_parts(output, exact_part))
        outputs = output_payloads(predicted)
        self.moved = Moved(
            {kind: total_bytes(payloads)}, {"logits": total_bytes(outputs)}
        )
        self._unfinished = partial(self.digest.add, *payloads, *outputs)

    def _close(self, close: pb.Close) -> None:
        if 0 <= close.codec_seconds < _MOST_SECONDS:
            self.traffic.device_codec_seconds = close.codec_seconds
        # of all frames before this one, which is still being answered
        busy_seconds = self._busy.seconds
        if busy_seconds <= close.waited_seconds < _MOST_SECONDS:
            self.traffic.link_seconds = close.waited_seconds - busy_seconds
        if self.purpose == "train":
            self._take_feature_errors(close)
            # each was counted as one
            asked = self._steps + self._predictions
            if 0 < close.round_trips < asked:
                self.traffic.round_trips -= asked - close.round_trips
            most_bytes = self.limits.max_state_bytes
            check_kept(close.state, most_bytes)
            check_kept(close.optimizer, self.states.most_optimizer_bytes(most_bytes))
            check_levels(close.levels)
            check_levels(close.no_levels)
            kept = Kept(
                optimizer=tuple(close.optimizer),
                state=tuple(close.state),
                levels=tuple(close.levels),
                no_levels=tuple(close.no_levels),
            )
            self.states.check(kept)
            self._left = kept
            self.end_steps()
        state = [*tensor_payloads(close.optimizer), *tensor_payloads(close.state)]
        self.moved = Moved({"state": total_bytes(state)})
        self.forget()
        self.traffic.digest = self.digest.value
        self.done = True

    def _check_trains(self) -> None:
        if self.purpose != "train":
            raise ProtocolError("an evaluation's session cannot train")

    def _features_to_train_on(
        self, frame: FeatureFrame
    ) -> tuple[Received, list[bytes]]:
        """Return the features in a frame, and their payloads."""
        stypes = (self.codec.stype,)
        received, payloads = self._features(frame, stypes, "max_train_rows")
        for link in received.links:
            self._check_budget(self.codec, link.rows, link.width)
        self._full_rows = max(self._full_rows, received.counts.rows)
        return received, payloads

    def _features(
        self, frame: FeatureFrame, stypes: tuple[str, ...], rows_limit: RowsLimit
    ) -> tuple[Received, list[bytes]]:
        rules = FeatureRules(
            self.codec,
            stypes,
            self.half.feature_shape,
            rows_limit,
            getattr(self.limits, rows_limit),
            self.limits.max_matrix_bytes,
        )
        return decode_features(frame, rules)

    def _encode_gradients(
        self,
        gradients: Sequence[torch.Tensor],
        received: Received,
        labels_per_row: float | None,
    ) -> list[_Returned]:
        returned = []
        for sent_gradient, link in zip(gradients, received.wanted_links, strict=True):
            gradient = link.all_rows(sent_gradient)
            encoded = self.codec.encode_gradient(
                gradient.flatten(1),
                link,
                full_rows=self._full_rows,
                labels_per_row=labels_per_row,
            )
            returned.append(_Returned(gradient, encoded, link))
        return returned

    def _encode_output(
        self, output: torch.Tensor, output_codec: CutCodec, labels_per_row: float | None
    ) -> tuple[Array, Link]:
        self._check_budget(output_codec, len(output), output[0].numel())
        return output_codec.encode_features(
            output,
            generator=seeded_generator(self.seed, "output", self._steps),
            full_rows=self._full_rows,
            labels_per_row=labels_per_row,
        )

    def _check_budget(self, codec: CutCodec, rows: int, columns: int) -> None:
        if rows >= self._full_rows:
            check_budget(codec, rows, columns)

    def _update(self) -> Update:
        return Update(self.server_round, self.device, self._steps)

    def _tell(self, step: _Trained) -> None:
        """Call the listener, if there is one."""
        if self.on_step is None:
            return
        counts = step.counts
        told = TrainedStep(
            self.server_round,
            self.device,
            self.traffic.steps,
            counts.rows,
            step.loss,
            bits_per_entry(step.feature_bytes, counts.entries),
            bits_per_entry(step.gradient_bytes, counts.entries),
        )
        self.on_step(told)

    def _measure_output(
        self, codec: CutCodec, output: torch.Tensor, encoded: Array, link: Link
    ) -> None:
        """Note the output's error as the device sees it, if the step measures it.

        What dropout scales is off by many times that, whatever comes of it.
        """
        self._output_error = None
        if codec.rescales:
            return
        if is_measured(self.server_round, self._steps):
            exact, seen = sent_and_seen(codec, output, encoded, link)
            self._output_error = feature_error(exact, seen)

    def _measure(self, returned: Sequence[_Returned]) -> None:
        """Enter the gradients' error as the device sees them, if the step measures it.

        That of several is their mean. Where the output went down, too, the larger error
        of the two is entered.
        """
        if not is_measured(self.server_round, self._steps):
            return
        errors = []
        if returned:
            errors.append(mean(self._error(one) for one in returned))
        if self._output_error is not None:
            errors.append(self._output_error)
        if errors:
            self.traffic.gradient_error_sum += min(max(errors), MOST_ERROR)
            self.traffic.gradient_error_steps += 1

    def _error(self, returned: _Returned) -> float:
        return error_of_gradient(
            self.codec, returned.gradient, returned.encoded, returned.link
        )

    def _take_feature_errors(self, close: pb.Close) -> None:
        """Enter what a device says of the features' errors, unless it cannot be."""
        measured = close.feature_error_steps
        if measured > self._steps:
            return
        # NaN is in no order, and so not believed
        if 0 <= close.feature_error_sum <= measured * MOST_ERROR:
            self.traffic.feature_error_sum = close.feature_error_sum
            self.traffic.feature_error_steps = measured

    def _check_steps(self) -> None:
        if self._steps + self._predictions == self.limits.max_steps:
            raise LimitExceeded(f"a session may take {self.limits.max_steps} steps")

    def _count_step(self) -> None:
        self._check_steps()
        self._steps += 1

    def _count_predicted(self, counts: BatchCounts) -> str:
        """Count a prediction; return the kind of its features' bytes."""
        if self.purpose == "evaluate":
            self._count_rows(counts)
            return "features"
        # a turn of training is measured by what it trained on
        self.traffic.predictions += 1
        return "validation"

    def _count_rows(self, counts: BatchCounts) -> None:
        self.traffic.steps += 1
        self.traffic.rows += counts.rows
        self.traffic.entries += counts.entries


def _told_labels(forward: pb.Forward, received: Received) -> float | None:
    """Return how many labels a sample has, as the device says; None where it does not.

    Any number will do: the automatic quality, which alone goes by it, has its bounds.
    """
    if forward.label_entries == 0:
        return None
    return labels_per_row(forward.label_entries, received.counts.rows)


def _fill(
    answer: pb.Stepped | pb.Gradients, received: Received, returned: list[_Returned]
) -> None:
    """Put gradients into an answer.

    Without `stype` and shape: those are the features', which the device has.
    """
    if not isinstance(received.features, ReceivedTensor):
        for one in returned:
            answer.gradients.add(data=one.encoded.data)
    elif returned:
        answer.gradient.data = returned[0].encoded.data
