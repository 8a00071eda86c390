"""Frames of devices that do as agreed, to begin from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from flwr_splitfc import cut_codec
from flwr_splitfc.codec import CutCodec, Link, pack_labels
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.parts import exact_part, pack_parts, whole_part
from flwr_splitfc.exchange.protocol.tensors import pack_tensor, to_matrix
from flwr_splitfc.model.structures import is_float

ROWS, SAMPLE, CLASSES = 8, (4, 2, 2), 4
COLUMNS = 16
SCALES = [1.0, 0.0, 1e-30, 1e6, 1e14, 1e25, 1e37]
"""Of features; all of them are legal."""

CLASS_LABELS = torch.arange(ROWS) % CLASSES
LABELS = {
    nn.CrossEntropyLoss: CLASS_LABELS,
    nn.MSELoss: nn.functional.one_hot(CLASS_LABELS).float(),
}


@dataclass(frozen=True, eq=False)
class Wire:
    """What is agreed on at the cuts of a turn, and frames that fit it.

    Without a `loss_fn` the device has the last layers. `several` is for features in a
    structure, with masks.
    """

    codec: CutCodec
    loss_fn: nn.Module | None = None
    output_codec: CutCodec | None = None
    several: bool = False

    @cached_property
    def exchanges(self) -> list[list[pb.DeviceFrame]]:
        """Frames of all kinds, those together that come one after the other."""
        predict = pb.Predict()
        self._fill(predict, 1.0, training=False)
        return [
            *[self.step(scale) for scale in SCALES],
            [pb.DeviceFrame(predict=predict)],
            [close_frame()],
        ]

    def step(self, scale: float) -> list[pb.DeviceFrame]:
        """The frames of one step."""
        if self.output_codec is not None:
            forward = pb.Forward(label_entries=ROWS)
            self._fill(forward, scale, training=True)
            return [pb.DeviceFrame(forward=forward), self._backward(scale)]
        step = pb.Step()
        link = self._fill(step, scale, training=True)
        step.labels = pack_labels(link.sent_rows(LABELS[type(self.loss_fn)]))
        return [pb.DeviceFrame(step=step)]

    def _fill(
        self, message: pb.Step | pb.Forward | pb.Predict, scale: float, training: bool
    ) -> Link:
        """Put features into a message."""
        features = some_features(scale)
        encoded, link = self.codec.encode_features(
            features,
            training=training,
            generator=torch.Generator().manual_seed(0),
            all_rows=self.several or self.output_codec is not None,
        )
        matrix = to_matrix(encoded)
        if not self.several:
            message.features.CopyFrom(matrix)
            return link

        def part_of(tensor: Tensor) -> pb.Part:
            if tensor is features:
                return pb.Part(coded=matrix)
            return whole_part(tensor) if is_float(tensor) else exact_part(tensor)

        mask = features[:1] > 0
        structure = {"hidden": (features, [features, None]), "mask": (mask, 1.0 * mask)}
        message.parts.extend(pack_parts(structure, part_of))
        return link

    def _backward(self, scale: float) -> pb.DeviceFrame:
        assert self.output_codec is not None
        codec = self.output_codec.mirror()
        # of codecs that send all of a matrix, a link knows the shape alone
        encoded, _ = codec.encode_features(torch.rand(ROWS, CLASSES))
        _, link = codec.decode_features(encoded, expect=(ROWS, CLASSES))
        gradient = codec.encode_gradient(scale * torch.ones(ROWS, CLASSES), link)
        return pb.DeviceFrame(backward=pb.Backward(gradient=to_matrix(gradient)))


def some_features(scale: float) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return scale * torch.rand(ROWS, *SAMPLE, generator=draw)


def close_frame() -> pb.DeviceFrame:
    own = [pack_tensor("own", torch.ones(3))]
    close = pb.Close(state=own, codec_seconds=1.0, waited_seconds=2.0)
    return pb.DeviceFrame(close=close)


CODECS = [
    cut_codec("float32"),
    cut_codec("float16"),
    cut_codec("int8", uplink_bits=32, downlink_bits=32),
    cut_codec("splitfc", reduction=2, uplink_bits=32, downlink_bits=32),
    cut_codec("splitfc-rd", uplink_bits=32, downlink_bits=32),
    cut_codec("quant-only", uplink_bits=32, downlink_bits=32),
    cut_codec("top-s", uplink_bits=32, downlink_bits=32),
    cut_codec("fedlite", uplink_bits=32, downlink_bits=32),
    cut_codec("mask-encoded", uplink_bits=32, downlink_bits=32),
]
WIRES = [
    *[Wire(codec, nn.CrossEntropyLoss()) for codec in CODECS],
    Wire(cut_codec("float32"), nn.MSELoss()),
    Wire(cut_codec("float32"), None, cut_codec("float32")),
    Wire(cut_codec("splitfc-rd"), None, cut_codec("int8", uplink_bits=32)),
    Wire(cut_codec("float32"), nn.CrossEntropyLoss(), several=True),
    Wire(cut_codec("splitfc-rd"), nn.CrossEntropyLoss(), several=True),
    Wire(CODECS[3], None, cut_codec("float32"), several=True),
]
