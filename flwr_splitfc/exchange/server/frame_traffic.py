"""Counting the bytes of the exchange's frames, by kind."""

from collections import Counter
from collections.abc import Iterable, Mapping

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.payloads import (
    feature_payloads,
    gradient_payloads,
    output_payloads,
    total_bytes,
)
from flwr_splitfc.exchange.server.traffic import Traffic

# gRPC puts a compression flag and a length before every message
_GRPC_PREFIX_BYTES = 5


def count_uplink(traffic: Traffic, frame: pb.DeviceFrame) -> None:
    """Enter a frame that a device sent."""
    # A frame is of one kind, and the fields of the others are empty.
    features = [
        *feature_payloads(frame.step),
        *feature_payloads(frame.forward),
        *feature_payloads(frame.predict),
    ]
    close = frame.close
    payloads = {
        "features": total_bytes(features),
        "output_gradient": len(frame.backward.gradient.data),
        "labels": len(frame.step.labels),
        "state": _tensor_bytes(close.optimizer) + _tensor_bytes(close.state),
    }
    _count(traffic.uplink_bytes, _wire_bytes(frame), payloads)


def count_downlink(traffic: Traffic, frame: pb.ServerFrame) -> None:
    """Enter a frame that a device was answered."""
    gradients = [*gradient_payloads(frame.stepped), *gradient_payloads(frame.gradients)]
    payloads = {
        "gradient": total_bytes(gradients),
        "output": len(frame.output.output.data),
        "logits": total_bytes(output_payloads(frame.predicted)),
        "state": _tensor_bytes(frame.kept.optimizer) + _tensor_bytes(frame.kept.state),
    }
    _count(traffic.downlink_bytes, _wire_bytes(frame), payloads)


def count_resent(
    traffic: Traffic, frame: pb.DeviceFrame, reply: pb.ServerFrame
) -> None:
    """Enter a frame and its answer that crossed the wire once more."""
    traffic.uplink_bytes["resent"] += _wire_bytes(frame)
    traffic.downlink_bytes["resent"] += _wire_bytes(reply)


def _count(counts: Counter[str], frame_bytes: int, payloads: Mapping[str, int]) -> None:
    """Enter a frame by the kinds of its payloads; the rest of it is framing."""
    counts.update(payloads)
    counts["framing"] += frame_bytes - sum(payloads.values())


def _wire_bytes(frame: pb.DeviceFrame | pb.ServerFrame) -> int:
    return frame.ByteSize() + _GRPC_PREFIX_BYTES


def _tensor_bytes(tensors: Iterable[pb.Tensor]) -> int:
    return sum(len(tensor.data) for tensor in tensors)
