"""Addresses as people and job files write them: ``host:port``, IPv6 in brackets, names too."""

import ipaddress
import socket

from orch_core.contracts.errors import ConfigurationError


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port. Raises ConfigurationError."""
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    wrong = not colon or not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdigit()
    if wrong or not 0 <= int(port) < 65536:
        raise ConfigurationError(
            f"{address!r} is no address: it should look like 10.0.0.5:4711, [::1]:4711 or name:4711"
        )
    return bare, int(port)


def joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family(host: str) -> socket.AddressFamily:
    """What kind of socket reaches it. Raises ConfigurationError for a name that nobody knows."""
    return _resolve(host)[0][0]


def is_loopback(host: str) -> bool:
    """Whether only this host hears what is said there. Raises ConfigurationError for a name that nobody knows."""
    return all(ipaddress.ip_address(found[1].partition("%")[0]).is_loopback for found in _resolve(host))


def _resolve(host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"the host {host!r} is not known here ({error}): give an address") from error
    return [(family, str(address[0])) for family, _, _, _, address in found]
