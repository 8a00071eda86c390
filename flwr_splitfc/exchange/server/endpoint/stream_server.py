"""The gRPC server at which sessions' streams arrive: where it listens, and how."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from errno import EADDRINUSE
from logging import getLogger
from socket import (
    AF_INET,
    AF_INET6,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
    getaddrinfo,
    socket,
)
from typing import TypeAlias

import grpc

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.address import (
    is_ip,
    is_wildcard,
    join_address,
    split_address,
)
from flwr_splitfc.exchange.protocol.rpc import KEEPALIVE_MS, SESSION_METHOD
from flwr_splitfc.exchange.protocol.tls import Tls
from flwr_splitfc.exchange.server.endpoint.certificate import (
    Certificate,
    server_credentials,
)
from flwr_splitfc.exchange.server.endpoint.descriptors import most_connections
from flwr_splitfc.exchange.server.endpoint.endpoint_config import EndpointConfig
from flwr_splitfc.exchange.server.turn.limits import Limits

_HANDSHAKE_TIMEOUT_MS = 10_000  # for a connection that does not speak
# beyond sessions, open or waiting: for connections that are refused or replaced
_SPARE_STREAMS = 32
# a device opens one; a proxy may carry those of a few devices
_STREAMS_OF_A_CONNECTION = 16
# each takes some ten kB; far more than sessions, or those of a stranger would fill it
_MOST_CONNECTIONS = 2048
_ONLY_UNCOMPRESSED = 1  # a bit for each of gRPC's algorithms, none being the first
_STOP_GRACE_S = 1.0

_TLS_TEXTS: dict[Tls, str] = {
    "off": "in plaintext",
    "pinned": "with TLS",
    "verified": "with TLS by its own certificate",
}

StreamHandler: TypeAlias = Callable[
    [Iterator[bytes], grpc.ServicerContext], Iterator[pb.ServerFrame]
]

logger = getLogger("flwr")


class StreamServer:
    """The gRPC server at which devices open their sessions' streams.

    Parameters
    ----------
    config : EndpointConfig
    handler : callable
        Answers the frames of one stream.

    Attributes
    ----------
    certificate : Certificate or None
        What it proves itself with; None in plaintext, or before it makes its own.
    """

    def __init__(self, config: EndpointConfig, handler: StreamHandler) -> None:
        self.certificate = config.certificate
        self._config = config
        self._handler = handler
        self._port = config.port
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        """``host:port``, as devices are told."""
        if not self._config.address:
            return self._listening_address
        host, port = split_address(self._config.address)
        return join_address(host, port or self._port)

    @property
    def _listening_address(self) -> str:
        return join_address(self._config.host, self._port)

    @property
    def tls(self) -> Tls:
        """How it proves itself to devices."""
        if not self._config.encrypted:
            return "off"
        return "verified" if self._config.certificate else "pinned"

    def start(self) -> None:
        """Listen, and serve streams from now on.

        Raises
        ------
        OSError
            If it cannot listen there.
        """
        server = _grpc_server(self._config, self._handler)
        try:
            self._port = self._listen(server)
        except OSError:
            # it may have one of the host's addresses, and lets go of it when it ends
            server.start()
            server.stop(None).wait()
            raise
        server.start()
        self._server = server
        self._log_start()

    def stop(self) -> None:
        """End all streams, and listen no longer."""
        if self._server is not None:
            self._server.stop(grace=_STOP_GRACE_S).wait()
            self._server = None

    def _listen(self, server: grpc.Server) -> int:
        """Listen on every address of the host, at one port, and return it."""
        credentials = self._credentials()
        port = self._config.port
        try:
            for address in _addresses_of(self._config.host):
                _check_free(address, port)
                # where any port will do, the first address decides
                port = _add_port(server, join_address(address, port), credentials)
        except (OSError, RuntimeError) as error:
            wanted = join_address(self._config.host, port)
            raise OSError(
                f"the split endpoint cannot listen on {wanted}: "
                "is the port taken, the host here?"
            ) from error
        return port

    def _credentials(self) -> grpc.ServerCredentials | None:
        """Return what it proves itself with; None in plaintext."""
        if not self._config.encrypted:
            return None
        if self.certificate is None:
            self.certificate = Certificate.for_run()
        return server_credentials(self.certificate)

    def _log_start(self) -> None:
        logger.info(
            "Split endpoint listens on %s %s",
            self._listening_address,
            _TLS_TEXTS[self.tls],
        )
        if self.address != self._listening_address:
            logger.info("Devices are told to connect to %s", self.address)
        if self.tls == "off" and self._config.leaves_this_machine:
            logger.warning(
                "Features, gradients and tokens cross the network in plaintext, "
                "as tls=False asks for"
            )
        if self._config.leaves_this_machine and not _grpc_is_silent():
            logger.info(
                "gRPC writes a line to stderr for each bad header field that a "
                "stranger sends: GRPC_VERBOSITY=NONE in the environment of the "
                "SuperLink, or of the SuperExec, turns that off"
            )


def _grpc_is_silent() -> bool:
    # setting it here would be too late: gRPC has read it before any app was loaded
    return os.environ.get("GRPC_VERBOSITY", "").upper() == "NONE"


def _addresses_of(host: str) -> list[str]:
    """Return a name's addresses on this machine; an address is itself.

    gRPC listens on those of a name that it gets, and is content with one: devices would
    reach whoever has the others.

    Raises
    ------
    OSError
        If the name is unknown, or no address of it is here.
    """
    if is_ip(host):
        return [host]
    # gRPC knows this name as both, whatever the system says
    addresses = ["127.0.0.1", "::1"] if host.lower() == "localhost" else _found(host)
    here = [address for address in addresses if _is_here(address)]
    if not here:
        raise OSError(f"no address of {host} is here")
    return here


def _found(host: str) -> list[str]:
    found = getaddrinfo(host, None, type=SOCK_STREAM)
    # a name may stand in several lines of /etc/hosts
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _is_here(address: str) -> bool:
    family = AF_INET6 if ":" in address else AF_INET
    try:
        with socket(family, SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        # as ::1 of localhost, where there is no IPv6
        return False
    return True


def _check_free(address: str, port: int) -> None:
    """Refuse a port of ``::`` that somebody has: gRPC is content with IPv4's then.

    Raises
    ------
    OSError
    """
    if not (is_wildcard(address) and ":" in address):
        return
    try:
        with socket(AF_INET6, SOCK_STREAM) as probe:
            # as gRPC does: connections of a server that has ended hold no port
            probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        # where there is no IPv6, IPv4 is all
        if error.errno == EADDRINUSE:
            raise


def _add_port(
    server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    if credentials is None:
        return int(server.add_insecure_port(address))
    return int(server.add_secure_port(address, credentials))


def _grpc_server(config: EndpointConfig, handler: StreamHandler) -> grpc.Server:
    limits = config.limits
    streams = limits.max_sessions + limits.max_waiting + _SPARE_STREAMS
    server = grpc.server(
        # Each stream holds a thread for as long as it is open. Threads are made when
        # they are needed.
        ThreadPoolExecutor(streams, thread_name_prefix="split-session"),
        options=_options(config.limits),
        maximum_concurrent_rpcs=streams,
    )
    # frames come as bytes: the handler looks at them before it parses them
    method_handler = grpc.stream_stream_rpc_method_handler(
        handler, None, pb.ServerFrame.SerializeToString
    )
    service, method = SESSION_METHOD.strip("/").split("/")
    service_handler = grpc.method_handlers_generic_handler(
        service, {method: method_handler}
    )
    server.add_generic_rpc_handlers((service_handler,))
    return server


def _options(limits: Limits) -> list[tuple[str, int]]:
    connections = most_connections(_MOST_CONNECTIONS, limits.max_sessions)
    idle_ms = max(round(1000 * limits.connection_idle_timeout_s), 1)
    return [
        ("grpc.max_send_message_length", limits.max_frame_bytes),
        ("grpc.max_receive_message_length", limits.max_frame_bytes),
        # frames are dense already, and what inflates gets past limits of size
        ("grpc.compression_enabled_algorithms_bitset", _ONLY_UNCOMPRESSED),
        ("grpc.per_message_decompression", 0),
        ("grpc.max_concurrent_streams", _STREAMS_OF_A_CONNECTION),
        ("grpc.max_connection_idle_ms", idle_ms),
        ("grpc.max_allowed_incoming_connections", connections),
        # a taken port must be an error, not a port that two servers share
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        # or gRPC would ask once a minute only, from the third ping on
        ("grpc.http2.max_pings_without_data", 0),
        # devices ping every KEEPALIVE_MS, give or take
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
    ]
