"""A conversation over real sockets: the same on every host (T1, W1)."""

from __future__ import annotations

import pytest

from tests.support.hosts import ADAPTERS, MOUNTED, Host
from tests.support.rawsocket import BINARY, CONT, TEXT, Refusal, frame
from tests.transport.conftest import Site


@pytest.fixture(params=[*ADAPTERS, *MOUNTED], ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Here each host, those with a framework in between as well."""
    found: Host = request.param
    return found


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_two_clients_talk(site: Site, secure: bool) -> None:
    """Connect, join, publish, get it pushed, read history, call, leave, and close."""
    await site.open(secure=secure)
    ann, bob = await site.client("ann"), await site.client("bob", rt=False)
    joined = await ann.join("log:a")
    assert joined["recoverable"] and joined["positioned"]
    await bob.join("log:a")
    first = await bob.call("publish", channel="log:a", data={"text": "hällo"})
    assert first == {}
    second = await ann.call("publish", channel="log:a", data=[1, None, 2.5])
    assert second == {"epoch": joined["epoch"], "offset": 2}
    for peer in (ann, bob):
        while len(peer.pushes) < 2:
            await peer.next_unit()
        pubs = [push["pub"] for push in peer.pushes]
        assert [pub["data"] for pub in pubs] == [{"text": "hällo"}, [1, None, 2.5]]
        assert [pub["offset"] for pub in pubs] == [1, 2]
        assert [pub["info"]["user"] for pub in pubs] == ["bob", "ann"]
    page = await bob.call("history", channel="log:a", limit=1, since={"epoch": joined["epoch"], "offset": 1})
    assert [pub["data"] for pub in page["publications"]] == [[1, None, 2.5]]
    assert await ann.echo("back") == "back"
    assert (await ann.call("rpc", method="fail"))["error"]["code"] == 400
    assert await ann.call("unsubscribe", channel="log:a") == {}
    await bob.call("publish", channel="log:a", data="only bob hears this")
    assert await ann.echo("nothing came in between") == "nothing came in between"
    assert len(ann.pushes) == 2
    left = await ann.leave(1000)
    assert (left.code, left.how) == (1000, "eof")


async def test_a_batch_of_units_is_one_frame(site: Site) -> None:
    """1.1: several units in one message, empty lines between them, are as many commands."""
    await site.open()
    peer = await site.peer()
    units = [
        peer.unit("connect", token="ann"),
        peer.unit("subscribe", channel="log:a"),
        peer.unit("publish", channel="log:a", data=1),
        peer.unit("rpc", method="echo", data=2),
    ]
    await peer.say("\n" + "\n\n".join(unit for _, unit in units) + "\n")
    for id, method in zip((id for id, _ in units), ("connect", "subscribe", "publish", "rpc"), strict=True):
        await peer.reply(id, method)


async def test_binary_is_the_same_as_text(site: Site) -> None:
    await site.open()
    ann = await site.client("ann")
    id, unit = ann.unit("rpc", method="echo", data="é" * 300)
    await ann.say(unit.encode())
    assert await ann.reply(id, "rpc") == {"data": "é" * 300}
    id, unit = ann.unit("rpc", method="echo", data="fragments")
    await ann.send(frame(unit[:9], BINARY, fin=False) + frame(unit[9:], CONT))
    assert await ann.reply(id, "rpc") == {"data": "fragments"}


async def test_what_is_pushed_is_text(site: Site) -> None:
    """1.1: the hub sends text, whatever it got."""
    await site.open()
    ann = await site.client("ann")
    _, unit = ann.unit("rpc", method="echo", data=1)
    await ann.say(unit.encode())
    assert (await ann.frame()).opcode == TEXT


async def test_messages_of_every_length_of_length(site: Site) -> None:
    """125, 126, 65535 and 65536 bytes are where the form of a frame's header changes, in both directions."""
    await site.open()
    ann = await site.client("ann", rt=False)  # one of ours would hear the longer ones in chunks
    overhead = len(ann.unit("rpc", method="echo", data="")[1])
    for size in (125, 126, 127, 128, 65535, 65536, 65537, 300_000):
        assert await ann.echo("x" * (size - overhead)) == "x" * (size - overhead)
    for size in (124, 125, 126, 127, 65534, 65535, 65536):
        text = "x" * (size - len('{"id":99,"rpc":{"data":""}}'))
        assert await ann.echo(text) == text


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        ("rtkit.v1.json", "rtkit.v1.json"),
        ("centrifuge-json", "centrifuge-json"),
        ("foreign", None),
        ("centrifuge-json, foreign , rtkit.v1.json", "rtkit.v1.json"),
        ("foreign, centrifuge-protobuf", None),
        ("RTKIT.V1.JSON", None),
        (", ".join(f"p{n}" for n in range(16)) + ", rtkit.v1.json", None),
    ],
)
async def test_subprotocols(site: Site, offered: str | None, chosen: str | None) -> None:
    """1.5: ours is preferred, none is fine, foreign ones are not echoed; of a long list the first 16 count."""
    await site.open()
    peer = await site.peer(headers={"Sec-WebSocket-Protocol": offered})
    assert peer.subprotocol == chosen
    await peer.connect_as("ann")


async def test_subprotocols_in_two_headers(site: Site) -> None:
    """RFC 6455, 11.3.4: the header may appear several times."""
    await site.open()
    peer = await site.peer(
        headers={"Sec-WebSocket-Protocol": "foreign", "sec-websocket-protocol": "rtkit.v1.json"}
    )
    assert peer.subprotocol == "rtkit.v1.json"


@pytest.mark.parametrize(
    "endpoint",
    ["", "ws", "ws/", "websocket", "connection/websocket", "ws?token=ann&x=%C3%A9", "ws?"],
)
async def test_endpoints(site: Site, endpoint: str) -> None:
    """1.5: the last segment of the path counts, a slash behind it and a query do not."""
    await site.open()
    peer = await site.peer(endpoint)
    await peer.connect_as("ann")


async def test_the_endpoint_deeper_down(site: Site) -> None:
    """Only the last segment counts where a framework may have cut the path; our own server knows where it is."""
    await site.open()
    if site.host.can.ours:
        with pytest.raises(Refusal) as refused:
            await site.peer("deeper/down/ws")
        assert refused.value.response.status == 404
    else:
        await (await site.peer("deeper/down/ws")).connect_as("ann")


@pytest.mark.parametrize("endpoint", ["wss", "ws/nothing", "ws%2Fx", "rea%64y/x"])
async def test_a_websocket_elsewhere_is_404(site: Site, endpoint: str) -> None:
    await site.open()
    with pytest.raises(Refusal) as refused:
        await site.peer(endpoint)
    assert refused.value.response.status == 404
    assert site.open_connections == 0


@pytest.mark.parametrize(("endpoint", "status"), [("ready", 204), ("client.js", 200)])
async def test_an_upgrade_of_what_is_no_websocket(site: Site, endpoint: str, status: int) -> None:
    """A server may ignore Upgrade (RFC 9110, 7.8), and ours does; an ASGI server has left HTTP by then."""
    await site.open()
    with pytest.raises(Refusal) as refused:
        await site.peer(endpoint)
    assert refused.value.response.status == (status if site.host.can.ours else 404)


async def test_the_browser_sdk(site: Site) -> None:
    """K3: served by the hub, as a module, revalidated by its tag, from any page."""
    served = await site.open()
    sock = await site.socket()
    path = served.path("client.js")
    script = await sock.get(path)
    assert script.status == 200
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["access-control-allow-origin"] == "*"
    assert script.headers["x-content-type-options"] == "nosniff"
    assert "export" in script.text
    tag = script.headers["etag"]
    for asked in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await sock.get(path, headers={"If-None-Match": asked})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (await sock.get(path, headers={"If-None-Match": '"other"'})).status == 200
    head = await sock.get(path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) == len(script.body)
    assert (await sock.get(path, method="POST", body=b"x")).status == 405


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://test.example"}, True),
        ({"Origin": "https://test.example"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
    ],
)
async def test_origins(site: Site, headers: dict[str, str | None], allowed: bool) -> None:
    """T10: the policy is on by default, and it is the same everywhere."""
    await site.open()
    if allowed:
        await (await site.peer(headers=headers)).connect_as("ann")
        return
    with pytest.raises(Refusal) as refused:
        await site.peer(headers=headers)
    assert refused.value.response.status == 403
    assert "origin" in refused.value.response.text
    assert site.open_connections == 0


async def test_plain_requests(site: Site) -> None:
    """1.6: readiness, and what is said to those who ask for something else."""
    served = await site.open()
    sock = await site.socket()
    # One connection for all of them: each answer leaves it in order.
    ready = await sock.get(served.path("ready"))
    assert (ready.status, ready.body) == (204, b"")
    assert ready.headers["access-control-allow-origin"] == "*"
    assert ready.headers["cache-control"] == "no-store"
    assert (await sock.get(served.path("ready"), method="HEAD")).status == 204
    assert (await sock.get(served.path("ready/"))).status == 204
    for endpoint in ("ws", "connection/websocket"):
        answer = await sock.get(served.path(endpoint))
        assert answer.status == 426
        assert answer.headers["upgrade"].lower() == "websocket"
        assert "proxy" in answer.text and "Upgrade" in answer.text
    head = await sock.get(served.path("ws"), method="HEAD")
    assert (head.status, head.body) == (426, b"")
    answer = await sock.get(served.path("nothing"))
    assert answer.status == 404
    assert "ready" in answer.text and answer.headers["content-type"].startswith("text/plain")
    head = await sock.get(served.path("nothing"), method="HEAD")
    assert (head.status, head.body) == (404, b"")
    for method in ("PUT", "DELETE", "PATCH"):
        answer = await sock.get(served.path("ready"), method=method)
        assert answer.status == 405
        assert "GET" in answer.headers["allow"]
    answer = await sock.get(served.path("ready"), method="OPTIONS")
    assert answer.status == 204
    assert "GET" in answer.headers["allow"]


async def test_a_body_that_nobody_wants(site: Site) -> None:
    """It is answered all the same, and the next request on the connection is understood."""
    served = await site.open()
    sock = await site.socket()
    assert (await sock.get(served.path("ready"), method="POST", body=b"x" * 1000)).status == 405
    again = sock if sock.how is None else await site.socket()
    assert (await again.get(served.path("ready"))).status == 204


async def test_pings_of_the_protocol_below_are_answered(site: Site) -> None:
    """RFC 6455, 5.5.2; with an empty payload and the longest one, also between fragments."""
    await site.open()
    ann = await site.client("ann")
    for payload in (b"", b"x", bytes(range(125))):
        await ann.send(frame(payload, 9))
        answer = await ann.frame()
        assert (answer.opcode, answer.payload) == (10, payload)
    id, unit = ann.unit("rpc", method="echo", data="whole")
    await ann.send(frame(unit[:5], fin=False) + frame(b"now", 9) + frame(unit[5:], CONT))
    answer = await ann.frame()
    assert (answer.opcode, answer.payload) == (10, b"now")
    assert await ann.reply(id, "rpc") == {"data": "whole"}
