"""Counting the bytes of the exchange's frames, by kind."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.server.accounts.traffic import Traffic

# gRPC puts a compression flag and a length before every message
_GRPC_PREFIX_BYTES = 5

_NOTHING: Mapping[str, int] = MappingProxyType({})


class Moved(NamedTuple):
    """The bytes of the payloads in a frame and in its answer, by kind.

    Whoever handles a frame has its payloads at hand. To look for them in the frame
    would copy them: protobuf does so whenever it is asked for one.
    """

    uplink: Mapping[str, int] = _NOTHING
    downlink: Mapping[str, int] = _NOTHING


def count_uplink(
    traffic: Traffic, frame: pb.DeviceFrame, payload_bytes: Mapping[str, int] = _NOTHING
) -> None:
    """Enter a frame that a device sent, by the kinds of its payloads."""
    _count(traffic.uplink_bytes, _wire_bytes(frame), payload_bytes)


def count_downlink(
    traffic: Traffic, frame: pb.ServerFrame, payload_bytes: Mapping[str, int] = _NOTHING
) -> None:
    """Enter a frame that a device was answered, by the kinds of its payloads."""
    _count(traffic.downlink_bytes, _wire_bytes(frame), payload_bytes)


def count_resent(
    traffic: Traffic, frame: pb.DeviceFrame, reply: pb.ServerFrame
) -> None:
    """Enter a frame and its answer that crossed the wire once more."""
    traffic.uplink_bytes["resent"] += _wire_bytes(frame)
    traffic.downlink_bytes["resent"] += _wire_bytes(reply)


def _count(
    counts: Counter[str], frame_bytes: int, payload_bytes: Mapping[str, int]
) -> None:
    """Enter a frame by the kinds of its payloads; the rest of it is framing."""
    counts["framing"] += frame_bytes
    for kind, size_bytes in payload_bytes.items():
        counts[kind] += size_bytes
        counts["framing"] -= size_bytes


def _wire_bytes(frame: pb.DeviceFrame | pb.ServerFrame) -> int:
    return frame.ByteSize() + _GRPC_PREFIX_BYTES
