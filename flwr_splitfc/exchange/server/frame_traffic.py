"""Counting the bytes of the exchange's frames, by kind."""

from collections import Counter
from collections.abc import Iterable

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
    _count(traffic.uplink_bytes, _wire_bytes(frame), _uplink_payloads(frame))


def count_downlink(traffic: Traffic, frame: pb.ServerFrame) -> None:
    """Enter a frame that a device was answered."""
    _count(traffic.downlink_bytes, _wire_bytes(frame), _downlink_payloads(frame))


def count_resent(
    traffic: Traffic, frame: pb.DeviceFrame, reply: pb.ServerFrame
) -> None:
    """Enter a frame and its answer that crossed the wire once more."""
    traffic.uplink_bytes["resent"] += _wire_bytes(frame)
    traffic.downlink_bytes["resent"] += _wire_bytes(reply)


def _uplink_payloads(frame: pb.DeviceFrame) -> dict[str, int]:
    """Return the bytes of each kind of payload in a frame."""
    match frame.WhichOneof("kind"):
        case "step":
            features = total_bytes(feature_payloads(frame.step))
            return {"features": features, "labels": len(frame.step.labels)}
        case "forward":
            return {"features": total_bytes(feature_payloads(frame.forward))}
        case "predict":
            return {"features": total_bytes(feature_payloads(frame.predict))}
        case "backward":
            return {"output_gradient": len(frame.backward.gradient.data)}
        case "close":
            close = frame.close
            state_bytes = _tensor_bytes(close.optimizer) + _tensor_bytes(close.state)
            return {"state": state_bytes}
        case _:
            return {}


def _downlink_payloads(frame: pb.ServerFrame) -> dict[str, int]:
    """Return the bytes of each kind of payload in an answer."""
    match frame.WhichOneof("kind"):
        case "stepped":
            return {"gradient": total_bytes(gradient_payloads(frame.stepped))}
        case "gradients":
            return {"gradient": total_bytes(gradient_payloads(frame.gradients))}
        case "output":
            return {"output": len(frame.output.output.data)}
        case "predicted":
            return {"logits": total_bytes(output_payloads(frame.predicted))}
        case "kept":
            kept = frame.kept
            state_bytes = _tensor_bytes(kept.optimizer) + _tensor_bytes(kept.state)
            return {"state": state_bytes}
        case _:
            return {}


def _count(
    counts: Counter[str], frame_bytes: int, payload_bytes: dict[str, int]
) -> None:
    """Enter a frame by the kinds of its payloads; the rest of it is framing."""
    counts["framing"] += frame_bytes
    for kind, size_bytes in payload_bytes.items():
        counts[kind] += size_bytes
        counts["framing"] -= size_bytes


def _wire_bytes(frame: pb.DeviceFrame | pb.ServerFrame) -> int:
    return frame.ByteSize() + _GRPC_PREFIX_BYTES


def _tensor_bytes(tensors: Iterable[pb.Tensor]) -> int:
    return sum(len(tensor.data) for tensor in tensors)
