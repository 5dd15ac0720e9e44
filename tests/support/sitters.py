"""Clients of the wire that sit in a room with presence, and write down each word they are told of it.

They are no SDK: they come back when and where the test says, with the token they were given, and ask for nothing that
the test does not ask for. They live in a simulation, or :class:`Outdoors`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

__all__ = ["ROOM", "Outdoors", "Seen", "Sitter", "Watcher"]

ROOM: Final = "team:red"

#: Between two attempts to get in somewhere.
_AGAIN: Final = 0.3


class Seen(NamedTuple):
    """Something that a watcher was told."""

    when: float
    what: Literal["join", "leave", "update"]
    user: str
    client: str


class Device(Protocol):
    """What a sitter runs on."""

    def spawn(self, coro: Coroutine[Any, Any, None], /) -> asyncio.Task[None]: ...


class Surroundings(Protocol):
    """A :class:`~rtkit.testing.simulation.Simulation` is one."""

    @property
    def now(self) -> float: ...

    def machine(self, name: str, /) -> Any: ...


class Outdoors:
    """The real world: this loop, and hubs at ports of this machine.

    :param ports: of the hubs, by their names.
    """

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.ports = ports

    @property
    def now(self) -> float:
        """Seconds."""
        return asyncio.get_running_loop().time()

    def machine(self, name: str) -> Device:
        """All of them are this one."""
        return self

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(coro)


@dataclass(eq=False)
class Sitter:
    """A member.

    :ivar client: its id, once it is in; likewise *resumed*, whether the last connection went on with its session.
    :ivar ids: all client ids it has had.
    :ivar said: the metas it has said, each with when that was acknowledged (None: never), in order.
    """

    sim: Surroundings
    name: str
    node: str

    def __post_init__(self) -> None:
        self.machine = self.sim.machine(self.name)
        self.client = ""
        self.token = ""
        self.resumed = False
        self.entered_at: float | None = None
        self.ids: list[str] = []
        self.said: list[tuple[dict[str, Any], float | None]] = []
        self._ids = itertools.count(10)
        self._connection: ClientConnection | None = None
        self._living: asyncio.Task[None] | None = None

    def come(self, node: str | None = None) -> None:
        """Get into the room, at another node if one is named."""
        self.node = node or self.node
        self._living = self.machine.spawn(self._live(self.node))

    def lose(self) -> None:
        """Lose the connection: no goodbye."""
        if self._living is not None:
            self._living.cancel()
            self._living = None
        if self._connection is not None:
            self._connection.transport.abort()
            self._connection = None
        self.entered_at = None

    async def leave(self) -> None:
        """Say goodbye."""
        assert self._connection is not None and self._living is not None
        await self._connection.send('{"bye":{}}')
        await self._living
        assert self._connection is None
        self._living = None

    @property
    def inside(self) -> bool:
        """Whether it was let in, and has not lost that connection itself."""
        return self.entered_at is not None

    async def say(self, meta: dict[str, Any]) -> None:
        """Replace its meta; what becomes of it shows in :attr:`said`."""
        connection = self._connection
        if connection is None or not self.inside:
            return
        self.said.append((meta, None))
        body = {"channel": ROOM, "meta": meta}
        try:
            await connection.send(json.dumps({"id": 1000 + len(self.said), "presence_update": body}))
        except WebSocketException:
            pass

    def _address(self, node: str) -> str:
        return f"127.0.0.1:{self.sim.ports[node]}" if isinstance(self.sim, Outdoors) else f"{node}:8000"

    async def _live(self, node: str) -> None:
        while True:
            try:
                async with connect(
                    f"ws://{self._address(node)}/rt/ws",
                    ping_interval=None,
                    compression=None,
                    proxy=None,
                    open_timeout=3,
                    close_timeout=1,
                ) as connection:
                    self._connection = connection
                    rt = {"v": 1, **({"resume": self.token} if self.token else {})}
                    body = {"token": self.name, "rt": rt}
                    await connection.send(json.dumps({"id": 1, "connect": body}))
                    async for frame in connection:
                        for line in frame.splitlines():
                            await self._take(connection, json.loads(line))
            except (OSError, TimeoutError, WebSocketException):
                pass
            if self._connection is not None:  # it was lost by itself: whoever wants it back says so
                self._connection = None
                return
            await asyncio.sleep(_AGAIN)

    async def _take(self, connection: ClientConnection, unit: dict[str, Any]) -> None:
        if not unit:
            await connection.send("{}")
        elif "error" in unit:
            raise AssertionError(f"{self.name}: {unit}")
        elif "connect" in unit:
            result = unit["connect"]
            self.resumed = result["rt"].get("resumed", False)
            self.client, self.token = result["client"], result["rt"].get("resume", "")
            if self.client not in self.ids:
                self.ids.append(self.client)
            await connection.send(json.dumps({"id": 2, "subscribe": {"channel": ROOM, **self._asks()}}))
        elif "subscribe" in unit:
            self._entered(unit["subscribe"])
            self.entered_at = self.sim.now
        elif unit.get("id", 0) > 1000:
            number = unit["id"] - 1001
            self.said[number] = self.said[number][0], self.sim.now
        elif "push" in unit:
            self._told(unit["push"])

    def _asks(self) -> dict[str, Any]:
        return {}

    def _entered(self, result: dict[str, Any]) -> None:
        pass

    def _told(self, push: dict[str, Any]) -> None:
        pass


class Watcher(Sitter):
    """One that is told of the others.

    :ivar seen: all changes, in order. Who was there when it came has joined then.
    :ivar members: who is there, as it was told: their metas by their ids.
    :ivar frames: when each frame came.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[Seen] = []
        self.members: dict[str, dict[str, Any]] = {}
        self.users: dict[str, str] = {}
        self.frames: list[float] = []
        self.wrong: list[str] = []
        self._v = 0

    def of(self, client: str) -> list[Seen]:
        """What it was told of one client, but for updates."""
        return [each for each in self.seen if each.client == client and each.what != "update"]

    def _asks(self) -> dict[str, Any]:
        return {"presence": True}

    def _entered(self, result: dict[str, Any]) -> None:
        self._whole(result["presence"])

    def _whole(self, body: dict[str, Any]) -> None:
        self._v = body.get("v", 0)
        now = {each["client"]: each for each in body["members"]}
        for client in self.members.keys() - now.keys():
            self._gone({"client": client, "user": self.users[client]})
        for client, each in now.items():
            if client not in self.members:
                self._there("join", each)
            self.members[client] = each.get("meta", {})

    def _told(self, push: dict[str, Any]) -> None:
        body = push["presence"]
        self.frames.append(self.sim.now)
        if "members" in body:
            self._whole(body)
            return
        if body["v"] != self._v + 1:
            self.wrong.append(f"frame {body['v']} after {self._v}")
        self._v = body["v"]
        for each in body.get("joins", ()):
            if each["client"] in self.members:
                self.wrong.append(f"{each['user']} joins and is there")
            self._there("join", each)
        for each in body.get("updates", ()):
            if each["client"] not in self.members:
                self.wrong.append(f"{each['user']} changes and is not there")
            elif self.members[each["client"]] == each.get("meta", {}):
                self.wrong.append(f"{each['user']} changes nothing")
            self._there("update", each)
        for each in body.get("leaves", ()):
            if each["client"] not in self.members:
                self.wrong.append(f"{each['user']} leaves and is not there")
            self._gone(each)

    def _there(self, what: Literal["join", "update"], each: dict[str, Any]) -> None:
        self.members[each["client"]] = each.get("meta", {})
        self.users[each["client"]] = each["user"]
        self.seen.append(Seen(self.sim.now, what, each["user"], each["client"]))

    def _gone(self, each: dict[str, Any]) -> None:
        self.members.pop(each["client"], None)
        self.seen.append(Seen(self.sim.now, "leave", each["user"], each["client"]))
