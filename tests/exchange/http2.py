"""HTTP/2 by hand, for what no gRPC client would do."""

import socket
import struct

from flwr_splitfc.exchange import SplitEndpoint
from flwr_splitfc.exchange.protocol.rpc import SESSION_METHOD, TOKEN_KEY

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    header = struct.pack(">IBI", len(payload) << 8 | kind, flags, stream)
    return header + payload


def connection(endpoint: SplitEndpoint) -> socket.socket:
    """A TCP connection on which nothing was said yet."""
    host, _, port = endpoint.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def greeting(window: int = 2**16 - 1) -> bytes:
    """What a client says first; it takes so many bytes of data on each stream."""
    setting = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
    return _PREFACE + frame(_SETTINGS, 0, 0, setting)


def open_stream(number: int, token: str, more: bytes = b"") -> bytes:
    """The headers of the call with this number, from 0, and `more` header fields."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": SESSION_METHOD,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        TOKEN_KEY: token,
    }
    block = b"".join(_literal(*field) for field in fields.items())
    return frame(_HEADERS, _END_HEADERS, 2 * number + 1, block + more)


def message(number: int, payload: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message on the stream with this number."""
    prefixed = struct.pack(">BI", compressed, len(payload)) + payload
    return frame(_DATA, 0, 2 * number + 1, prefixed)


def _literal(name: str, value: str) -> bytes:
    """A header field as HPACK writes it without a table and without Huffman's code."""
    return b"\x00" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()
