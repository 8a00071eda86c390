"""How the exchange is called over gRPC: names and times that both sides agree on."""

SESSION_METHOD = "/flwr_splitfc.v1.SplitExchange/Session"

TOKEN_KEY = "split-token"
"""Key of the session's token in the stream's metadata."""

REFUSED_KEY = "split-refused-bin"
"""Key of a serialized `Refused` in the trailing metadata of a stream that it ends."""

KEEPALIVE_MS = 20_000
"""How often a quiet peer is asked, by a ping, whether the connection still stands."""

NONCE_BYTES = 16
"""Random bytes by which a session knows the process that opened it first."""
