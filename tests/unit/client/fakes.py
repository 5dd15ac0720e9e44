"""A scripted server in memory: a dialer whose wires end in plain lists. No sleeping, no sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from rtkit.client import Client, DialFailed, Policy, RoomClient, WireClosed, connect
from rtkit.testing.clock import ManualClock
from rtkit.wire import Command, decode_command, split

__all__ = ["Error", "FakeServer", "FakeWire", "pub", "running", "sub"]

JSON = dict[str, Any]


class Error(Exception):
    """Answer a command with an error."""

    def __init__(self, code: int, message: str = "no", **more: Any) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, **more}


class FakeWire:
    """A wire; the test is the other end of it."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.commands: list[Command] = []
        self.frames: list[bytes] = []
        self.pongs = 0
        self.closed: tuple[int, str] | None = None
        self.closed_by_client: tuple[int, str] | None = None
        self.stuck = False
        self._inbox: deque[bytes] = deque()
        self._changed = asyncio.Event()

    # -- the client's side

    async def send(self, frame: bytes) -> None:
        while self.stuck and self.closed is None:
            self._changed.clear()
            await self._changed.wait()
        if self.closed is not None:
            raise WireClosed(*self.closed)
        self.frames.append(frame)
        for unit in split(frame):
            if unit == b"{}":
                self.pongs += 1
                continue
            command = decode_command(unit)
            self.commands.append(command)
            self.server.handle(self, command)

    async def recv(self) -> bytes:
        while not self._inbox:
            if self.closed is not None:
                raise WireClosed(*self.closed)
            self._changed.clear()
            await self._changed.wait()
        return self._inbox.popleft()

    async def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed_by_client = (code, reason)
            self.cut(code, reason)

    # -- the test's side

    def push(self, **push: Any) -> None:
        self.say({"push": push})

    def say(self, *units: JSON) -> None:
        self._inbox.append(b"\n".join(json.dumps(unit).encode() for unit in units))
        self._changed.set()

    def reply(self, command: Command, **body: Any) -> None:
        self.say({"id": command.id, **body})

    def cut(self, code: int = 1006, reason: str = "") -> None:
        if self.closed is None:
            self.closed = (code, reason)
            self._changed.set()

    def of(self, method: str) -> list[Any]:
        """The bodies of all commands of this method, in the order they came."""
        return [body for c in self.commands if (body := getattr(c, method)) is not None]

    def last(self, method: str) -> Command:
        return [c for c in self.commands if getattr(c, method) is not None][-1]


METHODS = (
    *("connect", "subscribe", "unsubscribe", "publish", "rpc", "history", "refresh", "signal"),
    *("presence_update", "mark", "marks"),
)


class FakeServer:
    """A dialer, and what answers at its other end.

    ``on["publish"] = func`` answers a method: ``func(body)`` returns the result's fields, None for no answer
    yet, or raises :class:`Error`.
    """

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.wires: list[FakeWire] = []
        self.dials: list[tuple[str, Mapping[str, str]]] = []
        self.refuse: list[BaseException] = []
        self.hang = False
        self.hello: JSON = {"client": "c", "ping": 25, "pong": True, "rt": {"v": 1}}
        self.on: dict[str, Callable[[Any], JSON | None]] = {
            "connect": lambda body: {**self.hello, "client": f"c{len(self.wires)}"},
            "subscribe": lambda body: {},
            "unsubscribe": lambda body: {},
            "publish": lambda body: {},
            "rpc": lambda body: {},
            "history": lambda body: {},
            "refresh": lambda body: {},
            "signal": lambda body: {},
            "presence_update": lambda body: {},
            "mark": lambda body: {},
            "marks": lambda body: {},
        }

    async def dial(self, url: str, headers: Mapping[str, str]) -> FakeWire:
        self.dials.append((url, headers))
        if self.hang:
            await asyncio.Event().wait()
        if self.refuse:
            raise self.refuse.pop(0)
        wire = FakeWire(self)
        self.wires.append(wire)
        return wire

    @property
    def wire(self) -> FakeWire:
        return self.wires[-1]

    def handle(self, wire: FakeWire, command: Command) -> None:
        for method in METHODS:
            body = getattr(command, method)
            if body is not None:
                try:
                    result = self.on[method](body)
                except Error as error:
                    wire.reply(command, error=error.body)
                    return
                if result is not None:
                    wire.reply(command, **{method: result})

    def client(self, **options: Any) -> Client:
        options.setdefault("random", random.Random(7))
        return connect("ws://localhost/rt", dialer=self, clock=self.clock, **options)

    async def pass_(self, seconds: float = 0.0) -> None:
        await self.clock.advance(seconds)
        await self.clock.settle()


@contextlib.asynccontextmanager
async def running(server: FakeServer, **options: Any) -> AsyncIterator[Client]:
    async with server.client(**options) as client:
        yield client
    # Nothing is left behind.
    assert server.clock.timers == 0
    others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task() and "rtkit" in t.get_name()]
    assert not others


def pub(offset: int = 0, data: Any = None, **more: Any) -> JSON:
    """A publication; its data is its offset unless given."""
    out: JSON = {"data": offset if data is None else data, **more}
    if offset:
        out["offset"] = offset
    return out


def sub(epoch: str = "e", offset: int = 0, *pubs: JSON, **more: Any) -> JSON:
    """The result of joining a room with history."""
    out: JSON = {"recoverable": True, "epoch": epoch, "offset": offset, **more}
    if pubs:
        out["publications"] = list(pubs)
    return out


def take(room: RoomClient[Any]) -> list[Any]:
    """What waits in a room's queue, taken as iterating would: data of messages, and gaps."""
    out: list[Any] = []
    iterator = aiter(room)
    while True:
        step = anext(iterator)
        try:
            step.send(None)  # type: ignore[attr-defined]
        except StopIteration as found:
            out.append(getattr(found.value, "data", found.value))
        except StopAsyncIteration:
            return out
        else:
            step.close()  # type: ignore[attr-defined]
            return out


FAILED = DialFailed("refused")
POLICY = Policy()
