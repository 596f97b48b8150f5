"""What hosts are, where names have to be looked up for that; and who may listen where."""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

from orch_core.contracts.errors import ConfigurationError

Found = tuple[socket.AddressFamily, str]


def family(host: str) -> socket.AddressFamily:
    """What kind of socket reaches it. Raises ConfigurationError for a name that nobody knows."""
    return _found(host)[0][0]


def check_heard(hosts: Iterable[str], *, insecure: bool) -> None:
    """There is no TLS yet, so nothing is said where others can hear it unless the user wants that. ConfigurationError,
    also for a name that nobody knows."""
    for host in hosts:
        if not insecure and not all(ipaddress.ip_address(ip.partition("%")[0]).is_loopback for _, ip in _found(host)):
            raise ConfigurationError(
                f"{host} is not on loopback, and there is no TLS yet: whoever is on that network can read the job's "
                f"token and its weights; say --insecure if that is fine"
            )


async def resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """For dialling, without holding the loop up: a number is taken as it is. Raises OSError."""
    try:
        return (socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET), (host, port)
    except ValueError:  # a name
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        kind, _, _, _, where = found[0]
        return kind, (str(where[0]), port)


def _found(host: str) -> list[Found]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"the host {host!r} is not known here ({error}): give an address") from error
    return [(kind, str(where[0])) for kind, _, _, _, where in found]
