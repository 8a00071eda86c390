"""Addresses as people write them: host names, IPv4 and IPv6, with and without a port."""

from ipaddress import ip_address


def split_address(address: str) -> tuple[str, int | None]:
    """Host and port of ``host``, ``host:port``, ``[ipv6]:port`` or a bare IPv6 address.

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> split_address("server.example:9093"), split_address("10.0.0.7"), split_address("[::1]:80"), split_address("::1")
    (('server.example', 9093), ('10.0.0.7', None), ('::1', 80), ('::1', None))
    """
    host, bracket, rest = (
        address.removeprefix("[").partition("]")
        if address.startswith("[")
        else (address, "", "")
    )
    if not bracket and address.count(":") == 1:
        host, _, rest = address.partition(":")
        rest = f":{rest}"
    port = rest.removeprefix(":")
    if not host or (
        rest
        and not (rest.startswith(":") and port.isdecimal() and 0 < int(port) < 2**16)
    ):
        raise ValueError(
            f"address is {address!r}, wanted host, host:port, [ipv6]:port or an IPv6 address"
        )
    if (bracket or ":" in host) and not _is_ip(host):
        raise ValueError(f"address is {address!r}, and {host!r} is no IPv6 address")
    return host, int(port) if port else None


def join_address(host: str, port: int) -> str:
    """``host:port``, the host of an IPv6 address in brackets.

    >>> join_address("::1", 80)
    '[::1]:80'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`.

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("10.0.0.7")
    (True, True, True, False)
    """
    return host == "localhost" or (_is_ip(host) and ip_address(host).is_loopback)


def is_wildcard(host: str) -> bool:
    """Whether a server that listens on `host` listens on every address of its machine.

    >>> is_wildcard("0.0.0.0"), is_wildcard("::"), is_wildcard("10.0.0.7")
    (True, True, False)
    """
    return _is_ip(host) and ip_address(host).is_unspecified


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
