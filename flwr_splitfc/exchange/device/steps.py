"""The exchange of one mini-batch: encode, ask the server, decode."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link, pack_labels
from flwr_splitfc.codec.quality import feature_error, labels_per_row
from flwr_splitfc.exchange.device.transport import Line
from flwr_splitfc.exchange.device.turn_counts import TurnCounts
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.error_samples import MOST_ERROR, is_measured
from flwr_splitfc.exchange.protocol.seeds import seeded_generator
from flwr_splitfc.exchange.protocol.tensors import (
    from_matrix,
    gradient_array,
    to_matrix,
    unpack_tensor,
)


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn autocast off: codecs compute in float32, whatever the training loop does."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@dataclass(frozen=True, eq=False)
class SentStep:
    """A step that was sent and is not answered.

    Parameters
    ----------
    number : int
        Of the step, from 1.
    features : Tensor of shape (B, ...)
        As they were encoded.
    matrix : pb.Matrix
        As they were sent.
    link : Link
    one_way : bool
        Whether no gradient comes back.
    """

    number: int
    features: Tensor
    matrix: pb.Matrix
    link: Link
    one_way: bool = False


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
    """

    def __init__(
        self, line: Line, codec: CutCodec, seed: int, server_round: int
    ) -> None:
        self.line = line
        self.codec = codec
        self.seed = seed
        self.server_round = server_round
        self.counts = TurnCounts()

    @full_precision()
    def train(self, features: Tensor, labels: Tensor) -> tuple[float, Tensor | None]:
        """Train the server half on one mini-batch.

        Parameters
        ----------
        features : Tensor of shape (B, ...)
            Without a graph, no gradient comes back.
        labels : Tensor of shape (B, ...)

        Returns
        -------
        tuple of float and Tensor
            The loss, and its gradient by the features as (B, D); None for features
            without a graph.
        """
        step, frame = self._encoded(features, labels)
        return self._answered(step, self.line.ask(frame, "stepped"))

    @full_precision()
    def begin(self, features: Tensor, labels: Tensor) -> SentStep:
        """Send a mini-batch to `train` on, and do not wait for the answer."""
        step, frame = self._encoded(features, labels)
        self.line.send(frame)
        return step

    @full_precision()
    def end(self, step: SentStep) -> tuple[float, Tensor | None]:
        """Wait for the answer to the first step that was begun and not ended."""
        return self._answered(step, self.line.receive("stepped"))

    def _encoded(
        self, features: Tensor, labels: Tensor
    ) -> tuple[SentStep, pb.DeviceFrame]:
        """Return a step, and the frame that asks for it."""
        one_way = not features.requires_grad
        features = features.detach()
        counts = self.counts
        with counts.coding:
            matrix, link = self.encode_features(
                features, labels_per_row=labels_per_row(labels)
            )
            packed = pack_labels(link.sent_rows(labels))
            step = pb.Step(features=matrix, labels=packed, one_way=one_way)
        counts.steps += 1
        sent = SentStep(counts.steps, features, matrix, link, one_way)
        return sent, pb.DeviceFrame(step=step)

    def _answered(
        self, step: SentStep, answer: pb.ServerFrame
    ) -> tuple[float, Tensor | None]:
        """Return a step's loss and gradient, and count the step."""
        counts = self.counts
        stepped = answer.stepped
        gradient = None
        if not step.one_way:
            with counts.coding:
                array = gradient_array(stepped.gradient, self.codec, step.link)
                gradient = self.codec.decode_gradient(array, step.link)
        self.measure(step)
        counts.rows += len(step.features)
        counts.loss_sum += stepped.loss * len(step.features)
        return stepped.loss, gradient

    @full_precision()
    def predict(self, features: Tensor) -> Tensor:
        """Return the server half's output for features of shape (B, ...)."""
        counts = self.counts
        counts.full_rows = max(counts.full_rows, len(features))
        with counts.coding:
            array, _ = self.codec.encode_features(
                features, training=False, full_rows=counts.full_rows
            )
        counts.steps += 1
        counts.rows += len(features)
        frame = pb.DeviceFrame(predict=pb.Predict(features=to_matrix(array)))
        predicted = self.line.ask(frame, "predicted").predicted
        return unpack_tensor(predicted.logits).to(features.device)

    def encode_features(
        self,
        features: Tensor,
        *,
        all_rows: bool = False,
        labels_per_row: float | None = None,
    ) -> tuple[pb.Matrix, Link]:
        """Return the features as the next step sends them, and the way back.

        Raises
        ------
        ValueError
            If they are not finite, or the budget is too small for any payload.
        """
        counts = self.counts
        rows = len(features)
        # budgets bind full batches: a short last one may cost more bits per entry
        if rows > counts.full_rows:
            self.codec.check_budget(rows, features[0].numel())
            counts.full_rows = rows
        array, link = self.codec.encode_features(
            features,
            generator=seeded_generator(self.seed, counts.steps + 1),
            full_rows=counts.full_rows,
            all_rows=all_rows,
            labels_per_row=labels_per_row,
        )
        return to_matrix(array), link

    def measure(self, step: SentStep) -> None:
        """Enter the features' error, as the server sees them, in a measured step."""
        counts = self.counts
        link = step.link
        if not is_measured(self.server_round, step.number):
            return
        exact = step.features.detach().flatten(1).float()
        decoded, _ = self.codec.decode_features(
            from_matrix(step.matrix), expect=(link.rows, link.width)
        )
        seen = decoded.to(exact.device)
        error = feature_error(link.sent_rows(exact), link.sent_rows(seen))
        counts.feature_error_sum += min(error, MOST_ERROR)
        counts.feature_error_steps += 1
