import pytest

from orch_core.contracts.address import joined, split
from orch_core.contracts.errors import ConfigurationError


@pytest.mark.parametrize("address", ["127.0.0.1:4711", "[::1]:1", "localhost:0", "[fe80::1%eth0]:65535"])
def test_an_address_that_is_split_is_joined_again(address):
    assert joined(*split(address)) == address


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "::1:80", "host:x", "host:65536", "host:-1", "[]:80"])
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(ConfigurationError, match="it should look like"):
        split(text)
