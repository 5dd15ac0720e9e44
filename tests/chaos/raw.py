"""A client of the wire that believes every word: what a foreign client of ours may be.

It knows nothing of rtkit's additions, so that a gap reaches it as ``recovered: false``, or by being put out of the
room. It checks no offset and asks for nothing twice: what the hub gets wrong, it gets wrong.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from rtkit import Position
from rtkit.client import RoomClient
from tests.support.checker import MemberLog

__all__ = ["RawListener"]


class _Lost(Exception):
    """Begin anew."""


class RawListener:
    """One room over one WebSocket, again and again.

    :param url: of the mounted hub.
    """

    room: RoomClient[Any] | None = None  # it does not send

    def __init__(self, url: str, log: MemberLog) -> None:
        self.log = log
        self.position: Position | None = None
        self._url = "ws" + url.removeprefix("http") + "/ws"
        self._id = 1
        self._connection: ClientConnection | None = None
        self._joined = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def join(self) -> None:
        await self._joined.wait()

    async def come_back(self) -> None:
        """Lose the connection."""
        if self._connection is not None:
            self._connection.transport.abort()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        while True:
            try:
                async with connect(self._url, open_timeout=3, close_timeout=1, proxy=None) as connection:
                    self._connection = connection
                    await connection.send('{"id":1,"connect":{}}')
                    await self._subscribe(connection)
                    async for frame in connection:
                        for line in frame.splitlines():
                            await self._take(connection, json.loads(line))
            except (OSError, TimeoutError, WebSocketException, _Lost):
                pass
            finally:
                self._connection = None
            await asyncio.sleep(0.05)  # it might be refused at once, again and again

    async def _subscribe(self, connection: ClientConnection) -> None:
        body: dict[str, Any] = {"channel": self.log.room}
        if self.position is not None:
            body |= {"recover": True, "epoch": self.position.epoch, "offset": self.position.offset}
        self._id += 1
        await connection.send(json.dumps({"id": self._id, "subscribe": body}))

    async def _take(self, connection: ClientConnection, unit: dict[str, Any]) -> None:
        if not unit:
            await connection.send("{}")  # a ping
        elif "error" in unit:
            raise _Lost(unit["error"])
        elif "subscribe" in unit:
            self._subscribed(unit["subscribe"])
        elif "push" in unit and "pub" in unit["push"]:
            self._message(unit["push"]["pub"])
        elif "push" in unit and "unsubscribe" in unit["push"]:
            assert unit["push"]["unsubscribe"]["code"] >= 2500, "for good"
            await self._subscribe(connection)

    def _subscribed(self, result: dict[str, Any]) -> None:
        epoch, publications = result["epoch"], result.get("publications", [])
        before = self.position
        if before is None:
            self.position = Position(epoch, result.get("offset", 0))
            self.log.joined(self.position)
            self._joined.set()
        elif result.get("recovered"):
            self.position = Position(epoch, before.offset)
            self.log.recovered(self.position)
        else:
            self.position = Position(epoch, result.get("offset", 0))
            self.log.unrecovered(self.position)
        for publication in publications:
            self._message(publication)

    def _message(self, publication: dict[str, Any]) -> None:
        assert self.position is not None
        self.position = Position(self.position.epoch, publication["offset"])
        self.log.message(self.position, str(publication["data"]).partition(" ")[0])
