"""An ``EventSource`` without a browser: it reads as the HTML standard says, remembers an id, and comes back with it.

No socket and no real time: a :class:`StreamSink` stands where a host's end of a response would::

    page = EventSource(hub, clock, "room=news")
    await page.open()
    assert page.data("message") == [...]
    await page.cut()
    await page.open()  # with Last-Event-ID, like a browser
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rtkit import Hub
from rtkit.testing.clock import ManualClock
from rtkit.transports import Batch, Form, Handshake, HttpRequest, Response, Stream, Streaming

__all__ = ["Event", "EventParser", "EventSource", "StreamSink"]

_LINE = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Event:
    """What a listener gets."""

    type: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventParser:
    """Section 9.2.6 of the HTML standard, as it stands there: whole lines, fields, dispatch at an empty line.

    :ivar retry: milliseconds, once named.
    :ivar comments: how many came.
    """

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry: int | None = None
        self.comments = 0
        self._id = last_id
        self._data = ""
        self._type = ""
        self._rest = ""
        self._begun = False

    def feed(self, text: str) -> list[Event]:
        if not self._begun:
            self._begun, text = True, text.removeprefix("\ufeff")
        found: list[Event] = []
        text = self._rest + text
        end = 0
        for match in _LINE.finditer(text):
            if match.end() == len(text) and match[0] == "\r":
                break  # a line feed may follow
            self._line(text[end : match.start()], found)
            end = match.end()
        self._rest = text[end:]
        return found

    def _line(self, line: str, found: list[Event]) -> None:
        if not line:
            self.last_id = self._id
            if self._data:
                found.append(Event(self._type or "message", self._data.removesuffix("\n"), self.last_id))
            self._data = self._type = ""
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments += 1
        elif name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)


class StreamSink:
    """A host's end of a response, in memory. What is written arrives at once, unless it is *stalled*.

    :ivar body: what has arrived.
    :ivar ended: the hub has ended the response.
    """

    def __init__(self) -> None:
        self.body = b""
        self.waiting = b""
        self.stalled = False
        self.ended = False
        self.stream: Stream | None = None
        self.writes = 0

    @property
    def buffered(self) -> int:
        return len(self.waiting)

    def write(self, data: bytes) -> None:
        assert not self.ended, "written behind the end"
        assert data, "an empty write"
        self.writes += 1
        if self.stalled:
            self.waiting += data
        else:
            self.body += data

    def write_batch(self, batch: Batch, form: Form) -> None:
        self.write(batch.form(form))

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            if not self.stalled:
                asyncio.get_running_loop().call_soon(self.lose, 1000, "")

    def take(self, size: int) -> None:
        """The peer takes so many bytes of what waits."""
        self.body, self.waiting = self.body + self.waiting[:size], self.waiting[size:]
        if not self.waiting:
            asyncio.get_running_loop().call_soon(self._writable)  # and only then: nothing had to wait before

    def drain(self) -> None:
        """The peer reads again."""
        self.stalled = False
        self.take(len(self.waiting))
        if self.ended:
            self.lose(1000)

    def lose(self, code: int = 1006, reason: str = "") -> None:
        """It is over; told once."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.lost(code, reason)

    def _writable(self) -> None:
        if self.stream is not None and not self.waiting and not self.ended:
            self.stream.writable()


class EventSource:
    """One page's ``EventSource`` on a hub.

    :param query: of its URL, the same each time.
    :param headers: of its requests, the same each time.
    :ivar events: everything dispatched, over all of its connections.
    :ivar status: of the last response; anything but 200 has ended it for good.
    """

    def __init__(
        self,
        hub: Hub[Any],
        clock: ManualClock,
        query: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        scope: dict[str, Any] | None = None,
    ) -> None:
        self.hub = hub
        self.clock = clock
        self.query = query
        self.headers = headers
        self.scope = scope or {}
        self.last_id = ""
        self.retry = 3000
        self.comments = 0
        self.status = 0
        self.text = ""
        self.answered: dict[str, str] = {}
        self._seen: list[Event] = []
        self._parser = EventParser()
        self._read = 0
        self.sink = StreamSink()

    def request(self) -> HttpRequest:
        headers = [("host", "test"), *self.headers]
        if self.last_id:
            headers.append(("last-event-id", self.last_id))
        handshake = Handshake("/rt/events", headers, self.query, "10.0.0.1", None, self.scope)
        return HttpRequest("GET", "events", handshake)

    async def open(self, *, last_id: str | None = None, settled: bool = True) -> int:
        """Ask; the status.

        :param last_id: the id to come back with, instead of that of the last event.
        :param settled: let everything happen that can; else that is the test's business.
        """
        self._hear()
        self.last_id = self.last_id if last_id is None else last_id
        self._parser = EventParser(self.last_id)
        self._read = 0
        self.sink = StreamSink()
        asking = asyncio.ensure_future(self.hub.answer(self.request()))
        if settled:
            await self.clock.settle()
        answer = await asking
        assert isinstance(answer, Streaming | Response)
        self.status = answer.status
        self.answered = dict(answer.headers)
        if isinstance(answer, Response):
            self.text = answer.body.decode()
            self.sink.ended = True
            if answer.status == 200:
                self.sink.body = answer.body
            return answer.status
        self.sink.stream = answer.start(self.sink)
        await self.clock.settle()
        return answer.status

    def _hear(self) -> None:
        """What has arrived. An event without its end does not count (section 9.2.6)."""
        self._seen += self._parser.feed(self.sink.body[self._read :].decode())
        self._read = len(self.sink.body)
        self.last_id = self._parser.last_id
        self.retry = self.retry if self._parser.retry is None else self._parser.retry
        self.comments = self._parser.comments

    @property
    def events(self) -> list[Event]:
        self._hear()
        return self._seen

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def of(self, type: str) -> list[Any]:
        """The data of all events of a type."""
        return [event.json for event in self.events if event.type == type]

    def data(self, room: str | None = None) -> list[Any]:
        """The data of all messages, of one room or all."""
        return [each["data"] for each in self.of("message") if room is None or each.get("room") == room]

    def forget(self) -> None:
        """Begin a new list of what was dispatched."""
        self._hear()
        self._seen = []

    @property
    def ended(self) -> bool:
        """The response is over."""
        return self.sink.ended

    async def cut(self, at: int | None = None) -> None:
        """The network is gone, without a word.

        :param at: so many bytes of this response have arrived.
        """
        if at is not None:
            self.sink.body = self.sink.body[:at]
        self._hear()
        self.sink.lose()
        await self.clock.settle()

    async def settle(self) -> None:
        await self.clock.settle()
        self._hear()

    def __repr__(self) -> str:
        return f"<EventSource {self.query!r}, {len(self._seen)} events>"
