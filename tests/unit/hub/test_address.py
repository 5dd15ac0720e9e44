"""Whose address it is, and what it is counted by (F1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit import Hub, UsageError, anonymous
from rtkit.hub.address import Client, Proxies, Uncounted, key_of, read_address
from rtkit.transports import Handshake


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9 ", "203.0.113.9"),
        ("203.0.113.9:443", "203.0.113.9"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:80", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::1"),
        *((bad, None) for bad in ("", "unknown", "_hidden", "203.0.113", "203.0.113.9.1", "0x7f.1", "1")),
        *((bad, None) for bad in ("203.0.113.9:", "203.0.113.9:http", "203.0.113.9:123456", "203.0.113.9:٣")),
        *((bad, None) for bad in ("[203.0.113.9]", "[2001:db8::1", "[2001:db8::1]443", "[]", "[]:1", "::1]")),
        *((bad, None) for bad in ("203.0.113.9%eth0", "010.0.0.1", "2001:db8::1::", "fe80::1%" + "x" * 64)),
        *((bad, None) for bad in ("\0", "1" * 10_000, "203.0.113.9\r\nx: y", "for=203.0.113.9")),
    ],
)
def test_addresses_as_proxies_write_them(text: str, address: str | None) -> None:
    found = read_address(text)
    assert (None if found is None else str(found)) == address


def key(text: str) -> int:
    address = read_address(text)
    assert address is not None
    return key_of(address)


def test_ipv6_is_counted_by_64_bits() -> None:
    assert key("2001:db8:1:2::1") == key("2001:db8:1:2:ffff::") != key("2001:db8:1:3::1")
    assert key("1.2.3.4") == key("::ffff:1.2.3.4") != key("1.2.3.5")
    assert key("::1.2.3.4") not in (key("1.2.3.4"), 0)  # the upper half is empty, and still no IPv4 address


def client(
    peer: str, *forwarded: str, trusted: tuple[str, ...] = ("10.0.0.0/8", "2001:db8:ff::/48")
) -> Client:
    headers = tuple(("x-forwarded-for", value) for value in forwarded)
    return Proxies(trusted).client(Handshake(headers=(("host", "x"), *headers), address=peer))


def test_a_public_peer_is_counted_and_its_word_is_nothing() -> None:
    assert client("8.8.8.8") == Client("8.8.8.8", key("8.8.8.8"))
    assert client("8.8.8.8", "1.1.1.1") == Client("8.8.8.8", key("8.8.8.8"))
    assert client("::ffff:8.8.8.8").key == key("8.8.8.8")
    assert client("2a00:1450::5").key == key("2a00:1450::6")


@pytest.mark.parametrize(
    "peer", ["127.0.0.1", "::1", "192.168.1.4", "100.64.3.4", "fe80::1%eth0", "fd00::1", "0.0.0.0"]
)
def test_a_private_peer_that_nobody_vouches_for_is_not(peer: str) -> None:
    """It may be a proxy with all the world behind it."""
    assert client(peer, "8.8.8.8") == Client(peer, Uncounted.PRIVATE)


@pytest.mark.parametrize("peer", ["", "unix:", "testclient", "a" * 1000])
def test_no_address_at_all(peer: str) -> None:
    assert client(peer, "8.8.8.8") == Client(peer, Uncounted.UNKNOWN)


def test_unix_sockets_where_they_are_trusted() -> None:
    assert client("", "8.8.8.8", trusted=("unix",)) == Client("8.8.8.8", key("8.8.8.8"))
    assert client("", trusted=("unix",)) == Client("", Uncounted.UNSAID)
    assert client("testclient", "8.8.8.8", trusted=("unix",)).key is Uncounted.UNKNOWN


def test_the_first_from_the_right_that_is_not_trusted() -> None:
    for forwarded in (
        ("8.8.8.8",),
        ("8.8.8.8, 10.0.0.7",),
        ("1.1.1.1, 8.8.8.8, 10.0.0.7",),
        ("1.1.1.1,8.8.8.8:4711,10.0.0.7:80",),
        ("1.1.1.1", "8.8.8.8", "10.0.0.7"),
        ("garbage, ::ffff:8.8.8.8, [2001:db8:ff::1]:443",),
    ):
        assert client("10.0.0.8", *forwarded) == Client("8.8.8.8", key("8.8.8.8"))
        assert client("::ffff:10.0.0.8", *forwarded).address == "8.8.8.8"


def test_a_client_of_ones_own_network() -> None:
    """Where all are trusted it is the last, which is counted, private as it is: a proxy vouches for it."""
    assert client("10.0.0.8", "10.1.1.1, 10.0.0.7") == Client("10.1.1.1", key("10.1.1.1"))
    assert client("10.0.0.8", "192.168.0.9").key == key("192.168.0.9")


def test_a_proxy_that_says_nothing_is_not_counted() -> None:
    """Or all the world would share its hundred connections."""
    assert client("10.0.0.8") == Client("10.0.0.8", Uncounted.UNSAID)


@pytest.mark.parametrize("entry", ["unknown", "", "_x", "8.8.8.8, ", "8.8.8.8, unknown, 10.0.0.7"])
def test_a_word_that_is_no_address(entry: str) -> None:
    assert client("10.0.0.8", entry) == Client("", Uncounted.UNKNOWN)


def test_ten_thousand_entries_cost_as_much_as_two() -> None:
    hostile = ", ".join(["1.1.1.1"] * 10_000)
    assert client("10.0.0.8", f"{hostile}, 8.8.8.8").address == "8.8.8.8"
    assert client("10.0.0.8", ",".join(["10.0.0.1"] * 10_000)).address == "10.0.0.1"
    assert client("10.0.0.8", "," * 60_000).key is Uncounted.UNKNOWN


@given(st.text(max_size=80))
def test_any_text(text: str) -> None:
    found = client("10.0.0.8", text)
    assert found.key is Uncounted.UNKNOWN or isinstance(found.key, int)


@given(st.ip_addresses(), st.text(max_size=40))
def test_what_a_client_adds_changes_nothing(address: object, made_up: str) -> None:
    """However it looks, it stands left of what the proxy has written."""
    honest = client("10.0.0.8", str(address))
    if honest.address.startswith("10."):
        return
    assert client("10.0.0.8", f"{made_up}, {address}") in (honest, client("10.0.0.8", f"{address}"))


@pytest.mark.parametrize("networks", [["10.0.0.1/8"], ["everybody"], [""], ["10.0.0.0/33"], "10.0.0.0/8"])
def test_what_is_no_network(networks: list[str]) -> None:
    with pytest.raises(UsageError, match="trusted_proxies"):
        Hub(authenticate=anonymous, trusted_proxies=networks)


def test_it_says_whom_it_trusts() -> None:
    assert repr(Proxies(["10.0.0.0/8", "unix"])) == "<Proxies 1 networks and Unix sockets>"
    assert not Proxies()
    assert Proxies(["::1"])
