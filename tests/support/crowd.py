"""Clients by hand that do what an SDK does when it is sent away: wait, come back elsewhere, resume and recover.

A :class:`Traveller` notes what it was told, when it arrived where, and which messages it got, so that a test can say
that none was lost or came twice. Many of them cost much less than as many SDKs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Final

from tests.support.rawsession import PollSession, StreamSession
from tests.support.rawsocket import CLOSE, TEXT, Ended, Peer, Refusal, Units, frame

__all__ = ["KINDS", "Traveller"]

KINDS: Final = ("websocket", "sse", "poll")


class _Peer(Peer):
    """To whom a close is an end like another."""

    async def message(self) -> str:
        got = await self.frame()
        if got.opcode == CLOSE:
            await self.send(frame(got.payload, CLOSE))
            raise Ended("eof", b"")
        assert got.opcode == TEXT
        return got.payload.decode()


class _TurnedAway(Exception):
    """A WebSocket that was not let in: it is accepted first, or a browser could not be told when to come back."""

    def __init__(self, goodbye: dict[str, Any]) -> None:
        super().__init__(goodbye)
        self.window = goodbye["rt"]["min"], goodbye["rt"]["max"]


class Traveller:
    """One client, in the rooms *log* (which it checks) and *others*.

    :param kind: of transport.
    :param where: the port to connect to, asked for each time.
    :ivar client: its id.
    :ivar arrivals: of each connection the time, by the loop's clock, the port, and whether it resumed its session.
    :ivar goodbyes: of each connection that it was sent away from the time, the code, and the window.
    :ivar set_out: when it sets out after each goodbye: some time within the window, by lot.
    :ivar turned_away: how often it was refused.
    :ivar seen: messages, in the order in which they came.
    :ivar faults: what must not be: gaps, holes, errors.
    """

    def __init__(
        self, user: str, kind: str, where: Callable[[], int], *, log: str, others: tuple[str, ...] = ()
    ) -> None:
        self.user = user
        self.kind = kind
        self.client = ""
        self.arrivals: list[tuple[float, int, bool]] = []
        self.goodbyes: list[tuple[float, int, tuple[float, float] | None]] = []
        self.set_out: list[float] = []
        self.turned_away = 0
        self.seen: list[Any] = []
        self.faults: list[str] = []
        self.inside = False
        self._where = where
        self._log = log
        self._others = others
        self._resume = ""
        self._epoch = ""
        self._offset = -1
        self._window: tuple[float, float] | None = None
        self._code = 0

    async def travel(self) -> None:
        """Come, and come back, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            port = self._where()
            self._window, self._code = None, 0
            try:
                peer = await self._open(port)
                try:
                    await self._stay(peer, port)
                finally:
                    self.inside = False
                    peer.close()
            except Refusal as refused:
                self.turned_away += 1
                if refused.response.status != 503:
                    self.faults.append(f"refused with {refused.response}")
                later = float(refused.response.headers.get("retry-after", "1"))
                self._window = (later, 1.5 * later)
            except _TurnedAway as turned:
                self.turned_away += 1
                self._window = turned.window
            except (Ended, ConnectionError, TimeoutError):
                if self._code:
                    self.goodbyes.append((loop.time(), self._code, self._window))
                elif self.arrivals and self.arrivals[-1][1] == port:
                    self.faults.append("cut off without a word")
            low, high = self._window or (0.2, 1.0)
            wait = random.uniform(low, high)
            if self._code:
                self.set_out.append(loop.time() + wait)
            await asyncio.sleep(wait)

    async def _open(self, port: int) -> Units:
        if self.kind == "websocket":
            return await _Peer.connect(port, "/rt/ws")
        return StreamSession(port) if self.kind == "sse" else PollSession(port)

    async def _stay(self, peer: Units, port: int) -> None:
        hello = {"v": 1, "resume": self._resume} if self._resume else {"v": 1}
        try:
            result = await peer.call("connect", token=self.user, rt=hello)
        except Ended:
            for push in peer.pushes:
                if "disconnect" in push and "rt" in push["disconnect"]:
                    raise _TurnedAway(push["disconnect"]) from None
            raise
        if "error" in result:
            raise ConnectionError(result["error"])
        if not isinstance(peer, Peer):
            peer.session = result["session"]  # type: ignore[attr-defined]
        resumed = bool(result["rt"].get("resumed"))
        self.arrivals.append((asyncio.get_running_loop().time(), port, resumed))
        self._resume = result["rt"]["resume"]
        if self.client and result["client"] != self.client:
            self.faults.append("it is another client now")
        self.client = result["client"]
        asked = {await self._join(peer, room): room for room in (self._log, *self._others)}
        while True:
            unit = await peer.next_unit()
            if not unit:
                with contextlib.suppress(AssertionError):  # 410: the goodbye is on its way down
                    await peer.say("{}")
            elif "push" in unit:
                self._pushed(unit["push"])
            elif unit.get("id") in asked:
                room = asked.pop(unit["id"])
                if "error" in unit:
                    self.faults.append(f"room {room}: {unit['error']}")
                elif room == self._log:
                    self._joined(unit["subscribe"])
                self.inside = not asked

    async def _join(self, peer: Units, room: str) -> int:
        body: dict[str, Any] = {"channel": room}
        if room == self._log and self._offset >= 0:
            body |= {"recover": True, "epoch": self._epoch, "offset": self._offset}
        return await peer.ask("subscribe", **body)

    def _joined(self, result: dict[str, Any]) -> None:
        if "gap" in result:
            self.faults.append(f"a gap: {result['gap']}")
        publications = result.get("publications", ())
        if self._offset < 0:
            self._offset = result.get("offset", 0)
        for publication in publications:
            self._message(publication)
        self._epoch = result["epoch"]

    def _pushed(self, push: dict[str, Any]) -> None:
        if "disconnect" in push:
            goodbye = push["disconnect"]
            self._code = goodbye["code"]
            if "rt" in goodbye:
                self._window = goodbye["rt"]["min"], goodbye["rt"]["max"]
        elif push.get("channel") == self._log:
            if "pub" in push:
                self._message(push["pub"])
            elif "gap" in push or "unsubscribe" in push:
                self.faults.append(f"{push}")

    def _message(self, publication: dict[str, Any]) -> None:
        if publication["offset"] != self._offset + 1:
            self.faults.append(f"{publication['offset']} after {self._offset}")
        self._offset = publication["offset"]
        self.seen.append(publication["data"])

    def __repr__(self) -> str:
        return f"<Traveller {self.user} by {self.kind}, {len(self.arrivals)} arrivals>"
