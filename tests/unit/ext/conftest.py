"""What the tests of the HTTP API share: a hub with rooms of every sort, and somebody who has the key."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from rtkit import Context, Grant, History, Hub, anonymous
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.ext.http_api import HttpApi
from rtkit.hosting.endpoints import Request, Response
from rtkit.testing import ManualClock, TestHub

KEY = "correct-horse-battery-staple"
ALL = Grant("publish", "history")


@dataclass
class Said:
    text: str
    loud: bool = False


class Moved(msgspec.Struct, tag="moved"):
    x: int


class Named(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=2)


class Counted(TypedDict):
    count: int


def declare(hub: Hub[Any]) -> Hub[Any]:
    hub.rooms("kept:{x}", publishes=object, grant=ALL, history=History(100, ttl=600))
    hub.rooms("small:{x}", publishes=object, grant=ALL, history=History(2, ttl=600))
    hub.rooms("live:{x}", publishes=object, grant=ALL)
    hub.rooms("chat:{x}", publishes=(Said, Moved, Named, Counted), grant=ALL, history=History(100, ttl=600))
    slow = hub.rooms("slow:{x}", publishes=object, grant=ALL)

    @slow.on_join
    async def wait(ctx: Context[Any, Any]) -> None:
        await ctx.hub.state.wait()

    return hub


class Caller:
    """Somebody who has the key."""

    def __init__(self, api: HttpApi) -> None:
        self.api = api

    async def send(
        self, endpoint: str, body: bytes, *, method: str = "POST", **headers: str
    ) -> tuple[int, Any]:
        """Send a request as it is; the status, and the body as JSON, or text if it is none."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.api.handle(Request(method, endpoint, {"x-api-key": KEY, **named}), body)
        assert dict(response.headers)["content-length"] == str(len(response.body))
        return response.status, read(response)

    async def call(self, endpoint: str, **fields: Any) -> Any:
        """Call a command; the whole answer."""
        status, answer = await self.send(endpoint, json.dumps(fields).encode())
        assert status == 200, answer
        return answer

    async def result(self, endpoint: str, **fields: Any) -> Any:
        """Call a command that succeeds."""
        answer = await self.call(endpoint, **fields)
        assert list(answer) == ["result"], answer
        return answer["result"]

    async def error(self, endpoint: str, **fields: Any) -> tuple[int, str]:
        """Call a command that fails; its code and message."""
        answer = await self.call(endpoint, **fields)
        assert list(answer) == ["error"], answer
        assert list(answer["error"]) == ["code", "message"]
        return answer["error"]["code"], answer["error"]["message"]


def read(response: Response) -> Any:
    """The body of a response: JSON, or text."""
    kind = dict(response.headers)["content-type"]
    return json.loads(response.body) if kind == "application/json" else response.body.decode()


@dataclass
class World:
    """Two hubs of one cluster, and the API of the first.

    :ivar one: its hub under test; likewise *two*.
    """

    one: TestHub[Any]
    two: TestHub[Any]
    caller: Caller
    backend: MemoryBackend

    @property
    def hub(self) -> Hub[Any]:
        return self.one.hub

    @property
    def api(self) -> HttpApi:
        return self.caller.api


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = ManualClock()
    backend = MemoryBackend(clock=clock)
    one, two = (
        TestHub(declare(Hub(authenticate=anonymous, broker=MemoryBroker(backend))), clock=clock)
        for _ in range(2)
    )
    async with one, two:
        yield World(one, two, Caller(HttpApi(one.hub, key=KEY)), backend)


@pytest.fixture
async def caller(world: World) -> Caller:
    return world.caller


@pytest.fixture(autouse=True)
def no_key_is_logged(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Any:
    """Whatever happens; and an exception in the log fails a test that does not ask for ``errors``."""
    with caplog.at_level(logging.DEBUG):
        yield
    records = caplog.get_records("call")
    assert not [r for r in records if r.name.startswith("rtkit") and KEY in r.getMessage()]
    if "errors" not in request.fixturenames:
        assert not [r.getMessage() for r in records if r.levelno >= logging.ERROR]


@pytest.fixture
def errors() -> None:
    """Errors are expected in the log."""
