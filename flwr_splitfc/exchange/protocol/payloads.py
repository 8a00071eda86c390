"""The payloads in frames: what is counted, and what a digest is of."""

from collections.abc import Iterable

from flwr_splitfc.exchange.protocol import split_pb2 as pb


def output_payloads(predicted: pb.Predicted) -> list[bytes]:
    """Return the server half's output in an answer, one payload for each tensor."""
    if not predicted.parts:
        return [predicted.logits.data]
    kinds = (part.WhichOneof("kind") for part in predicted.parts)
    parts = zip(kinds, predicted.parts, strict=True)
    return [part.exact for kind, part in parts if kind == "exact"]


def tensor_payloads(tensors: Iterable[pb.Tensor]) -> list[bytes]:
    """Return the payloads of tensors."""
    return [tensor.data for tensor in tensors]


def total_bytes(payloads: Iterable[bytes]) -> int:
    """Return the bytes of some payloads together."""
    return sum(map(len, payloads))
