"""Where the split endpoint listens, how devices reach it, and what it grants them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Final, Literal, TypeVar, get_args, get_type_hints

from flwr_splitfc.exchange.protocol.address import (
    is_ip,
    is_loopback,
    is_wildcard,
    split_address,
)
from flwr_splitfc.exchange.server.endpoint.certificate import Certificate
from flwr_splitfc.exchange.server.turn.limits import Limits
from flwr_splitfc.settings import (
    RunConfig,
    Scalar,
    check_choice,
    check_dashes,
    check_scalar,
    field_of,
    key_of,
    under_key,
)

Transport = Literal["stream", "messages"]

Made = TypeVar("Made", "EndpointConfig", Limits)

_PREFIX = "split-"
_NAME = re.compile(r"[\w.-]+")  # of a host
_TLS: Final[Mapping[Scalar, bool | None]] = {"auto": None, "on": True, "off": False}


@dataclass(frozen=True)
class EndpointConfig:
    """Where the split endpoint listens, how devices reach it, and what it grants them.

    Parameters
    ----------
    host : str (default: "127.0.0.1")
        The address to listen on: the default serves devices on this machine, as in the
        simulation engine, and where that runs on a Ray cluster of several nodes, this
        node's address there is taken instead; ``"0.0.0.0"`` or ``"::"`` is every
        address of the machine.
    port : int (default: 0, any free one)
    address : str, optional
        ``host``, ``host:port`` or ``[ipv6]:port`` by which devices reach it, for
        containers, NAT and proxies; default `host` and the port listened on. A node's
        own config may override it by ``split-address``.
    tls : bool, optional
        Default: off where `host` and `address` are this machine's own, on elsewhere.
        False is plaintext everywhere.
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
    >>> EndpointConfig().encrypted
    False
    >>> EndpointConfig(host="0.0.0.0", address="ml.example.org").encrypted
    True
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
        _check_host("host", self.host)
        if self.address:
            _check_address(self.address)
        elif is_wildcard(self.host):
            raise ValueError(
                f"host {self.host!r} listens on every address of this machine: "
                "give the address by which devices reach it, too"
            )
        if self.certificate and self.tls is False:
            raise ValueError("a certificate was given, and tls=False")
        check_choice("transport", self.transport, get_args(Transport))

    @classmethod
    def from_run_config(cls, config: RunConfig) -> "EndpointConfig":
        """Read a run-config's ``split-...`` keys.

        They are ``split-host``, ``split-port``, ``split-address``,
        ``split-transport``, ``split-tls`` ("auto", "on" or "off"),
        ``split-certificate``, ``split-private-key`` and ``split-ca-certificate``
        (absolute paths of PEM files), and one for each of the `Limits`, such as
        ``split-idle-timeout-s``. Those that are missing or empty have their defaults.

        Raises
        ------
        ValueError
            If a value is wrong; the message names the key.

        Examples
        --------
        >>> config = {"split-host": "::1", "split-tls": "on", "split-max-sessions": 8}
        >>> EndpointConfig.from_run_config(config).limits
        Limits(max_sessions=8, ...)
        """
        check_dashes(config, ENDPOINT_KEYS)
        given = _given_settings(config)
        limits = _with_settings(Limits(), given, _LIMIT_TYPES)
        tls = _read_tls(given.get("tls", "auto"))
        made = _with_settings(cls(limits=limits, tls=tls), given, _TYPES)
        certificate = _certificate(given)
        with under_key(f"{_PREFIX}certificate"):
            return replace(made, certificate=certificate)

    @property
    def encrypted(self) -> bool:
        """Whether sessions are encrypted."""
        if self.tls is None:
            return self.certificate is not None or self.leaves_this_machine
        return self.tls

    @property
    def is_for_this_machine(self) -> bool:
        """Whether nothing says how devices elsewhere would reach the endpoint."""
        return not self.address and is_loopback(self.host)

    @property
    def leaves_this_machine(self) -> bool:
        """Whether sessions cross a network, by `host` or by a proxy at `address`."""
        hosts = [self.host]
        if self.address:
            hosts.append(split_address(self.address)[0])
        return not all(is_loopback(host) for host in hosts)


def _check_address(address: str) -> None:
    """Refuse what no device could connect to."""
    host, _ = split_address(address)
    _check_host("address", host)
    if is_wildcard(host):
        raise ValueError(
            f"address is {address!r}, which stands for every address of a machine: "
            "wanted the one by which devices reach it"
        )


def _check_host(name: str, host: str) -> None:
    """Refuse what is neither an IP address nor the name of a host."""
    if is_ip(host):
        return
    # "0" and "127.1" are IP addresses to some systems alone
    last_label = host.rpartition(".")[2]
    if not _NAME.fullmatch(host) or last_label.isdecimal():
        raise ValueError(
            f"{name} is {host!r}, wanted an IP address or the name of a host"
        )


def _read_tls(value: Scalar) -> bool | None:
    if value not in _TLS:
        raise ValueError(f"{_PREFIX}tls is {value!r}, wanted one of {tuple(_TLS)}")
    return _TLS[value]


# Keys without their prefix. Those of single fields are the fields' names.
_TYPES: Final[Mapping[str, type]] = {
    "port": int,
    "address": str,
    "host": str,  # "0.0.0.0" needs the address
    "transport": str,
}
_CERTIFICATE_FILES = ("certificate", "private-key", "ca-certificate")
_LIMIT_TYPES: Final[Mapping[str, type]] = {
    key_of(name): kind for name, kind in get_type_hints(Limits).items()
}
_KEYS: Final[Mapping[str, type]] = {
    **_TYPES,
    **dict.fromkeys(("tls", *_CERTIFICATE_FILES), str),
    **_LIMIT_TYPES,
}
ENDPOINT_KEYS: Final[Mapping[str, type]] = {
    _PREFIX + key: kind for key, kind in _KEYS.items()
}
"""The keys of `EndpointConfig.from_run_config`, with their types."""


def _with_settings(
    made: Made, given: Mapping[str, Scalar], types: Mapping[str, type]
) -> Made:
    """Set those among `types` one by one, so that an error names its key."""
    for name, kind in types.items():
        if name in given:
            key = _PREFIX + name
            value = check_scalar(key, given[name], kind)
            with under_key(key):
                made = replace(made, **{field_of(name): value})
    return made


def _given_settings(config: RunConfig) -> dict[str, Scalar]:
    """Return the endpoint's settings that are not empty, without the prefix."""
    given = {
        key.removeprefix(_PREFIX): value
        for key, value in config.items()
        if key.startswith(_PREFIX) and value != ""
    }
    unknown = given.keys() - _KEYS.keys()
    if unknown:
        hints = ", ".join(map(_with_hint, sorted(unknown)))
        raise ValueError(f"unknown run-config keys: {hints}")
    return given


def _with_hint(key: str) -> str:
    hint = _PREFIX + key
    for close in get_close_matches(key, _KEYS, n=1):
        hint += f" (did you mean {_PREFIX}{close}?)"
    return hint


def _certificate(given: Mapping[str, Scalar]) -> Certificate | None:
    paths = [str(given.get(key, "")) for key in _CERTIFICATE_FILES]
    chain, private_key, authority = paths
    if chain and private_key:
        keys = ", ".join(_PREFIX + key for key in _CERTIFICATE_FILES)
        with under_key(keys):
            return Certificate.from_files(chain, private_key, authority or None)
    if any(paths):
        raise ValueError(
            f"{_PREFIX}certificate and {_PREFIX}private-key belong together"
        )
    return None
