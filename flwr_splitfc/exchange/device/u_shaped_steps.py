"""The two exchanges of one mini-batch where the last layers are the device's.

The first takes features up and the server half's output down; the second, in the
backward pass, takes the output's gradient up and the features' gradient down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link, PayloadError
from flwr_splitfc.codec.quality import labels_per_row
from flwr_splitfc.exchange.device.steps import (
    Gradients,
    SentStep,
    Steps,
    full_precision,
)
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.claims import check_claims, claimed_entries
from flwr_splitfc.exchange.protocol.error_samples import error_of_gradient
from flwr_splitfc.exchange.protocol.tensors import from_matrix, write_matrix
from flwr_splitfc.model.structures import Structure, mapped, rows_of


@dataclass(frozen=True, eq=False)
class BegunStep:
    """The part of a step's first exchange that its second one needs.

    Parameters
    ----------
    sent : SentStep
        The features.
    output_link : Link
        Of the output.
    labels_per_row : float or None
        As the codec of the features was told.
    """

    sent: SentStep
    output_link: Link
    labels_per_row: float | None


class UShapedSteps:
    """The steps of a turn whose loss is the device's.

    Parameters
    ----------
    steps : Steps
        Encodes features, knows the line, and counts.
    output_codec : CutCodec
        At the cut between the server half and the last layers, as the device sees it.
    """

    def __init__(self, steps: Steps, output_codec: CutCodec) -> None:
        self._steps = steps
        self._output_codec = output_codec
        # the step whose second exchange may follow
        self._begun: BegunStep | None = None

    @full_precision
    def begin(
        self, features: Structure, label_entries: int | None
    ) -> tuple[Tensor, BegunStep]:
        """Return the server half's output for features of shape (B, ...).

        `label_entries` is how many entries the labels have, where that is known.
        """
        counts = self._steps.counts
        frame = pb.DeviceFrame()
        forward = frame.forward
        per_row = None
        if label_entries is not None:
            per_row = labels_per_row(label_entries, rows_of(features))
            # 0 would say nothing
            forward.label_entries = max(1, label_entries)
        with counts.coding:
            tensors = self._steps.encode_features(
                forward, features, all_rows=True, labels_per_row=per_row
            )
            forward.one_way = all(tensor.one_way for tensor in tensors)
        counts.steps += 1
        # the server forgets an earlier output as soon as this frame arrives
        self._begun = None

        answer = self._steps.line.ask(frame, "output").output

        sent = SentStep(counts.steps, frame.number, tensors)
        with counts.coding:
            output, output_link = self._decode_output(answer.output, sent.rows)
        step = self._begun = BegunStep(sent, output_link, per_row)
        return output.to(tensors[0].features.device), step

    def _decode_output(self, matrix: pb.Matrix, rows: int) -> tuple[Tensor, Link]:
        shape = tuple(matrix.shape)
        _check_rows(shape, rows)
        coded = from_matrix(matrix)
        check_claims("the output", claimed_entries(shape), len(coded.data))
        output, link = self._output_codec.decode_features(
            coded, expect=(rows, prod(shape[1:]))
        )
        return output.reshape(shape), link

    def predict(self, features: Structure) -> Structure:
        """Return the server half's output, as `Steps.predict` does, for last layers.

        Its floating point tensors are float32, as that of `begin` is.
        """
        output = self._steps.predict(features)
        if isinstance(output, Tensor):
            _check_rows(output.shape, rows_of(features))
        return mapped(output, _as_float32)

    @full_precision
    def end(self, gradient: Tensor, step: BegunStep) -> Gradients:
        """Train the server half on the gradient of its output.

        Parameters
        ----------
        gradient : Tensor of shape (B, ...)
        step : BegunStep
            From the last `begin`.

        Returns
        -------
        list of Tensor of shape (B, D)
            The gradients by the features, as in `Steps.train`.
        """
        if step is not self._begun:
            raise RuntimeError(
                "the backward pass through server.forward runs once for each, "
                "and before the next server.forward"
            )
        counts = self._steps.counts
        with counts.coding:
            array = self._output_codec.encode_gradient(
                gradient.flatten(1),
                step.output_link,
                full_rows=counts.full_rows,
                labels_per_row=step.labels_per_row,
            )
        # the server applies a gradient once
        self._begun = None

        frame = pb.DeviceFrame()
        write_matrix(frame.backward.gradient, array)
        answer = self._steps.line.ask(frame, "gradients").gradients

        with counts.coding:
            gradients = self._steps.decode_gradients(answer, step.sent.tensors)
        of_gradient = partial(
            error_of_gradient, self._output_codec, gradient, array, step.output_link
        )
        self._steps.measure(step.sent, of_gradient)
        counts.rows += len(gradient)
        return gradients


def _as_float32(leaf: Tensor) -> Tensor:
    return leaf.float() if leaf.is_floating_point() else leaf


def _check_rows(shape: Sequence[int], rows: int) -> None:
    if tuple(shape[:1]) != (rows,):
        raise PayloadError(f"the output has shape {tuple(shape)}, wanted {rows} rows")
