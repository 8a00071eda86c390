"""The channel from a device to the split endpoint."""

import grpc

from flwr_splitfc.exchange.protocol.tls import PINNED_NAME, Tls


def open_channel(
    address: str, tls: Tls, authority: bytes, options: list[tuple[str, int | str]]
) -> grpc.Channel:
    """Return a channel to the endpoint at `address`, checked as the ticket says.

    Parameters
    ----------
    address : str
        ``host:port``
    tls : "off", "pinned" or "verified"
        See `Ticket`.
    authority : bytes
        A certificate in PEM; if empty, those that come with gRPC, or in the file that
        ``GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`` names. The system's store is neither.
    options : list of (str, int or str)
        gRPC's own.
    """
    if tls == "off":
        return grpc.insecure_channel(address, options=options)
    if tls == "pinned":
        # the run's own certificate is for no host in particular
        options = [*options, ("grpc.ssl_target_name_override", PINNED_NAME)]
    credentials = grpc.ssl_channel_credentials(authority or None)
    return grpc.secure_channel(address, credentials, options=options)
