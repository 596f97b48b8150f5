"""Addresses as people and job files write them: ``host:port``, IPv6 in brackets, names too."""

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
