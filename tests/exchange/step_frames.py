"""Frames of a device that trains, made without a session."""

import torch
from torch import Tensor

from flwr_splitfc.codec import cut_codec, pack_labels
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.tensors import to_matrix


def label_bytes(rows: int, label: int = 0) -> bytes:
    return pack_labels(torch.full((rows,), label))


def step_frame(
    features: Tensor, labels: bytes, codec: str = "float32"
) -> pb.DeviceFrame:
    encoded, _ = cut_codec(codec).encode_features(features)
    return pb.DeviceFrame(step=pb.Step(features=to_matrix(encoded), labels=labels))
