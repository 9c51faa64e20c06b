"""HOST:PORT of both IP versions, made and taken apart."""

import socket

import pytest

from expertfleet.proto.address import family_of, is_every_address, is_loopback, join_address, own_host, split_address

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


LOOPBACK = (
    "127.0.0.1",
    "127.255.255.254",
    "127.1",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "localhost",
    "LocalHost",
)
EVERYWHERE = ("0.0.0.0", "0", "0.0", "::", "::0", "0:0:0:0:0:0:0:0", "::ffff:0.0.0.0")
BEYOND = ("10.0.0.2", "::ffff:10.0.0.2", "fd00::7", "fe80::1%lo", "128.0.0.1", "no-such-host.invalid", "x" * 70, "a..b")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/hosts of another machine."""
    known = {"ip6-localhost": ["::1"], "debian": ["127.0.1.1"], "both": ["127.0.0.1", "10.0.0.2"], "lan": ["fd00::7"]}
    really = socket.getaddrinfo

    def look_up(host: str, *rest: int, **more: int) -> list[object]:
        if host in known and more.get("flags") == socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        return [found for each in known.get(host, [host]) for found in really(each, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("host", [*LOOPBACK, *EVERYWHERE, *BEYOND])
def test_what_kind_of_host_it_is_does_not_depend_on_its_spelling(host: str) -> None:
    assert (is_loopback(host), is_every_address(host)) == (host in LOOPBACK, host in EVERYWHERE)


@pytest.mark.usefixtures("names")
def test_a_name_is_loopback_if_all_that_it_stands_for_is() -> None:
    assert [is_loopback(name) for name in ("ip6-localhost", "debian", "both", "lan")] == [True, True, False, False]
    assert not is_every_address("both")


@pytest.mark.usefixtures("names")
def test_a_name_that_stands_for_ipv6_alone_is_bound_there() -> None:
    families = {name: family_of(name) for name in ("ip6-localhost", "both", "::1", "127.0.0.1")}
    assert [name for name, family in families.items() if family == socket.AF_INET6] == ["ip6-localhost", "::1"]
    for name in ("no-such-host.invalid", "x" * 70):
        with pytest.raises(OSError, match=r"no name|not known|resolution|No address"):
            family_of(name)
