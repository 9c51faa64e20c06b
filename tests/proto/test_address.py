"""HOST:PORT of both IP versions, made and taken apart."""

import socket

import pytest

from expertfleet.proto.address import join_address, own_host, split_address

PAIRS = [("127.0.0.1", "127.0.0.1:80"), ("a-name.example", "a-name.example:80"), ("fd00::7", "[fd00::7]:80")]


@pytest.mark.parametrize(("host", "address"), [*PAIRS, ("::", "[::]:80"), ("fe80::1%eth0", "[fe80::1%eth0]:80")])
def test_what_is_joined_is_split_again(host: str, address: str) -> None:
    assert join_address(host, 80) == address
    assert split_address(address) == (host, 80)


def test_a_port_that_is_no_number_is_an_error() -> None:
    for address in ("", "host", "fd00::x"):
        with pytest.raises(ValueError, match="invalid literal"):
            split_address(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_machine_reaches_itself_from_the_address_that_it_asks_for(host: str) -> None:
    assert own_host(join_address(host, 9)) == host


def test_a_name_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(socket.gaierror):
        own_host("no-such-host.invalid:9")
