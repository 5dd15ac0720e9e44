"""Which web pages may connect (T10), and what a hub admits at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Hub, UsageError, anonymous
from rtkit.hub.address import Proxies
from rtkit.hub.origin import cookies_count, origin_allowed
from rtkit.transports import Handshake, HttpRequest, Refused
from tests.unit.hub.conftest import World


def ask(
    origin: str | None, host: str | None = "app.example", *, secure: bool | None = None, **more: str
) -> Handshake:
    headers = [(name.replace("_", "-"), value) for name, value in more.items()]
    if origin is not None:
        headers.append(("origin", origin))
    if host is not None:
        headers.append(("host", host))
    return Handshake(headers=headers, secure=secure)


@pytest.mark.parametrize(
    ("origin", "host", "secure", "fine"),
    [
        ("http://app.example", "app.example", None, True),
        ("https://app.example", "app.example", None, True),  # TLS may end at a proxy
        ("https://app.example", "app.example", True, True),
        ("http://app.example", "app.example", True, False),
        ("https://app.example:443", "app.example", None, True),
        ("https://app.example", "app.example:443", None, True),
        ("http://app.example", "app.example:80", None, True),
        ("http://app.example:8000", "app.example:8000", None, True),
        ("http://app.example:8000", "app.example", None, False),
        ("http://app.example", "app.example:8000", None, False),
        ("http://APP.example", "app.EXAMPLE", None, True),
        ("http://[::1]:8000", "[::1]:8000", None, True),
        ("http://127.0.0.1", "localhost", None, False),
        ("https://evil.example", "app.example", None, False),
        ("https://app.example.evil", "app.example", None, False),
        ("https://evil.app.example", "app.example", None, False),
        ("https://app.example@evil.example", "app.example", None, False),
        ("null", "app.example", None, False),
        ("", "app.example", None, False),
        ("file://", "app.example", None, False),
        ("chrome-extension://app.example", "app.example", None, False),
        ("ws://app.example", "app.example", None, False),
        ("https://", "app.example", None, False),
        ("https://app.example:99999", "app.example", None, False),
        ("https://app.example:x", "app.example", None, False),
        ("https://[", "app.example", None, False),
        ("https://app.example", "[", None, False),
        ("https://app.example", None, None, False),
    ],
)
def test_an_origin_must_be_our_own_page(
    origin: str, host: str | None, secure: bool | None, fine: bool
) -> None:
    """T10."""
    assert origin_allowed(ask(origin, host, secure=secure), ()) is fine


@pytest.mark.parametrize(
    ("allowed", "origin", "fine"),
    [
        (("https://shop.example",), "https://shop.example", True),
        (("https://shop.example/",), "https://shop.example", True),
        (("https://SHOP.example",), "https://shop.example", True),
        (("https://shop.example",), "http://shop.example", False),
        (("https://shop.example",), "https://shop.example:444", False),
        (("https://a.example", "https://b.example"), "https://b.example", True),
        (("*",), "https://anywhere.example", True),
        (("*",), "null", True),
    ],
)
def test_or_one_of_the_list(allowed: tuple[str, ...], origin: str, fine: bool) -> None:
    """T10."""
    assert origin_allowed(ask(origin), allowed) is fine


@pytest.mark.parametrize(
    ("site", "fine"),
    [(None, True), ("none", True), ("same-origin", True), ("same-site", False), ("cross-site", False)],
)
def test_without_an_origin(site: str | None, fine: bool) -> None:
    """T10: no browser page at all, unless the browser says otherwise."""
    more = {} if site is None else {"sec_fetch_site": site}
    assert origin_allowed(ask(None, **more), ()) is fine


def test_two_origins_are_none() -> None:
    """T10: a proxy and we might each read another one."""
    handshake = Handshake(
        headers=(
            ("origin", "https://app.example"),
            ("origin", "https://evil.example"),
            ("host", "app.example"),
        )
    )
    assert not origin_allowed(handshake, ())


PAGE = "https://app.example"


@pytest.mark.parametrize(
    ("peer", "forwarded", "origin", "fine"),
    [
        ("10.1.2.3", {"host": "app.example"}, PAGE, True),
        ("10.1.2.3", {"host": "app.example"}, "https://inner", False),
        ("10.1.2.3", {"host": "app.example:8443"}, "https://app.example:8443", True),
        ("10.1.2.3", {"host": "app.example:8443"}, PAGE, False),
        (
            "10.1.2.3",
            {"host": "app.example, inner.two"},
            PAGE,
            True,
        ),  # the first proxy said what it was asked for
        ("10.1.2.3", {"host": "app.example, inner.two"}, "https://inner.two", False),
        ("10.1.2.3", {"host": ""}, "https://inner", True),
        ("10.1.2.3", {}, "https://inner", True),
        ("10.1.2.3", {"host": "app.example", "proto": "https"}, PAGE, True),
        ("10.1.2.3", {"host": "app.example", "proto": "https"}, "http://app.example", False),
        ("10.1.2.3", {"host": "app.example", "proto": "HTTPS, http"}, "http://app.example", False),
        (
            "10.1.2.3",
            {"host": "app.example", "proto": "http"},
            PAGE,
            True,
        ),  # a proxy before it may have ended TLS
        ("10.1.2.3", {"proto": "wss"}, "http://inner", False),
        ("192.0.2.1", {"host": "app.example"}, PAGE, False),  # nobody knows who says so
        ("192.0.2.1", {"host": "app.example"}, "https://inner", True),
        ("192.0.2.1", {"proto": "https"}, "http://inner", True),
        ("", {"host": "app.example"}, PAGE, False),
    ],
)
def test_trusted_proxies_say_what_was_asked_for(
    peer: str, forwarded: dict[str, str], origin: str, fine: bool
) -> None:
    """T10: a proxy may have another name for us than pages have."""
    proxies = Proxies(["10.0.0.0/8"])
    headers = [("origin", origin), ("host", "inner")]
    headers += [(f"x-forwarded-{name}", value) for name, value in forwarded.items()]
    handshake = Handshake(headers=headers, address=peer)
    assert origin_allowed(handshake, (), proxies) is fine
    assert not origin_allowed(handshake, ()) or origin.endswith("inner")


async def test_behind_a_proxy_that_has_another_name_for_us(world: World) -> None:
    """T10: over all transports, for CORS and cookies too."""
    hub = world.hub(trusted_proxies=["10.0.0.0/8", "unix"])
    headers = (("origin", PAGE), ("host", "inner"), ("x-forwarded-host", "app.example"), ("cookie", "a=b"))
    for address in ("10.0.0.1", ""):
        hub.admit(Handshake("/rt/ws", headers, address=address))
    stranger = Handshake("/rt/ws", headers, address="9.0.0.1")
    with pytest.raises(Refused, match="origin"):
        hub.admit(stranger)
    trusted = Handshake("/rt/sse", headers, address="10.0.0.1")
    for handshake, status in ((trusted, 204), (stranger, 403)):
        answer: Any = await hub.answer(HttpRequest("OPTIONS", "sse", handshake, b""))
        assert answer.status == status
        assert (("access-control-allow-origin", PAGE) in answer.headers) is (status == 204)
    assert cookies_count(trusted, ("*",), hub.proxies)
    assert not cookies_count(stranger, ("*",), hub.proxies)


async def test_admission(world: World) -> None:
    """T10, L1: 403 for a page that may not; 503 while closing."""
    hub = world.hub(origins=["https://shop.example"])
    hub.admit(ask("https://shop.example"))
    hub.admit(ask("https://app.example"))
    with pytest.raises(Refused, match="may not connect") as caught:
        hub.admit(ask("https://evil.example"))
    assert caught.value.status == 403
    client = await world.join(hub, "ann", answers_close=False)
    closing = asyncio.create_task(hub.aclose())
    await world.clock.settle()
    with pytest.raises(Refused, match="draining") as caught:
        hub.admit(ask("https://shop.example"))
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    client.pipe.lose()
    await closing
    hub.admit(ask("https://shop.example"))


@pytest.mark.parametrize(
    "origins", [["shop.example"], ["https://"], ["ftp://x"], ["https://a.example/path"], [""]]
)
def test_what_is_no_origin(origins: list[str]) -> None:
    """Misuse: at construction, with the form it takes."""
    with pytest.raises(UsageError, match=r"an origin is scheme://host\[:port\], such as https://example.org"):
        Hub(authenticate=anonymous, origins=origins)


def test_a_string_of_origins() -> None:
    """Misuse: a string is a sequence of letters too."""
    with pytest.raises(UsageError, match=r"a list of origins, as in \['https://a.example'\]"):
        Hub(authenticate=anonymous, origins="https://a.example")
