"""Addresses as people write them: host names, IPv4 and IPv6, with or without a port."""

from ipaddress import IPv4Address, IPv6Address, ip_address


def split_address(address: str) -> tuple[str, int | None]:
    """Return the host and the port of an address; the port is None if it has none.

    Parameters
    ----------
    address : str
        ``host``, ``host:port``, ``[ipv6]:port`` or a bare IPv6 address.

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> split_address("server.example:9093"), split_address("10.0.0.7")
    (('server.example', 9093), ('10.0.0.7', None))
    >>> split_address("[::1]:80"), split_address("::1")
    (('::1', 80), ('::1', None))
    """
    host, rest, in_brackets = _host_and_rest(address)
    is_malformed = rest and not _names_port(rest)
    if not host or is_malformed:
        raise ValueError(
            f"address is {address!r}, "
            "wanted host, host:port, [ipv6]:port or an IPv6 address"
        )
    # only IPv6 addresses have colons or stand in brackets
    if (in_brackets or ":" in host) and _ip_of(host) is None:
        raise ValueError(f"address is {address!r}, and {host!r} is no IPv6 address")
    if not rest:
        return host, None
    return host, int(rest.removeprefix(":"))


def _host_and_rest(address: str) -> tuple[str, str, bool]:
    """The host, what follows it, and whether the host stands in brackets."""
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if bracket:
            return host, rest, True
    if address.count(":") == 1:
        host, colon, port = address.partition(":")
        return host, colon + port, False
    return address, "", False


def _names_port(rest: str) -> bool:
    if not rest.startswith(":"):
        return False
    port = rest.removeprefix(":")
    return port.isdecimal() and 0 < int(port) < 2**16


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, with an IPv6 address in brackets.

    >>> join_address("::1", 80)
    '[::1]:80'
    """
    if ":" in host:
        return f"[{host}]:{port}"
    return f"{host}:{port}"


def is_ip(host: str) -> bool:
    """Whether `host` is an IP address, and no name.

    >>> is_ip("::1"), is_ip("localhost")
    (True, False)
    """
    return _ip_of(host) is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("10.0.0.7")
    (True, True, False)
    """
    if host == "localhost":
        return True
    ip = _ip_of(host)
    return ip is not None and ip.is_loopback


def is_wildcard(host: str) -> bool:
    """Whether a server that listens on `host` listens on every address of its machine.

    >>> is_wildcard("0.0.0.0"), is_wildcard("::"), is_wildcard("10.0.0.7")
    (True, True, False)
    """
    ip = _ip_of(host)
    return ip is not None and ip.is_unspecified


def _ip_of(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that `host` is; None if it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None
