"""Where the split endpoint listens, how devices reach it, and what it grants them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Literal, get_args

from flwr_splitfc.exchange.protocol.address import (
    is_loopback,
    is_wildcard,
    split_address,
)
from flwr_splitfc.exchange.server.certificate import Certificate
from flwr_splitfc.exchange.server.limits import Limits

Transport = Literal["stream", "messages"]

_PREFIX = "split-"
_TEXTS = ("host", "address", "transport")
_FILES = ("certificate", "private-key", "ca-certificate")
_TLS: Final[Mapping[bool | float | int | str, bool | None]] = {
    "auto": None,
    "on": True,
    "off": False,
}


@dataclass(frozen=True)
class EndpointConfig:
    """Where the split endpoint listens, how devices reach it, and what it grants them.

    Parameters
    ----------
    host : str (default: "127.0.0.1")
        The address to listen on: the default serves devices on this machine, as in the
        simulation engine; ``"0.0.0.0"`` or ``"::"`` is every address of the machine.
    port : int (default: 0, any free one)
    address : str, optional
        ``host``, ``host:port`` or ``[ipv6]:port`` by which devices reach it, for
        containers, NAT and proxies; default `host` and the port listened on. A node's
        own config may override it by ``split-address``.
    tls : bool, optional
        Default: off where only this machine can connect, on elsewhere. False is
        plaintext everywhere.
    certificate : Certificate, optional
        For TLS; default a self-signed one for the run, which devices get with their
        tickets.
    limits : Limits
    transport : "stream" or "messages" (default: "stream")
        How frames travel: in a gRPC stream that each device opens, or, where devices
        cannot reach the ServerApp, each in a Flower message of its own, which is a
        hundred to a thousand times slower and needs devices whose app is a
        `SplitClientApp`.

    Raises
    ------
    ValueError
        If devices could not know where to connect, or a certificate is given for
        plaintext.

    Examples
    --------
    >>> EndpointConfig().encrypted, EndpointConfig(host="0.0.0.0", address="ml.example.org").encrypted
    (False, True)
    """

    host: str = "127.0.0.1"
    port: int = 0
    address: str = ""
    tls: bool | None = None
    certificate: Certificate | None = None
    limits: Limits = field(default_factory=Limits)
    transport: Transport = "stream"

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}, wanted 0 (any free one) to 65535")
        if self.address:
            split_address(self.address)
        elif is_wildcard(self.host):
            raise ValueError(
                f"host {self.host!r} listens on every address of this machine: "
                "give the address by which devices reach it, too"
            )
        if self.certificate and self.tls is False:
            raise ValueError("a certificate was given, and tls=False")
        if self.transport not in get_args(Transport):
            raise ValueError(
                f"transport is {self.transport!r}, wanted one of {get_args(Transport)}"
            )

    @classmethod
    def from_run_config(
        cls, config: Mapping[str, bool | float | int | str]
    ) -> "EndpointConfig":
        """What a run-config's ``split-...`` keys say; those that are missing or empty have their defaults.

        ``split-host``, ``split-port``, ``split-address``, ``split-transport``,
        ``split-tls`` ("auto", "on" or "off"), ``split-certificate``,
        ``split-private-key`` and ``split-ca-certificate`` (absolute paths of PEM
        files), and one for each of the `Limits`, such as ``split-idle-timeout-s``.

        Raises
        ------
        ValueError
            If a value is wrong; the message names the key.

        Examples
        --------
        >>> EndpointConfig.from_run_config({"split-host": "::1", "split-tls": "on", "split-max-sessions": 8}).limits
        Limits(max_sessions=8, ...)
        """
        given = {
            key.removeprefix(_PREFIX): config[key]
            for key in config
            if key.startswith(_PREFIX)
        }
        given = {key: value for key, value in given.items() if value != ""}
        limits = {field.name: field.name.replace("_", "-") for field in fields(Limits)}
        if unknown := given.keys() - {
            *_TEXTS,
            *_FILES,
            "port",
            "tls",
            *limits.values(),
        }:
            raise ValueError(
                f"unknown run-config keys {sorted(_PREFIX + key for key in unknown)}"
            )
        tls = given.get("tls", "auto")
        if tls not in _TLS:
            raise ValueError(f"{_PREFIX}tls is {tls!r}, wanted one of {tuple(_TLS)}")
        files = [str(given[key]) if key in given else None for key in _FILES]
        if any(files) and not (files[0] and files[1]):
            raise ValueError(
                f"{_PREFIX}certificate and {_PREFIX}private-key belong together"
            )
        return cls(
            **{key: str(given[key]) for key in _TEXTS if key in given},  # type: ignore[arg-type]
            port=int(given.get("port", 0)),
            tls=_TLS[tls],
            certificate=Certificate.from_files(files[0], files[1], files[2])
            if files[0] and files[1]
            else None,
            limits=Limits(
                **{name: given[key] for name, key in limits.items() if key in given}
            ),  # type: ignore[arg-type]
        )

    @property
    def encrypted(self) -> bool:
        """Whether sessions are."""
        if self.tls is None:
            return self.certificate is not None or not is_loopback(self.host)
        return self.tls
