"""``hub.wrap(app, "/rt")``: two applications as one, and everything that is wrong with a prefix."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from rtkit import Grant, Hub, anonymous
from rtkit.client import connect
from rtkit.errors import UsageError
from tests.support.rawsocket import Peer
from tests.support.servers import serve_asgi
from tests.transport.conftest import until


class App:
    """An application with a lifespan that writes down what it is asked.

    :param lifespan: what it does about it: ``complete``, ``failed``, ``raises``, ``returns``, ``breaks`` (at shutdown).
    """

    def __init__(self, hub: Hub[Any], lifespan: str = "complete") -> None:
        self.hub = hub
        self.kind = lifespan
        self.log: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            self.log.append(scope["path"])
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": scope.get("root_path", "").encode()})
            else:
                await receive()
                await send({"type": "websocket.close"})
            return
        if self.kind == "raises":
            raise ValueError("lifespan? not here")
        if self.kind == "returns":
            return
        assert (await receive())["type"] == "lifespan.startup"
        self.log.append(f"startup, the hub runs: {self.hub.running}")
        scope["state"]["pool"] = "open"
        if self.kind == "failed":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.log.append(f"shutdown, the hub runs: {self.hub.running}")
        if self.kind == "breaks":
            raise ZeroDivisionError
        await send({"type": "lifespan.shutdown.complete"})


@pytest.fixture
def hub() -> Hub[Any]:
    hub = Hub(authenticate=anonymous)
    hub.rooms("lobby", publishes=object, grant=Grant())
    return hub


async def test_what_is_below_the_prefix_is_the_hubs(hub: Hub[Any]) -> None:
    app = App(hub)
    async with serve_asgi(hub.wrap(app, "/a/rt"), lifespan="on") as port, httpx2.AsyncClient() as http:
        base = f"http://127.0.0.1:{port}"
        for path in ("/", "/a", "/a/rtx", "/rt/ready", "/a/r", "/a/rt%2Fready"):
            response = await http.get(base + path)
            hubs = "%2F" in path  # servers decode paths before anybody is asked
            assert (response.status_code == 200) is not hubs, path
        assert (await http.get(f"{base}/a/rt/ready")).status_code == 204
        for path in ("/a/rt", "/a/rt/", "/a/rt/ws"):
            ws = await Peer.connect(port, path)
            await ws.connect_as("ann")
            ws.close()
        async with connect(f"{base}/a/rt"):
            pass
    assert [each for each in app.log if each.startswith("/")] == ["/", "/a", "/a/rtx", "/rt/ready", "/a/r"]


async def test_below_a_root_path(hub: Hub[Any]) -> None:
    """uvicorn puts its ``--root-path`` before the path as well; others do not. The application sees what it would."""
    app = App(hub)
    async with (
        serve_asgi(hub.wrap(app, "/rt"), lifespan="on", root_path="/api") as port,
        httpx2.AsyncClient() as http,
    ):
        assert (await http.get(f"http://127.0.0.1:{port}/rt/ready")).status_code == 204
        assert (await http.get(f"http://127.0.0.1:{port}/other")).text == "/api"
    assert "/api/other" in app.log


@pytest.mark.parametrize(
    ("path", "root_path", "endpoint"),
    [
        ("/rt/ready", "", "ready"),
        ("/rt/ready", "/api", "ready"),  # hypercorn
        ("/api/rt/ready", "/api", "ready"),
        ("/api/rt/ready", "/api/", "ready"),
        ("/rt/ready", "/rt", None),  # an application below /rt that has nothing at /ready of its own
    ],
)
async def test_paths_and_root_paths(hub: Hub[Any], path: str, root_path: str, endpoint: str | None) -> None:
    app = App(hub)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "root_path": root_path, "headers": []}
    await hub.wrap(app, "/rt")(scope, lambda: asyncio.sleep(0, {"type": "http.request"}), send)
    assert (sent[0]["status"] == 204) is (endpoint is not None)
    assert scope["root_path"] == root_path, "the server's scope is its own"


async def test_the_lifespan_is_boths(hub: Hub[Any]) -> None:
    """The application starts before the hub and ends after it: handlers may use what it has opened (L1)."""
    app = App(hub)
    async with serve_asgi(hub.wrap(app, "/rt"), lifespan="on"):
        assert hub.running
    assert app.log == ["startup, the hub runs: False", "shutdown, the hub runs: False"]


@pytest.mark.parametrize("kind", ["raises", "returns"])
async def test_an_application_without_a_lifespan(hub: Hub[Any], kind: str) -> None:
    """As Django's; ``lifespan=on`` of uvicorn would not start it."""
    async with serve_asgi(hub.wrap(App(hub, kind), "/rt"), lifespan="on") as port:
        assert hub.running
        async with connect(f"http://127.0.0.1:{port}/rt"):
            pass
    assert not hub.running


async def test_an_application_that_cannot_start(hub: Hub[Any], caplog: pytest.LogCaptureFixture) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(RuntimeError, match="lifespan startup failed"):
        async with serve_asgi(hub.wrap(App(hub, "failed"), "/rt"), lifespan="on"):
            pytest.fail("must not get here")
    assert "no database" in caplog.text
    assert not hub.running
    await until(lambda: asyncio.all_tasks() == before)


async def test_a_hub_that_cannot_start(caplog: pytest.LogCaptureFixture) -> None:
    """The application is shut down again, and the server told."""
    hub: Hub[Any] = Hub(authenticate=anonymous, broker="nosuch://")
    app = App(hub)
    with pytest.raises(RuntimeError, match="lifespan startup failed"):
        async with serve_asgi(hub.wrap(app, "/rt"), lifespan="on"):
            pytest.fail("must not get here")
    assert "nosuch" in caplog.text
    assert app.log == ["startup, the hub runs: False", "shutdown, the hub runs: False"]


async def test_an_application_that_breaks_at_the_end(hub: Hub[Any], caplog: pytest.LogCaptureFixture) -> None:
    before = asyncio.all_tasks()
    async with serve_asgi(hub.wrap(App(hub, "breaks"), "/rt"), lifespan="on"):
        pass
    assert "ZeroDivisionError" in caplog.text
    assert not hub.running
    assert asyncio.all_tasks() == before


async def test_the_state_of_the_lifespan_arrives(hub: Hub[Any]) -> None:
    """What the application puts into the lifespan's state is what its requests find, and the hub's credentials too."""
    found: list[Any] = []

    async def authenticate(credentials: Any) -> Any:
        found.append(credentials.scope["state"]["pool"])
        return await anonymous(credentials)

    hub = Hub(authenticate=authenticate)
    async with (
        serve_asgi(hub.wrap(App(hub), "/rt"), lifespan="on") as port,
        connect(f"http://127.0.0.1:{port}/rt"),
    ):
        pass
    assert found == ["open"]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "/",
        "rt",
        "/rt/",
        "//rt",
        "/rt//x",
        "/r t",
        "/rt?x",
        "/rt#x",
        "/%72t",
        "/{room}",
        "/rt/..",
        "/./rt",
        "/rt\n",
        "/réel",
        "/rt\x00",
        "/a\\b",
        None,
        b"/rt",
    ],
)
def test_a_prefix_with_odd_characters(hub: Hub[Any], prefix: Any) -> None:
    """One error, with the offending value and what would do, for every host that takes a prefix."""
    from aiohttp import web

    with pytest.raises(UsageError, match="such as '/rt'") as error:
        hub.wrap(App(hub), prefix)
    assert repr(prefix) in str(error.value)
    with pytest.raises(UsageError, match="such as '/rt'"):
        hub.add_to(web.Application(), prefix)


def test_what_is_no_application(hub: Hub[Any]) -> None:
    with pytest.raises(UsageError, match="ASGI application"):
        hub.wrap("app", "/rt")  # type: ignore[arg-type]


async def test_a_hub_mounted_twice(hub: Hub[Any]) -> None:
    """One hub at two places is one hub: started once, closed once, and its rooms are the same."""
    twice = hub.wrap(hub.wrap(App(hub), "/one"), "/two")
    async with serve_asgi(twice, lifespan="on") as port:
        base = f"http://127.0.0.1:{port}"
        async with (
            connect(f"{base}/one") as ann,
            connect(f"{base}/two") as bob,
            ann.join("lobby") as hers,
            bob.join("lobby") as his,
        ):
            await hub.publish("lobby", "hello")
            assert (await anext(hers)).data == (await anext(his)).data == "hello"
            assert hub.statistics().connections == 2
    assert not hub.running
