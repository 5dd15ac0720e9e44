"""Requests from one node to another, over the broker (T2).

Each node listens on a topic of its own. A request has an id and is answered once, within :data:`PATIENCE`; without an
answer it is sent once more, so whoever answers must bear to be asked twice. A node whose lease is not there is not
asked at all. What takes longer is answered in two steps: *later*, at once, and then the answer; until that comes the
request is repeated every few seconds, which tells both that the other is still there, and mends a lost answer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from ..errors import BadUnit
from ..primitives.clocks import timeout

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["PATIENCE", "Answered", "Ask", "Relay"]

logger = logging.getLogger("rtkit.hub")

#: Seconds a node has for an answer, or for saying that it will come later.
PATIENCE: Final = 2.0
#: Seconds between repetitions of a request whose answer comes later.
_AGAIN: Final = 5.0
_VERSION: Final = 1


class Ask(msgspec.Struct, tag="ask", omit_defaults=True, kw_only=True):
    """A request; which fields mean something depends on *do*."""

    v: int = _VERSION
    id: str = ""
    node: str = ""  # that asks
    do: str
    session: str = ""
    client: str = ""
    number: int = 0
    body: bytes = b""
    proof: bytes = b""
    user: str | None = None


class Answered(msgspec.Struct, tag="answered", omit_defaults=True, kw_only=True):
    """The answer to an :class:`Ask`; *status* is as in HTTP where it goes to a client."""

    v: int = _VERSION
    id: str = ""
    later: bool = False
    status: int = 0
    body: bytes = b""
    retry_after: int = 0
    rooms: list[str] = []


Obeyed = Answered | asyncio.Future[Answered]

_messages = msgspec.msgpack.Decoder(Ask | Answered)
_encode = msgspec.msgpack.Encoder().encode


class _Waiting:
    __slots__ = ("answer", "heard")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[Answered] = loop.create_future()
        self.heard = asyncio.Event()


class Relay:
    """This node's end of the conversation between nodes.

    :ivar obey: answers the requests of others, by what they ask to do. Plain functions.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.topic: Final = topic_of_node(engine.node_id)
        self.obey: dict[str, Callable[[Ask], Obeyed]] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._later: dict[str, asyncio.Future[Answered]] = {}
        self._closed = False

    async def ask(
        self, node: str, request: Ask, *, patience: float = PATIENCE, tries: int = 2
    ) -> Answered | None:
        """Have another node do something.

        :param patience: seconds it has for a first word, at each of so many
        :param tries:
        :return: None when it has no lease, or does not answer; it may have done it in the latter case.
        :raises BrokerUnavailable: when it cannot be asked.

        Cancellation: the other node may do it all the same.
        """
        holders = await self._engine.lease.holders()
        if holders is not None and node not in holders:
            return None
        request.id, request.node = secrets.token_hex(8), self._engine.node_id
        payload, topic = _encode(request), topic_of_node(node)
        waiting = self._waiting[request.id] = _Waiting(self._engine.loop)
        silent = 0
        try:
            while silent < tries:
                waiting.heard.clear()
                await self._engine.broker.publish(topic, payload)
                if await self._hear(waiting, patience):
                    silent = 0
                    if await self._wait(waiting, _AGAIN):
                        return waiting.answer.result()
                else:
                    silent += 1
            return None
        finally:
            del self._waiting[request.id]

    async def _hear(self, waiting: _Waiting, seconds: float) -> bool:
        """Whether anything came back in time."""
        try:
            async with timeout(self._engine.clock, seconds):
                await waiting.heard.wait()
        except TimeoutError:
            return False
        return True

    async def _wait(self, waiting: _Waiting, seconds: float) -> bool:
        """Whether the answer itself came in time."""
        if not waiting.answer.done():
            try:
                async with timeout(self._engine.clock, seconds):
                    await asyncio.wait({waiting.answer})
            except TimeoutError:
                return False
        return True

    def deliver(self, payload: bytes) -> None:
        """Something came on this node's topic.

        :raises BadUnit: for what no release this one knows has written.
        """
        message = _messages.decode(payload)
        if message.v != _VERSION:
            raise BadUnit(f"a request between nodes of version {message.v}; this release reads {_VERSION}")
        if isinstance(message, Ask):
            self._obey(message)
            return
        waiting = self._waiting.get(message.id)
        if waiting is not None:
            waiting.heard.set()
            if not message.later and not waiting.answer.done():
                waiting.answer.set_result(message)

    def _obey(self, request: Ask) -> None:
        if request.id in self._later:
            self._answer(request, Answered(later=True))  # asked again while it is under way
            return
        obey = self.obey.get(request.do)
        # A newer release may know more than this one (W5).
        answer = Answered(status=501) if obey is None else obey(request)
        if isinstance(answer, Answered):
            self._answer(request, answer)
            return
        self._later[request.id] = answer
        self._answer(request, Answered(later=True))

        def done(future: asyncio.Future[Answered]) -> None:
            del self._later[request.id]
            if not future.cancelled():
                self._answer(request, future.result())

        answer.add_done_callback(done)

    def _answer(self, request: Ask, answer: Answered) -> None:
        if self._closed:
            return
        answer.id = request.id
        self._engine.send_quietly(topic_of_node(request.node), _encode(answer))

    def close(self) -> None:
        """At the end of a run: nobody is answered any more."""
        self._closed = True
        for future in list(self._later.values()):
            future.cancel()

    def __repr__(self) -> str:
        return (
            f"<Relay {self._engine.node_id}: {len(self._waiting)} asked, {len(self._later)} to be answered>"
        )


def topic_of_node(node: str) -> str:
    """The topic a node listens on. Internal names begin with NUL, so no room can have them (W4)."""
    return f"\0node:{node}"
