import asyncio
import socket

import pytest

from orch_core.contracts.errors import ConfigurationError
from orch_core.rpc.network import check_heard, family, resolved

UNKNOWN = "no-such-host.invalid"


def test_a_host_is_reached_by_its_kind_of_socket():
    assert family("127.0.0.1") is socket.AF_INET
    assert family("::1") is socket.AF_INET6


@pytest.mark.parametrize("host", ["127.9.9.9", "::1", "localhost"])
def test_on_loopback_anybody_may_listen(host):
    check_heard([host], insecure=False)


@pytest.mark.parametrize("host", ["10.0.0.5", "0.0.0.0", "::", "fd00::1"])
def test_off_loopback_only_who_wants_that_listens(host):
    with pytest.raises(ConfigurationError, match=rf"^{host} is not on loopback.*--insecure"):
        check_heard(["127.0.0.1", host], insecure=False)
    check_heard([host], insecure=True)


def test_a_host_that_nobody_knows_is_named():
    for ask in (family, lambda host: check_heard([host], insecure=False)):
        with pytest.raises(ConfigurationError, match=UNKNOWN):
            ask(UNKNOWN)


def test_numbers_are_dialled_as_they_are_and_names_are_looked_up():
    assert asyncio.run(resolved("10.0.0.5", 7)) == (socket.AF_INET, ("10.0.0.5", 7))
    assert asyncio.run(resolved("fd00::1", 7)) == (socket.AF_INET6, ("fd00::1", 7))
    assert asyncio.run(resolved("localhost", 7))[1] in [("127.0.0.1", 7), ("::1", 7)]
    with pytest.raises(OSError, match=r"."):
        asyncio.run(resolved(UNKNOWN, 7))
