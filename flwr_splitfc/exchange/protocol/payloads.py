"""The payloads in frames: what is counted, and what a digest is of."""

from collections.abc import Iterable

from flwr_splitfc.exchange.protocol import split_pb2 as pb


def feature_payloads(frame: pb.Step | pb.Forward | pb.Predict) -> list[bytes]:
    """Return the encoded features in a frame, one for each tensor."""
    if not frame.parts:
        return [frame.features.data]
    return _parts_payloads(frame.parts)


def gradient_payloads(answer: pb.Stepped | pb.Gradients) -> list[bytes]:
    """Return the encoded gradients by the features in an answer."""
    if not answer.gradients:
        return [answer.gradient.data]
    return [matrix.data for matrix in answer.gradients]


def output_payloads(predicted: pb.Predicted) -> list[bytes]:
    """Return the server half's output in an answer, one for each tensor."""
    if not predicted.parts:
        return [predicted.logits.data]
    return _parts_payloads(predicted.parts)


def total_bytes(payloads: Iterable[bytes]) -> int:
    """Return the bytes of some payloads together."""
    return sum(len(payload) for payload in payloads)


def _parts_payloads(parts: Iterable[pb.Part]) -> list[bytes]:
    payloads = []
    for part in parts:
        match part.WhichOneof("kind"):
            case "coded":
                payloads.append(part.coded.data)
            case "exact":
                payloads.append(part.exact)
    return payloads
