"""Requests from one node to another, over the broker (T2).

Each node listens on a topic of its own. A request has an id and is answered once, within :data:`PATIENCE`; without an
answer it is sent once more, so whoever answers must bear to be asked twice. A node whose lease is not there is not
asked at all. What takes longer is answered in two steps: *later*, at once, and then the answer; until that comes the
request is repeated every few seconds, which tells both that the other is still there, and mends a lost answer.

What is for all nodes goes out once, on a topic that all listen on, and then once more to each that has not answered.
All nodes are those that hold a lease; of one that lost it meanwhile nothing is expected any more. Where the broker
keeps no leases nobody knows who should answer, and nothing is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from ..brokers.base import keeps_state
from ..errors import BrokerUnavailable, Unavailable
from ..primitives.clocks import timeout
from ..wire.envelope import Head

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["CONTROL", "PATIENCE", "Answered", "Ask", "Everybody", "Relay"]

logger = logging.getLogger("rtkit.hub")

#: The topic that all nodes listen on. Internal names begin with NUL, so no room can have them (W4).
CONTROL: Final = "\0control"
#: Seconds a node has for an answer, or for saying that it will come later.
PATIENCE: Final = 2.0
#: Seconds between repetitions of a request whose answer comes later.
_AGAIN: Final = 5.0
#: Seconds until the answer itself must be there, however often *later* is said, unless the caller has more patience.
_WITHIN: Final = 30.0
#: Seconds that a node's silence is remembered.
_FORGET: Final = 60.0
#: Answers that are kept for who asks again.
_KEPT: Final = 256


class Ask(msgspec.Struct, tag="ask", omit_defaults=True, kw_only=True):
    """A request; which fields mean something depends on *do*."""

    v: int = 0
    id: str = ""  # none: nobody waits for an answer
    node: str = ""  # that asks
    once: bool = False  # to be done once, however often it comes
    do: str
    session: str = ""
    room: str = ""
    client: str = ""
    number: int = 0
    body: bytes = b""
    proof: bytes = b""
    user: str | None = None
    code: int = 0
    reason: str = ""

    def __repr__(self) -> str:
        # Session ids, and what clients say, are for nobody to read (A5).
        return f"<Ask {self.do!r} of node {self.node!r}, {len(self.body)} bytes>"


class Answered(msgspec.Struct, tag="answered", omit_defaults=True, kw_only=True):
    """The answer to an :class:`Ask`; *status* is as in HTTP where it goes to a client."""

    v: int = 0
    id: str = ""
    node: str = ""  # that answers
    later: bool = False
    status: int = 0
    body: bytes = b""
    retry_after: int = 0
    number: int = 0
    rooms: list[str] = []
    removed: dict[str, str] = {}
    stale: bool = False

    def __repr__(self) -> str:
        return f"<Answered {self.status} by node {self.node!r}, {len(self.body)} bytes>"


Obeyed = Answered | asyncio.Future[Answered]

_messages = msgspec.msgpack.Decoder(Ask | Answered)
_heads = msgspec.msgpack.Decoder(Head)
_encode = msgspec.msgpack.Encoder().encode


class Everybody(NamedTuple):
    """What became of a request to all nodes.

    :param answers: by node, this one included.
    :param silent: nodes that hold a lease and did not answer, in order; they may have done it all the same.
    :param known: whether these are all nodes that there are; else only this one is known of, and the others were told.
    """

    answers: Mapping[str, Answered]
    silent: tuple[str, ...] = ()
    known: bool = True


class _Waiting:
    __slots__ = ("answer", "heard")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[Answered] = loop.create_future()
        self.heard = asyncio.Event()

    def take(self, answered: Answered) -> None:
        """An answer, or the word that it comes later."""
        self.heard.set()
        if not answered.later and not self.answer.done():
            self.answer.set_result(answered)


class _Gathering:
    """The answers of many nodes to one request."""

    __slots__ = ("answers", "complete", "missing")

    def __init__(self, nodes: set[str]) -> None:
        self.missing = nodes
        self.answers: dict[str, Answered] = {}
        self.complete = asyncio.Event()
        self.look()

    def take(self, answered: Answered) -> None:
        """One node's."""
        if answered.node in self.missing and not answered.later:
            self.missing.discard(answered.node)
            self.answers[answered.node] = answered
            self.look()

    def look(self) -> None:
        """Whether that was all."""
        if not self.missing:
            self.complete.set()


class Relay:
    """This node's end of the conversation between nodes.

    :ivar obey: answers the requests of others, by what they ask to do. Plain functions.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.topic: Final = topic_of_node(engine.node_id)
        self.obey: dict[str, Callable[[Ask], Obeyed]] = {}
        self._waiting: dict[str, _Waiting | _Gathering] = {}
        self._later: dict[str, asyncio.Future[Answered]] = {}
        self._done: OrderedDict[str, Answered] = OrderedDict()
        self._silent: dict[str, float] = {}  # nodes that did not answer, since when
        self._closed = False

    async def ask(
        self,
        node: str,
        request: Ask,
        *,
        patience: float = PATIENCE,
        tries: int = 2,
        within: float = _WITHIN,
    ) -> Answered | None:
        """Have another node do something.

        :param patience: seconds it has for a first word, at each of so many
        :param tries:
        :param within: seconds until the answer must be there, if *later* was the first word.
        :return: None when it has no lease, or does not answer; it may have done it in the latter case.
        :raises BrokerUnavailable: when it cannot be asked.

        Cancellation: the other node may do it all the same.
        """
        if await self._engine.lease.holds(node) is False:
            self._silent.pop(node, None)
            return None
        request.id, request.node = secrets.token_hex(8), self._engine.node_id
        topic, clock = topic_of_node(node), self._engine.clock
        waiting = self._waiting[request.id] = _Waiting(self._engine.loop)
        silent, until = 0, clock.monotonic() + within
        try:
            while silent < tries and (left := until - clock.monotonic()) > 0:
                waiting.heard.clear()
                await self._engine.broker.publish(topic, self._sealed(request))
                if await self._hear(waiting.heard, min(patience, left)):
                    silent = 0
                    left = until - clock.monotonic()
                    if waiting.answer.done() or (left > 0 and await self._wait(waiting, min(_AGAIN, left))):
                        return waiting.answer.result()
                else:
                    silent += 1
            self._keeps_silent(node)
            return None
        finally:
            del self._waiting[request.id]

    def silent(self, node: str) -> bool:
        """Whether it let the last question go unanswered, and nothing was heard of it since: it may be dead."""
        self._forget()
        return node in self._silent

    def _keeps_silent(self, node: str) -> None:
        self._forget()
        self._silent.pop(node, None)
        self._silent[node] = self._engine.clock.monotonic()

    def _forget(self) -> None:
        """A node that is dead is never heard of again; nor is it asked again, once its lease is over."""
        now = self._engine.clock.monotonic()
        while self._silent and now - self._silent[oldest := next(iter(self._silent))] >= _FORGET:
            del self._silent[oldest]

    async def ask_all(self, request: Ask, *, patience: float = PATIENCE, tries: int = 2) -> Everybody:
        """Have all nodes do something, this one too. What they do has to be plain: nobody may answer *later*.

        :param patience: seconds that all of them have, at each of so many
        :param tries:
        :raises BrokerUnavailable: when they cannot be asked: nothing was done.

        Cancellation: they may do it all the same.
        """
        engine = self._engine
        if not keeps_state(engine.broker):
            await engine.broker.publish(CONTROL, self._sealed(request))
            return Everybody({engine.node_id: self._do_here(request)}, known=False)
        alive = await engine.lease.incarnations(fresh=True)
        if alive is None:
            raise BrokerUnavailable("the other nodes cannot be asked: the broker is away")
        request.id, request.once = secrets.token_hex(8), True
        gathering = _Gathering({*alive} - {engine.node_id})
        self._waiting[request.id] = gathering
        try:
            await engine.broker.publish(CONTROL, self._sealed(request))
            gathering.answers[engine.node_id] = self._do_here(request)
            left = tries
            while not await self._hear(gathering.complete, patience) and (left := left - 1) > 0:
                await self._ask_again(request, gathering)
        finally:
            del self._waiting[request.id]
        return Everybody(gathering.answers, tuple(sorted(gathering.missing)))

    async def _ask_again(self, request: Ask, gathering: _Gathering) -> None:
        """Ask those who have not answered, each for itself; but who has no lease any more is dead."""
        alive = await self._engine.lease.incarnations(fresh=True)
        if alive is not None:
            gathering.missing &= alive.keys()
            gathering.look()
        for node in sorted(gathering.missing):
            try:
                await self._engine.broker.publish(topic_of_node(node), self._sealed(request))
            except Unavailable as error:
                logger.warning("node %s could not be asked again: %s", node, error)

    async def tell_all(self, request: Ask) -> None:
        """Have all nodes do something that mends itself if it is lost."""
        await self._engine.broker.publish(CONTROL, self._sealed(request))
        self._do_here(request)

    async def _hear(self, heard: asyncio.Event, seconds: float) -> bool:
        """Whether it came in time."""
        if heard.is_set():
            return True
        try:
            async with timeout(self._engine.clock, seconds):
                await heard.wait()
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
        """Something came on this node's topic, or on that of all.

        :raises UnknownVersion: for what a release has written that this one cannot read.
        :raises BadUnit: for what none has.
        """
        formats = self._engine.versions.formats
        message = formats.decode("a request between nodes", payload, _messages.decode, _heads.decode)
        self._silent.pop(message.node, None)
        if isinstance(message, Answered):
            waiting = self._waiting.get(message.id)
            if waiting is not None:
                waiting.take(message)
        elif message.node != self._engine.node_id:  # else it is done already
            self._obey(message)

    def _obey(self, request: Ask) -> None:
        if request.id in self._later:
            self._answer(request, Answered(later=True))  # asked again while it is under way
            return
        if (answered := self._done.get(request.id)) is not None:
            self._answer(request, answered)
            return
        answer = self._do(request)
        if isinstance(answer, Answered):
            if request.once and request.id:
                self._done[request.id] = answer
                if len(self._done) > _KEPT:
                    self._done.popitem(last=False)
            self._answer(request, answer)
            return
        self._later[request.id] = answer
        self._answer(request, Answered(later=True))

        def done(future: asyncio.Future[Answered]) -> None:
            del self._later[request.id]
            if not future.cancelled():
                self._answer(request, future.result())

        answer.add_done_callback(done)

    def _do(self, request: Ask) -> Obeyed:
        obey = self.obey.get(request.do)
        if obey is None:
            return Answered(status=501)  # a newer release may know more than this one (W5)
        try:
            return obey(request)
        except Exception as error:
            logger.exception("%r, asked for by node %s, failed", request.do, request.node, exc_info=error)
            return Answered(status=500)

    def _do_here(self, request: Ask) -> Answered:
        answer = self._do(request)
        assert isinstance(answer, Answered)
        return answer

    def _sealed(self, message: Ask | Answered) -> bytes:
        message.v, message.node = self._engine.versions.writes, self._engine.node_id
        return _encode(message)

    def _answer(self, request: Ask, answer: Answered) -> None:
        if self._closed or not request.id:
            return
        answer.id = request.id
        self._engine.send_quietly(topic_of_node(request.node), self._sealed(answer))

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
