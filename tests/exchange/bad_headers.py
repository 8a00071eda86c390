"""A stranger sends bad header fields to an endpoint: python -m tests.exchange.bad_headers."""

import socket

from flwr_splitfc import cut_codec
from flwr_splitfc.exchange import SplitEndpoint
from tests.exchange.http2 import connection, greeting, open_stream
from tests.exchange.server_halves import shared_half

# a :method, which stands in HPACK's table, with an empty value
BAD_FIELD = b"\x02\x00"


def main() -> None:
    with (
        SplitEndpoint(shared_half(), cut_codec("float32")) as endpoint,
        connection(endpoint) as stranger,
    ):
        stranger.sendall(greeting() + open_stream(0, "guess", 1000 * BAD_FIELD))
        stranger.shutdown(socket.SHUT_WR)
        # the server hangs up when it has read all of it
        while stranger.recv(4096):
            pass
    print("sent and read")


if __name__ == "__main__":
    main()
