"""Tokens: where they come from, what happens when they expire, refreshing in band."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rtkit.client import Client
from rtkit.errors import ConnectionClosed
from tests.unit.client.fakes import Error, FakeServer, running


class Tokens:
    """A token function that counts."""

    def __init__(self) -> None:
        self.count = 0
        self.fail: list[BaseException] = []

    async def __call__(self) -> str | None:
        if self.fail:
            raise self.fail.pop(0)
        self.count += 1
        return f"t{self.count}"


def expiring(server: FakeServer, refuse: set[str] | None = None) -> None:
    def connect(body: Any) -> Any:
        if refuse is None or body.token in refuse:
            asyncio.get_running_loop().call_soon(server.wire.cut, 3005, "expired")  # as a hub does
            raise Error(109, "token expired")
        return server.hello

    server.on["connect"] = connect


async def test_the_function_is_asked_for_each_connection() -> None:
    server, tokens = FakeServer(), Tokens()
    async with running(server, token=tokens):
        server.wire.cut()
        await server.pass_(1)
        assert [w.of("connect")[0].token for w in server.wires] == ["t1", "t2"]


async def test_none_is_no_token() -> None:
    async def none() -> None:
        return None

    server = FakeServer()
    async with running(server, token=none):
        assert server.wire.of("connect")[0].token == ""


async def test_an_expired_token_is_renewed_at_once_but_only_once() -> None:
    server, tokens = FakeServer(), Tokens()
    expiring(server, {"t1"})
    async with running(server, token=tokens) as client:
        assert [w.of("connect")[0].token for w in server.wires] == ["t1", "t2"]
        assert server.clock.monotonic() == 1000.0
        expiring(server)
        server.wire.cut(3005, "expired")
        await server.pass_(1)
        assert client.state == "waiting"
        assert len(server.wires) == 4
        expiring(server, set())
        await server.pass_(5)
        assert client.state == "connected"


async def test_an_expired_fixed_token_is_the_end() -> None:
    server = FakeServer()
    async with running(server, token="t") as client:
        expiring(server)
        server.wire.cut(3005, "expired")
        await server.pass_(1)
        assert client.state == "closed"
        assert client.close_code == 3500
        assert "async function" in (client.close_reason or "")


async def test_a_function_that_fails_is_asked_again() -> None:
    server, tokens = FakeServer(), Tokens()
    tokens.fail = [RuntimeError("token service away")]
    async with running(server, token=tokens, wait=False) as client:
        await server.clock.settle()
        assert client.state == "waiting"
        assert "away" in client.statistics().last_failure
        await server.pass_(1)
        assert client.state == "connected"


async def test_a_function_whose_work_was_cancelled_has_failed_and_is_asked_again() -> None:
    """Another part of the application may give up on what they share: the client was not meant."""
    server, tokens = FakeServer(), Tokens()
    tokens.fail = [asyncio.CancelledError()]
    async with running(server, token=tokens, wait=False) as client:
        await server.clock.settle()
        assert client.state == "waiting"
        assert "was cancelled" in client.statistics().last_failure
        await server.pass_(1)
        assert client.state == "connected"


async def test_a_refresh_whose_work_was_cancelled_is_tried_again() -> None:
    server, tokens = FakeServer(), Tokens()
    server.hello.update(expires=True, ttl=20)
    async with running(server, token=tokens):
        tokens.fail = [asyncio.CancelledError()]
        await server.pass_(18)
        assert [refresh.token for refresh in server.wire.of("refresh")] == ["t2"]


async def test_closing_while_the_function_works_is_no_failure_of_its() -> None:
    server = FakeServer()
    ended: list[BaseException] = []

    async def token() -> str:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            ended.append(error)
            raise
        raise AssertionError

    async with running(server, token=token, wait=False) as client:
        await server.pass_(1)
    assert [type(error) for error in ended] == [asyncio.CancelledError]
    assert client.statistics().last_failure == ""


async def test_a_function_that_takes_too_long_has_failed_and_is_asked_again() -> None:
    server, tokens = FakeServer(), Tokens()
    hangs = [True]

    async def token() -> str | None:
        if hangs.pop() if hangs else False:
            await asyncio.Event().wait()
        return await tokens()

    async with running(server, token=token, wait=False) as client:
        await server.pass_(9.9)
        assert client.state == "connecting"
        await server.pass_(0.1)
        assert client.state == "waiting"
        assert "too long" in client.statistics().last_failure
        await server.pass_(1)
        assert client.state == "connected"


async def test_a_function_may_close_the_client_and_nothing_is_opened_then() -> None:
    server = FakeServer()
    clients: list[Client] = []

    async def token() -> str:
        if clients:
            await clients[0].aclose()  # the user has logged out
        return "t"

    async with running(server, token=token) as client:
        clients.append(client)
        server.wire.cut()
        await server.pass_(5)
        assert client.state == "closed"
        assert len(server.dials) == 1


def not_async() -> str:
    return "t"


async def not_a_string() -> int:
    return 3


async def logged_out() -> str:
    raise ConnectionClosed(3500, "logged out")


async def surrogate() -> str:
    return "\ud800"


@pytest.mark.parametrize(
    "token, why",
    [
        (surrogate, "surrogate"),
        (not_async, "async function"),
        (not_a_string, "string or None"),
        (logged_out, "logged out"),
    ],
)
async def test_functions_that_end_it(token: Callable[[], Awaitable[str]], why: str) -> None:
    with pytest.raises(ConnectionClosed, match=why):
        async with FakeServer().client(token=token):
            pass


# -- refreshing


@pytest.mark.parametrize("ttl, at", [(100, 90), (20, 16), (5, 4)])
async def test_refreshed_before_the_end_again_and_again(ttl: int, at: int) -> None:
    server, tokens = FakeServer(), Tokens()
    server.hello |= {"expires": True, "ttl": ttl, "ping": 0}
    server.on["refresh"] = lambda body: {"expires": True, "ttl": ttl}
    async with running(server, token=tokens):
        await server.pass_(at - 0.1)
        assert server.wire.of("refresh") == []
        await server.pass_(0.1)
        assert [b.token for b in server.wire.of("refresh")] == ["t2"]
        await server.pass_(at)
        assert [b.token for b in server.wire.of("refresh")] == ["t2", "t3"]
        server.on["refresh"] = lambda body: {}
        await server.pass_(10 * at)
        assert len(server.wire.of("refresh")) == 3, "it does not expire any more"


async def test_a_fixed_token_has_nothing_to_refresh() -> None:
    server = FakeServer()
    server.hello |= {"expires": True, "ttl": 10}
    async with running(server, token="t"):
        await server.pass_(30)
        assert server.wire.of("refresh") == []


async def test_a_loss_ends_the_old_refresh() -> None:
    server, tokens = FakeServer(), Tokens()
    server.hello |= {"expires": True, "ttl": 10, "ping": 0}
    server.on["refresh"] = lambda body: None
    async with running(server, token=tokens):
        await server.pass_(8)
        assert len(server.wire.of("refresh")) == 1
        server.wire.cut()
        await server.pass_(1)
        assert server.wire.of("refresh") == []
        await server.pass_(8)
        assert len(server.wire.of("refresh")) == 1


async def test_refusals() -> None:
    server, tokens = FakeServer(), Tokens()
    server.hello |= {"expires": True, "ttl": 10, "ping": 0}
    errors = [Error(109), Error(100, temporary=True, retry_after=3), Error(103, "another user")]

    def refuse(body: Any) -> Any:
        raise errors.pop(0)

    server.on["refresh"] = refuse
    async with running(server, token=tokens) as client:
        await server.pass_(8)
        tokens.fail = [OSError("token service away")]
        await server.pass_(60)
        assert len(server.wire.of("refresh")) == 3
        assert errors == []
        assert client.state == "connected", "the server decides"


async def test_the_function_may_have_none_any_more() -> None:
    server = FakeServer()
    server.hello |= {"expires": True, "ttl": 10, "ping": 0}
    tokens = iter(["t", None])

    async def token() -> str | None:
        return next(tokens)

    async with running(server, token=token):
        await server.pass_(100)
        assert server.wire.of("refresh") == []


async def test_the_server_may_ask_for_it() -> None:
    server, tokens = FakeServer(), Tokens()
    async with running(server, token=tokens):
        server.wire.push(refresh={"expires": True, "ttl": 0})
        await server.clock.settle()
        assert len(server.wire.of("refresh")) == 1
        server.wire.push(refresh={})
        await server.clock.settle()
        assert len(server.wire.of("refresh")) == 1


async def test_a_refresh_goes_before_what_is_held_back() -> None:
    server, tokens = FakeServer(), Tokens()
    server.hello["rt"] = {"v": 1, "limits": {"rate": 1, "burst": 4}}
    async with running(server, token=tokens) as client:
        calls = [asyncio.create_task(client.call(name="x")) for _ in range(10)]
        await server.clock.settle()
        assert len(server.wire.of("rpc")) < 10
        server.wire.push(refresh={"expires": True, "ttl": 0})
        await server.clock.settle()
        assert len(server.wire.of("refresh")) == 1
        await server.pass_(20)
        await asyncio.gather(*calls)


def test_reprs_hide_tokens() -> None:
    from rtkit.client.tokens import TokenSource

    assert "secret" not in repr(TokenSource("secret"))
    assert "function" in repr(TokenSource(Tokens()))
    assert not TokenSource(None)
