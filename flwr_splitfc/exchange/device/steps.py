"""The exchange of one mini-batch: encode, ask the server, decode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import count
from math import isnan
from statistics import mean
from typing import ParamSpec, TypeAlias, TypeVar

import torch
from flwr.app import Array
from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link, PayloadError, pack_labels
from flwr_splitfc.codec.quality import feature_error, labels_per_row
from flwr_splitfc.exchange.device.batch_checks import check_numbers
from flwr_splitfc.exchange.device.scale_warning import warn_of_scales
from flwr_splitfc.exchange.device.transport import Line
from flwr_splitfc.exchange.device.turn_counts import TurnCounts
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.error_samples import (
    MOST_ERROR,
    is_measured,
    sent_and_seen,
)
from flwr_splitfc.exchange.protocol.parts import (
    coded_tensors,
    exact_part,
    pack_parts,
    unpack_output,
    whole_part,
)
from flwr_splitfc.exchange.protocol.seeds import seeded_generator
from flwr_splitfc.exchange.protocol.tensors import (
    coded_gradient,
    unpack_plain,
    write_matrix,
)
from flwr_splitfc.model.structures import (
    Structure,
    float_tensors,
    is_float,
    on_device,
    rows_of,
)

_P = ParamSpec("_P")
_Result = TypeVar("_Result")

Gradients: TypeAlias = list[Tensor | None]
"""By the tensors that were encoded, in order, (B, D); None: not wanted."""


def full_precision(method: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """Turn autocast off: codecs compute in float32, whatever the training loop does."""

    @wraps(method)
    def call(*args: _P.args, **options: _P.kwargs) -> _Result:
        # to leave autocast takes as long as to encode a small matrix
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return method(*args, **options)
        with (
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            return method(*args, **options)

    return call


@dataclass(frozen=True, eq=False)
class SentTensor:
    """A floating point tensor at the cut that was sent.

    Parameters
    ----------
    features : Tensor of shape (B, ...)
        As they were encoded, if the step is measured, or its gradient is to tell of
        levels. Otherwise they share the loop's memory, which it may have written into.
    array : Array
        As they were sent.
    link : Link
    number : int
        Which it is of the floating point tensors at the cut, from 0.
    one_way : bool
        Whether no gradient comes back.
    levelled : bool or None
        Whether it was to be levelled; None before a gradient has told.
    is_measured : bool
        Whether the step is one of those that are.
    """

    features: Tensor
    array: Array
    link: Link
    number: int
    one_way: bool = False
    levelled: bool | None = None
    is_measured: bool = False


@dataclass(frozen=True, eq=False)
class SentStep:
    """A step that was sent and is not answered.

    Parameters
    ----------
    number : int
        Of the step, from 1.
    frame_number : int
        Of the frame that asked for it, which its answer has, too.
    tensors : list of SentTensor
        In the order of the features.
    """

    number: int
    frame_number: int
    tensors: list[SentTensor]

    @property
    def rows(self) -> int:
        """``B``, the samples."""
        return self.tensors[0].features.shape[0]


class Steps:
    """The steps of a turn whose loss is the server's, and predictions.

    Parameters
    ----------
    line : Line
        To the server.
    codec : CutCodec
        At the cut between the device half and the server half.
    seed : int
        The turn's. Each step derives what is random in it from (seed, its number).
    server_round : int

    Attributes
    ----------
    counts : TurnCounts
    levelled : dict of int to bool
        By the number of a tensor at the cut, whether its channels are to be levelled,
        as earlier turns or this one's gradients told.
    """

    def __init__(
        self, line: Line, codec: CutCodec, seed: int, server_round: int
    ) -> None:
        self.line = line
        self.codec = codec
        self.seed = seed
        self.server_round = server_round
        self.counts = TurnCounts()
        self.levelled: dict[int, bool] = {}

    @full_precision
    def train(self, features: Structure, labels: Tensor) -> tuple[float, Gradients]:
        """Train the server half on one mini-batch.

        Parameters
        ----------
        features : structure of Tensor of shape (B, ...)
            For tensors without a graph, no gradient comes back.
        labels : Tensor of shape (B, ...)

        Returns
        -------
        tuple of float and list of Tensor
            The loss, and its gradients by the tensors that were encoded as (B, D); None
            for those without a graph.
        """
        return self.end(self.begin(features, labels))

    @full_precision
    def begin(self, features: Structure, labels: Tensor) -> SentStep:
        """Send a mini-batch to `train` on, and do not wait for the answer."""
        counts = self.counts
        frame = pb.DeviceFrame()
        step = frame.step
        with counts.coding:
            per_row = labels_per_row(labels.numel(), len(labels))
            tensors = self.encode_features(step, features, labels_per_row=per_row)
            # of several tensors all rows are sent
            step.labels = pack_labels(tensors[0].link.sent_rows(labels))
            step.one_way = all(tensor.one_way for tensor in tensors)
        counts.steps += 1
        self.line.send(frame)
        return SentStep(counts.steps, frame.number, tensors)

    @full_precision
    def end(self, step: SentStep) -> tuple[float, Gradients]:
        """Wait for the answer to a step that was begun; return it as `train` does."""
        counts = self.counts
        stepped = self.line.receive(step.frame_number, "stepped").stepped
        with counts.coding:
            gradients = self.decode_gradients(stepped, step.tensors)
        self.measure(step)
        counts.rows += step.rows
        # NaN is the mean over no label, and of no account
        if not isnan(stepped.loss):
            counts.loss_sum += stepped.loss * step.rows
            counts.loss_rows += step.rows
        return stepped.loss, gradients

    @full_precision
    def predict(self, features: Structure) -> Structure:
        """Return the server half's output for features of shape (B, ...)."""
        counts = self.counts
        rows = rows_of(features)
        counts.predicted_full_rows = max(counts.predicted_full_rows, rows)
        frame = pb.DeviceFrame()
        with counts.coding:
            self._fill(frame.predict, features, self._encode_to_predict)
        counts.predictions += 1
        counts.predicted_rows += rows
        predicted = self.line.ask(frame, "predicted").predicted
        device = float_tensors(features)[0].device
        if predicted.parts:
            return on_device(unpack_output(predicted.parts), device)
        return unpack_plain(predicted.logits).to(device)

    def _encode_to_predict(self, features: Tensor, number: int) -> SentTensor:
        array, link = self.codec.encode_features(
            features,
            training=False,
            full_rows=self.counts.predicted_full_rows,
            # no gradient comes back, so levels can only make it more precise
            levelled=self.levelled.get(number) or None,
        )
        return SentTensor(features, array, link, number)

    def encode_features(
        self,
        message: pb.Step | pb.Forward,
        features: Structure,
        *,
        all_rows: bool = False,
        labels_per_row: float | None = None,
    ) -> list[SentTensor]:
        """Put the features into the next step's message, and return what was sent.

        Raises
        ------
        ValueError
            If they are not finite, or the budget is too small for any payload.
        """
        counts = self.counts
        generator = seeded_generator(self.seed, counts.steps + 1)
        # budgets bind full batches: a short last one may cost more bits per entry
        rows = rows_of(features)
        is_largest = rows > counts.full_rows
        counts.full_rows = max(counts.full_rows, rows)
        measured = is_measured(self.server_round, counts.steps + 1)
        # rows are left out of all tensors or of none
        all_rows = all_rows or not isinstance(features, Tensor)

        def encode(tensor: Tensor, number: int) -> SentTensor:
            if is_largest:
                self.codec.check_budget(rows, tensor[0].numel())
            levelled = self.levelled.get(number)
            array, link = self.codec.encode_features(
                tensor.detach(),
                generator=generator,
                full_rows=counts.full_rows,
                all_rows=all_rows,
                labels_per_row=labels_per_row,
                levelled=levelled,
            )
            one_way = not tensor.requires_grad
            kept = tensor.detach()
            is_to_tell = self.codec.can_level and levelled is None and not one_way
            # while the answer is on its way, the loop may write into its own
            if measured or is_to_tell:
                kept = kept.clone()
            return SentTensor(kept, array, link, number, one_way, levelled, measured)

        return self._fill(message, features, encode)

    def _fill(
        self,
        message: pb.Step | pb.Forward | pb.Predict,
        features: Structure,
        encode: Callable[[Tensor, int], SentTensor],
    ) -> list[SentTensor]:
        """Put features into a message, and return the tensors that were encoded.

        Raises
        ------
        ValueError
            As `encode_features`.
        """
        try:
            return self._fill_parts(message, features, encode)
        except ValueError:
            # first: a codec speaks of a matrix
            check_numbers(features)
            raise

    def _fill_parts(
        self,
        message: pb.Step | pb.Forward | pb.Predict,
        features: Structure,
        encode: Callable[[Tensor, int], SentTensor],
    ) -> list[SentTensor]:
        if isinstance(features, Tensor):
            sent = encode(features, 0)
            write_matrix(message.features, sent.array)
            return [sent]
        tensors = []
        coded = coded_tensors(features)
        numbers = count()

        def part_of(tensor: Tensor) -> pb.Part:
            if not is_float(tensor):
                return exact_part(tensor)
            number = next(numbers)
            if not any(tensor is one for one in coded):
                return whole_part(tensor)
            sent = encode(tensor, number)
            tensors.append(sent)
            part = pb.Part(one_way=sent.one_way)
            write_matrix(part.coded, sent.array)
            return part

        message.parts.extend(pack_parts(features, part_of))
        return tensors

    def decode_gradients(
        self, answer: pb.Stepped | pb.Gradients, tensors: Sequence[SentTensor]
    ) -> Gradients:
        """Return the gradients in an answer, by the tensors that were sent.

        Raises
        ------
        PayloadError
            If they are not those of the tensors.
        """
        wanted = [tensor for tensor in tensors if not tensor.one_way]
        matrices = list(answer.gradients) or [answer.gradient]
        if wanted and len(matrices) != len(wanted):
            raise PayloadError(f"{len(matrices)} gradients came, wanted {len(wanted)}")
        came = iter(matrices)
        gradients: Gradients = []
        for tensor in tensors:
            gradient = None
            if not tensor.one_way:
                coded = coded_gradient(next(came), self.codec, tensor.link)
                gradient = self.codec.decode_gradient(coded, tensor.link)
                self._learn_of_levels(tensor, gradient)
            gradients.append(gradient)
        return gradients

    def _learn_of_levels(self, tensor: SentTensor, gradient: Tensor) -> None:
        """Note for the next steps whether small channels matter as much as large."""
        known = self.levelled.get(tensor.number)
        # Once it is levelled, gradients do not tell whether it has to be: a BatchNorm
        # that gets small channels as they are makes nothing much of them.
        if known or (known is False and not tensor.is_measured):
            return
        told = self.codec.needs_levels(tensor.features, gradient, tensor.link)
        if told is not None:
            self.levelled[tensor.number] = told

    def measure(
        self, step: SentStep, error_beside: Callable[[], float] | None = None
    ) -> None:
        """Enter the features' error, as the server sees them, in a measured step.

        That of several tensors is their mean. Where something else goes up in the step,
        `error_beside` returns its error, and the larger one is entered.
        """
        counts = self.counts
        if not is_measured(self.server_round, step.number):
            return
        error = mean(self._error(tensor) for tensor in step.tensors)
        if error_beside is not None:
            error = max(error, error_beside())
        counts.feature_error_sum += min(error, MOST_ERROR)
        counts.feature_error_steps += 1

    def _error(self, tensor: SentTensor) -> float:
        link = tensor.link
        sent, seen = sent_and_seen(self.codec, tensor.features, tensor.array, link)
        error = feature_error(sent, seen)
        no_room = tensor.levelled is True and link.exponents is None
        # where a gradient tells that small channels matter, the next steps are levelled
        if no_room or tensor.one_way or not self.codec.can_level:
            warn_of_scales(sent, seen, error)
        return error
