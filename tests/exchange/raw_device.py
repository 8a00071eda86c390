"""A device's stream frame by frame, without a session."""

import contextlib
import queue

import grpc

from flwr_splitfc.exchange import SplitEndpoint
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.rpc import REFUSED_KEY, SESSION_METHOD, TOKEN_KEY
from flwr_splitfc.exchange.protocol.ticket import PROTOCOLS, Ticket

NONCE = bytes(16)


def open_frame(nonce: bytes = NONCE) -> pb.DeviceFrame:
    return pb.DeviceFrame(open=pb.Open(protocol=PROTOCOLS[-1], nonce=nonce))


def session_call(channel: grpc.Channel, token: str, frames):
    """The server's frames in answer to those of an iterator."""
    call = channel.stream_stream(
        SESSION_METHOD, pb.DeviceFrame.SerializeToString, pb.ServerFrame.FromString
    )
    metadata = ((TOKEN_KEY, token),) if token else ()
    return with_refusal(call(frames, metadata=metadata))


def with_refusal(replies):
    """The frames of a call, and the refusal that ends it as one more."""
    try:
        yield from replies
    except grpc.RpcError as error:
        metadata = dict(error.trailing_metadata() or ())
        if REFUSED_KEY not in metadata:
            raise
        yield pb.ServerFrame(refused=pb.Refused.FromString(metadata[REFUSED_KEY]))


def drain(replies) -> None:
    """Take all frames that come; a connection that breaks is their end."""
    with contextlib.suppress(grpc.RpcError):
        list(replies)


class RawDevice:
    """A connection with one call, for which each frame is given as it is."""

    def __init__(
        self, endpoint: SplitEndpoint, ticket: Ticket, nonce: bytes = NONCE
    ) -> None:
        # a connection of its own
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(endpoint.address, options=options)
        self._frames: queue.SimpleQueue[pb.DeviceFrame | None] = queue.SimpleQueue()
        to_send = iter(self._frames.get, None)
        self._replies = session_call(self.channel, ticket.token, to_send)
        self.opened = self.ask(open_frame(nonce))

    def send(self, frame: pb.DeviceFrame) -> None:
        self._frames.put(frame)

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        self.send(frame)
        return next(self._replies)

    def drop(self) -> None:
        self._frames.put(None)
        self.channel.close()
