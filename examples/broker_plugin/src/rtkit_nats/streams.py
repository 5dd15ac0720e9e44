"""Streams: what :mod:`.log` decides is asked of the server, and told it.

Each call first brings the log up to what the server has, where it must; then it decides; then it stores, on the
condition that nothing has been stored meanwhile, and begins anew if something was. One call at a time works on a
topic, or the calls of this node would overtake each other all the time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from rtkit.brokers import Appended, Conflict, NewEntry, Repeated
from rtkit.errors import BrokerUnavailable, PublishUnknown
from rtkit.messages import Durability, History
from rtkit.position import Position
from rtkit.streams import Entry, StreamPage

from .link import Link, Overtaken, Stored
from .log import Kept, Log, Plan
from .records import Damaged, Record
from .settings import Settings

__all__ = ["Streams"]

logger = logging.getLogger("rtkit_nats")

#: Seconds that the epoch and the top outlive the messages, at least (H6).
META_TTL: Final = 30 * 86400.0

# A page is tried as often as this, if others trim what it was to show, or a replica lags.
_TRIES: Final = 4
_PAUSE: Final = 0.05

# Records to give back, before it is worth a question.
_WORTH: Final = 64
# Seconds between two looks at logs for something to give back, and how many are looked at.
_SWEEP_EVERY: Final = 30.0
_SWEEP_AT_ONCE: Final = 1000


class Streams:
    """The streams of a cluster, as one node knows them."""

    def __init__(self, link: Link, settings: Settings) -> None:
        self._link = link
        self._settings = settings
        self._logs: OrderedDict[str, Log] = OrderedDict()  # the longest idle first
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._asked = 0
        self._untidy: dict[str, None] = {}
        self._to_tidy = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to give back what is not needed any more."""
        self._sweeper = asyncio.create_task(self._sweep(), name="rtkit_nats sweeper")

    async def aclose(self) -> None:
        """End that."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
            self._sweeper = None

    # -- calls

    async def append(
        self,
        topic: str,
        entry: NewEntry,
        history: History,
        expected: Position | None,
        durability: Durability,
    ) -> Appended:
        """See :meth:`rtkit.brokers.StreamBroker.append`."""
        try:
            return Appended(await self.extend(topic, (entry,), history, expected, durability))
        except Repeated as repeated:
            (position,) = repeated.positions.values()
            return Appended(position, duplicate=True)

    async def extend(
        self,
        topic: str,
        entries: Sequence[NewEntry],
        history: History,
        expected: Position | None,
        durability: Durability,
    ) -> Position:
        """See :meth:`rtkit.brokers.StreamBroker.extend`."""
        if durability == "replicated" and self._link.replicas == 1:
            raise BrokerUnavailable(
                "durability='replicated' needs a JetStream stream with replicas: nats://…?replicas=3, in a cluster"
            )
        async with self._turn(topic):
            # What is known may be old. That is found out when it is relied upon: a repeat is one in any case, the
            # server refuses what is written behind something unknown, and a conflict is not believed before asking.
            log = self._known(topic) or await self._fresh(topic)
            asked = False
            while True:
                if repeats := log.repeated(entries, self._link.now()):
                    raise Repeated(repeats)
                if expected is None or expected == log.position:
                    record = log.appending(entries, history)
                    if await self._write(topic, log, record) is not None:
                        return record.end  # by now the log may be further
                elif asked:
                    raise Conflict(log.position)
                log, asked = await self._fresh(topic), True

    async def read(
        self, topic: str, since: Position | None, limit: int, reverse: bool, history: History | None
    ) -> StreamPage:
        """See :meth:`rtkit.brokers.StreamBroker.read`."""
        for left in reversed(range(_TRIES)):
            self._asked += 1
            mine = self._asked
            async with self._turn(topic):
                # Of many who ask at once one looks. Whoever began to wait before it looked may believe it (F2).
                log = self._known(topic)
                if log is None or log.asked <= mine:
                    log = await self._fresh(topic)
                plan = log.plan(self._link.now(), since=since, limit=limit, reverse=reverse, history=history)
            entries = await self._fetch(topic, plan)
            if entries is not None:
                self._look_after(topic, log)
                return StreamPage(plan.epoch, plan.top, plan.floor, plan.start, entries, plan.lost)
            # Some were purged since, or a replica that lags was asked; or the server has lost them, and what is
            # known of the log is not true any more.
            if left < _TRIES - 1:
                self._logs.pop(topic, None)
                await asyncio.sleep(_PAUSE)
        raise BrokerUnavailable("JetStream does not show what it says it has; a replica may lag behind")

    async def clear(self, topic: str) -> Position:
        """See :meth:`rtkit.brokers.StreamBroker.clear`."""
        async with self._turn(topic):
            log = self._known(topic) or await self._fresh(topic)
            while True:
                record = log.beginning(_new_epoch(), self._link.fence)
                if await self._write(topic, log, record) is not None:
                    return record.end
                log = await self._fresh(topic)

    # -- what is delivered

    def saw(self, topic: str, message: Stored, record: Record) -> None:
        """A record was delivered: if it is the next one, then nobody has to read it."""
        log = self._logs.get(topic)
        if log is not None and log.sequence == record.before and message.sequence > log.sequence:
            log.apply(record, sequence=message.sequence, stored=message.stored)
            self._look_after(topic, log)

    # -- what is known

    @asynccontextmanager
    async def _turn(self, topic: str) -> AsyncGenerator[None]:
        """One at a time works on a topic; whoever waits too long for that gives up.

        :raises BrokerUnavailable: nothing was done.
        """
        # It lives as long as somebody holds it or waits for it.
        lock = self._locks.setdefault(topic, asyncio.Lock())
        try:
            async with asyncio.timeout(self._settings.patience):
                await lock.acquire()
        except TimeoutError:
            raise BrokerUnavailable(
                f"NATS is too slow for all that is to be done on topic {topic!r}"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _known(self, topic: str) -> Log | None:
        """What is known, if it was written in this life of the server."""
        log = self._logs.get(topic)
        return log if log is not None and log.fence == self._link.fence else None

    async def _fresh(self, topic: str) -> Log:
        """The log as it is now. One that never was begins, and one of another life of the server is taken over."""
        while True:
            self._asked += 1
            asked, before = self._asked, self._logs.get(topic)
            sequence = before.sequence if before is not None else 0
            last = await self._link.last(self._link.subjects.log(topic))
            if last is None:
                log = Log(self._settings.dedupe_window)
            else:
                log = await self._follow(topic, before, sequence, last)
            went_back = before is not None and before.epoch == log.epoch and before.top > log.top
            if not log.epoch:
                record = log.beginning(_new_epoch(), self._link.fence)
            elif log.fence != self._link.fence or went_back:
                # The server may have lost its newest records, with some that were acknowledged. Entries that come
                # now must not be taken for those. What is there is there: the next epoch goes on from it.
                record = log.taken_over(_new_epoch(), self._link.fence)
            else:
                log.asked = asked
                return self._remember(topic, log)
            try:
                written = await self._write(topic, log, record)
            except PublishUnknown as error:  # but it was not what the caller wanted to write
                raise BrokerUnavailable("NATS did not answer") from error
            if written is not None:
                return written

    async def _follow(self, topic: str, log: Log | None, asked: int, last: Stored) -> Log:
        """A log up to the record that the server says is the last.

        :param asked: how far *log* went when the server was asked; it may have seen more since.
        """
        if log is not None and asked <= last.sequence:
            if asked < last.sequence <= log.sequence:
                return log
            record = _decode(last)
            if record is not None and last.sequence == log.sequence and log.ends_with(record):
                return log
            if record is not None and record.before == log.sequence:
                log.apply(record, sequence=last.sequence, stored=last.stored)
                return log
        if asked >= last.sequence:
            log = None  # it is not the log that we knew: it was longer, or ended with another record
        for _ in range(_TRIES):
            log = await self._read_on(topic, log, last)
            if log is not None and log.sequence >= last.sequence:
                return log
            log = None
            await asyncio.sleep(_PAUSE)
        raise BrokerUnavailable("JetStream does not show its last record; a replica may lag behind")

    async def _read_on(self, topic: str, known: Log | None, last: Stored) -> Log | None:
        """Read the records after those that are known; None if they do not join on, or are not there."""
        log = known if known is not None else Log(self._settings.dedupe_window)
        joined = known is None
        while log.sequence < last.sequence:
            found = await self._link.after(self._link.subjects.log(topic), log.sequence)
            if not found:
                return None
            for message in found:
                record = _decode(message)
                if log.sequence >= message.sequence:  # it was delivered while we were asking
                    continue
                if record is None:
                    log.skip(message.sequence)
                    continue
                if not joined and record.before != log.sequence:
                    return None
                joined = True
                log.apply(record, sequence=message.sequence, stored=message.stored)
        return log

    def _remember(self, topic: str, log: Log) -> Log:
        self._logs[topic] = log
        self._logs.move_to_end(topic)
        while len(self._logs) > self._settings.logs:
            self._logs.popitem(last=False)
        return log

    # -- storing and fetching

    async def _write(self, topic: str, log: Log, record: Record) -> Log | None:
        """Store a record behind the last one of *log*, and add it; None: something else stands there."""
        ttl = record.bounds[2] if record.bounds is not None else 0.0
        try:
            sequence = await self._link.store(
                self._link.subjects.log(topic),
                record.encode(),
                headers={"Nats-Expected-Last-Subject-Sequence": str(record.before)},
                # The newest record says where the stream stands, and which one will be the newest nobody knows.
                # So all live that long, unless they are purged, which the sweeper sees to.
                ttl=ttl + max(META_TTL, 2 * ttl),
            )
        except Overtaken:
            # In a cluster that is also said while another's record is on its way to the replicas.
            await asyncio.sleep(0)
            return None
        if log.sequence == record.before:  # or it was delivered already
            log.apply(record, sequence=sequence, stored=self._link.now())
        elif log.sequence < sequence:  # it was delivered without one before it: this log is of no use
            self._logs.pop(topic, None)
            return await self._fresh(topic)
        self._remember(topic, log)
        self._look_after(topic, log)
        return log

    async def _fetch(self, topic: str, plan: Plan) -> tuple[Entry, ...] | None:
        """The entries of a page; None if they are not all there."""
        wanted: dict[int, list[Kept]] = {}
        for entry in plan.wanted:
            wanted.setdefault(entry.sequence, []).append(entry)
        found: dict[int, bytes] = {}
        missing = sorted(wanted)
        while missing:
            subject = self._link.subjects.log(topic)
            messages = await self._link.after(subject, missing[0] - 1, len(missing))
            for message in messages:
                if message.sequence in wanted and (record := _decode(message)) is not None:
                    for offset, (payload, _) in enumerate(record.entries, record.first):
                        found[offset] = payload
            if not messages or messages[0].sequence != missing[0]:
                return None
            missing = [sequence for sequence in missing if sequence > messages[-1].sequence]
        try:
            return tuple(Entry(entry.offset, found[entry.offset]) for entry in plan.wanted)
        except KeyError:
            return None

    # -- giving back

    def _look_after(self, topic: str, log: Log) -> None:
        if log.disposable(self._link.now(), _WORTH):
            self._untidy[topic] = None
            self._to_tidy.set()

    async def _sweep(self) -> None:
        """Have records purged that nobody needs: where there are many at once, and elsewhere in time.

        If this node dies, the next one that has to do with the topic sees to it, or in the end the server.
        """
        while True:
            try:
                async with asyncio.timeout(_SWEEP_EVERY):
                    await self._to_tidy.wait()
            except TimeoutError:
                self._untidy.update(dict.fromkeys(tuple(self._logs)[:_SWEEP_AT_ONCE]))
            self._to_tidy.clear()
            while self._untidy:
                topic = next(iter(self._untidy))
                del self._untidy[topic]
                try:
                    await self.tidy(topic)
                except Exception as error:  # it was not urgent
                    logger.debug("topic %r is not tidied: %r", topic, error)

    async def tidy(self, topic: str) -> None:
        """Give back what is stored of a topic and not needed."""
        async with self._turn(topic):
            log = self._known(topic)
            if log is None:
                return
            if log.last_is_stale(self._link.now()):
                # Where the stream stands has to stay, what was said there has not.
                log = await self._write(topic, log, log.mark())
        if log is None:
            return
        before = log.disposable(self._link.now())
        if before:
            await self._link.purge(self._link.subjects.log(topic), before)
            log.purged(before)


def _new_epoch() -> str:
    return secrets.token_urlsafe(9)


def _decode(message: Stored) -> Record | None:
    """A record; None for a message that is none, which is passed over."""
    try:
        return Record.decode(message.body)
    except Damaged as error:
        logger.warning("passed over: %s", error)
        return None
