"""The channel from a device to the split endpoint."""

import grpc

from flwr_splitfc.exchange.protocol.tls import PINNED_NAME, Tls


def open_channel(
    address: str, tls: Tls, authority: bytes, options: list[tuple[str, int | str]]
) -> grpc.Channel:
    """A channel to the endpoint at `address`, checked as the ticket says."""
    if tls == "off":
        return grpc.insecure_channel(address, options=options)
    if tls == "pinned":
        options = [*options, ("grpc.ssl_target_name_override", PINNED_NAME)]
    return grpc.secure_channel(
        address, grpc.ssl_channel_credentials(authority or None), options=options
    )
