"""Going on with the session of the connection before (C4): the token, when it is shown, and when it is dropped."""

from __future__ import annotations

from typing import Any

import pytest

from rtkit.errors import ConnectionClosed
from tests.unit.client.fakes import FakeServer, running, take


def giving(server: FakeServer) -> list[str]:
    """Have the server give tokens; what it is shown is listed."""
    shown: list[str] = []

    def connect(body: Any) -> dict[str, Any]:
        shown.append(body.rt.resume)
        n = len(server.wires)
        rt: dict[str, Any] = {"v": 1, "resume": f"token{n}", "grace": 20.0}
        if body.rt.resume:
            rt["resumed"] = True
        return {**server.hello, "client": "c", "rt": rt}

    server.on["connect"] = connect
    return shown


async def test_the_newest_token_is_shown_with_the_next_connection() -> None:
    server = FakeServer()
    shown = giving(server)
    async with running(server) as client:
        assert not client.resumed
        for n in range(1, 4):
            server.wire.cut()
            await server.pass_(20)
            assert client.state == "connected"
            assert client.resumed
            assert shown[-1] == f"token{n}"
            assert client.client_id == "c"
    assert shown == ["", "token1", "token2", "token3"]


async def test_rooms_are_joined_again_as_after_any_other_interruption() -> None:
    server = FakeServer()
    giving(server)
    server.on["subscribe"] = lambda body: {"recoverable": True, "epoch": "e", "offset": 4, "recovered": True}
    async with running(server) as client:
        room = client.join("r")
        await room
        server.wire.cut()
        await server.pass_(1)
        assert client.resumed
        (again,) = server.wire.of("subscribe")
        assert (again.recover, again.offset, again.epoch) == (True, 4, "e")
        assert take(room) == []


async def test_an_attempt_that_fails_does_not_cost_the_token() -> None:
    server = FakeServer()
    shown = giving(server)
    async with running(server) as client:
        server.refuse = [OSError("away"), OSError("away")]
        server.wire.cut()
        await server.pass_(10)
        assert client.state == "connected"
        assert shown == ["", "token1"]


async def test_who_was_replaced_begins_a_session_of_its_own() -> None:
    """Two that share a token would push each other out for ever."""
    server = FakeServer()
    shown = giving(server)
    async with running(server) as client:
        server.wire.cut(4000, "replaced")
        await server.pass_(1)
        assert client.state == "connected"
        assert not client.resumed
        assert shown == ["", ""]
        server.wire.push(disconnect={"code": 4000, "reason": "replaced"})
        server.wire.cut(1006)
        await server.pass_(5)
        assert client.state == "connected"
        assert shown == ["", "", ""]
        server.wire.cut()
        await server.pass_(20)
        assert shown[3] == "token3"
        assert client.resumed
        server.wire.cut(4000, "replaced")
        await server.pass_(20)
        assert client.state == "connected"
        assert not client.resumed


async def test_a_server_that_gives_no_token_is_shown_none() -> None:
    server = FakeServer()
    shown = giving(server)
    async with running(server) as client:
        server.on["connect"] = lambda body: shown.append(body.rt.resume) or {"client": "d", "ping": 25}
        for _ in range(2):
            server.wire.cut()
            await server.pass_(1)
            assert client.state == "connected"
            assert not client.resumed
        assert shown == ["", "token1", ""]
        assert client.client_id == "d"


async def test_a_token_is_in_no_text() -> None:
    server = FakeServer()
    giving(server)
    async with running(server) as client:
        server.wire.cut(3503, "enough")
        await server.clock.settle()
        assert "token" not in repr(client) + repr(client._supervisor) + client.statistics().last_failure
        with pytest.raises(ConnectionClosed) as closed:
            await client.call(name="x")
        assert "token" not in str(closed.value)
    assert client._supervisor._resume == ""
