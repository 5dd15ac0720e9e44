"""The contracts between a hub and whatever carries its messages (B1).

Three small protocols. What a broker implements is what it can do: a plain :class:`Broker` serves
rooms without history; a :class:`StreamBroker` adds streams, so that rooms can have history and
recovery; a :class:`StateBroker` adds keyed state with a lease.

Each promise below has a test in :mod:`rtkit.testing.conformance` that bears its name.

A *topic* is an opaque string; the hub makes them from room names. A *payload* is opaque bytes, of at most
:data:`MAX_PAYLOAD`. Topics and keys that agree in what follows their first colon (``room:chat:1``, ``presence:chat:1``)
belong together: a broker that spreads them over several servers keeps them on one. An
instance belongs to one hub and one event loop; between ``aclose`` and the next ``open`` it
belongs to none, and ``open`` may be called again, in another loop.

A broker that can be named by a URL has a class method ``from_url(url, *, clock=None)`` that makes one without
connecting, and an entry point in the group ``rtkit.brokers`` under the URL's scheme; see
:func:`rtkit.brokers.open_url`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from typing_extensions import TypeIs

from ..errors import RtkitError
from ..messages import Durability, History
from ..position import Position
from ..streams import StreamPage

__all__ = [
    "ANYTHING",
    "MAX_PAYLOAD",
    "Anything",
    "Appended",
    "Broker",
    "Conflict",
    "NewEntry",
    "Repeated",
    "Revision",
    "Sink",
    "StateBroker",
    "StreamBroker",
    "keeps_state",
    "keeps_streams",
]


class Anything(Enum):
    """The type of :data:`ANYTHING`; an enum, because type checkers can tell its only member from a value."""

    ANYTHING = "anything"


#: Where a present value is expected: there may be any, or none.
ANYTHING: Final = Anything.ANYTHING


#: Bytes of a payload that every broker takes; a larger one it may refuse with ``InvalidMessage``, and has to when it
#: would cut off those who are subscribed. Rooms allow messages of up to 4 MiB (T8); a quarter more is for what goes
#: around them.
MAX_PAYLOAD: Final = 5 * 1024 * 1024


class Sink(Protocol):
    """What a hub gives a broker: plain functions, called on the hub's loop, that never block.

    They do not raise. A broker that meets an exception all the same logs it, treats the payload as
    missed, and goes on: one hub's fault costs the others nothing.
    """

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        """A payload came in on a subscribed topic; *position* is None if it was neither appended nor came of a
        revision."""

    def interrupted(self, topics: Iterable[str]) -> None:
        """Payloads of these topics may have been missed: the hub compares tops and repairs (H4)."""


@dataclass(frozen=True, slots=True)
class Appended:
    """A payload is in the stream.

    :param position: where. Of a duplicate: where the first one is.
    :param duplicate: the key had been used within the window; nothing was appended or published.
    """

    position: Position
    duplicate: bool = False


@runtime_checkable
class Broker(Protocol):
    """Carries payloads between the hubs of a cluster.

    Guarantees
        *Order*: payloads of one topic arrive everywhere in one order. None between topics.
        *Loss*: at most once; a payload may be lost, and is never delivered to a hub twice by one
        ``publish``. After a loss that the broker can notice it calls ``Sink.interrupted``.
        *Echo*: a hub gets its own publications, if it subscribes to the topic.
    Errors
        :class:`~rtkit.errors.BrokerUnavailable` when the backend cannot be reached, or refuses; nothing was done.
        :class:`~rtkit.errors.PublishUnknown` when it cannot be known whether it was done.
        :class:`~rtkit.errors.InvalidMessage` for a payload that is too large.
        :class:`~rtkit.errors.NotRunning` before ``open`` and after ``aclose``.
        :class:`~rtkit.errors.WrongLoop` from another loop than ``open`` was called in.
    Cancellation
        Cancelling ``publish`` leaves it unknown whether it happened. Cancelling ``subscribe`` or
        ``unsubscribe`` leaves the topic in either state; calling again is safe.
    After close
        The sink is not called any more. ``aclose`` is idempotent, and harmless before ``open``.
    """

    async def open(self, sink: Sink) -> None:
        """Connect; from now on the sink may be called.

        :raises ~rtkit.errors.UsageError: when it is open already.
        """
        ...

    async def aclose(self) -> None:
        """Let go of everything, subscriptions too; bounded in time."""
        ...

    async def publish(self, topic: str, payload: bytes) -> None:
        """Send a payload to every hub that is subscribed to *topic* now."""
        ...

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Have payloads of these topics delivered. Whatever is published after this returned is
        delivered, or noticed as missed. Subscribing twice is once. One that fails may come about later:
        ``unsubscribe`` ends it."""
        ...

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        """End that. Not subscribed is no error. A payload on its way may still be delivered."""
        ...


@runtime_checkable
class StreamBroker(Broker, Protocol):
    """A broker that numbers and keeps what is published (H1, H6, H7).

    Guarantees
        *Atomicity*: deduplicating, numbering, storing and publishing are one act.
        *Order*: offsets are 1, 2, 3 … without holes within an epoch, and payloads are published in
        that order; every hub sees the same.
        *Durability*: once ``append`` returned, the payload is kept at the level asked for, within
        the bounds of *history*.
        *Freshness*: a page shows everything that was acknowledged to, or delivered by, anybody before
        ``read`` was called, as far as it is kept. It is a picture of one moment.
        *Honesty*: when a stream is lost or replaced, its epoch changes, to a name that it never had
        before; within an epoch it never goes back and no entry changes. A page never claims a
        continuity that is not there.
        *Memory*: the epoch and the top outlive the messages (H6: by 30 days, and twice their ttl).
    Errors
        The broker's. After :class:`~rtkit.errors.PublishUnknown` repeating with the same key is safe.
    """

    async def append(
        self,
        topic: str,
        payload: bytes,
        *,
        history: History,
        key: str | None = None,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Appended:
        """Append to the topic's stream, and publish.

        :param history: bounds to trim the stream to. The newest entry is always kept until it ages.
        :param key: makes it idempotent for the broker's dedupe window (5 minutes): a repeat
            answers with the first position and does nothing else, whatever is *expected*. ``clear``
            does not end the window.
        :param expected: append only if the stream stands exactly there; else raise
            :class:`Conflict`.
        :param durability: wait until the payload is kept at this level.
        """
        ...

    async def extend(
        self,
        topic: str,
        entries: Sequence[NewEntry],
        *,
        history: History,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Position:
        """Append several entries, one right after the other, and publish each: all of them or none.

        Options are those of :meth:`append`.

        :param entries: at least one. No two have the same key.
        :return: the position of the last one.
        :raises Repeated: when a key was used before; this is looked at first.
        :raises Conflict: when the stream does not stand at *expected*.
        """
        ...

    async def read(
        self,
        topic: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
        history: History | None = None,
    ) -> StreamPage:
        """A piece of the topic's stream, as it is at one moment.

        :param since: forward: begin right after it (:func:`~rtkit.streams.locate` says what if that cannot
            be). In reverse: begin right before it, or at the top without it
            (:func:`~rtkit.streams.locate_back`).
        :param limit: entries at the most; 0 asks for the top alone.
        :param history: bounds that apply to what is read too, so that aged entries are not shown. The
            stream may be trimmed to them.
        :return: the page. A topic that never had a stream begins one, so that a position is
            handed out that will be valid for what comes.
        """
        ...

    async def clear(self, topic: str) -> Position:
        """Drop the stream and begin a new epoch; returns its beginning (H6). Nothing is published."""
        ...


class Conflict(RtkitError):
    """The stream does not stand where ``append(expected=…)`` was told.

    :param top: where it stands.
    """

    def __init__(self, top: Position) -> None:
        super().__init__(f"the stream stands at {top}")
        self.top = top


class Repeated(RtkitError):
    """Some of the keys given to ``extend`` had been used within the window; nothing was appended.

    :param positions: of those entries: where the first one is, by key.
    """

    def __init__(self, positions: Mapping[str, Position]) -> None:
        super().__init__(f"{len(positions)} of the entries are there already")
        self.positions = positions


class NewEntry(NamedTuple):
    """An entry for ``extend``: its payload, and the key that makes it idempotent."""

    payload: bytes
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Revision:
    """The fields of a key, as they were at one moment.

    :param position: how often they were revised: its offset counts that. ``Position("", 0)`` if there is no count.
    :param entries: all fields whose lease had not run out.
    """

    position: Position
    entries: Mapping[str, bytes]


@runtime_checkable
class StateBroker(Broker, Protocol):
    """A broker that keeps small keyed state for the cluster: hashes of fields, each with a lease.

    Guarantees
        *Atomicity*: each call is one act; ``put`` with *expected* is a compare-and-set. ``revise`` compares,
        changes, counts and publishes, all of it or nothing.
        *Expiry*: a field is gone once its lease has run out, and never before by the broker's clock.
        It is best-effort state: a backend that loses its data loses it.
        *Order*: what revisions of a key publish on one topic arrives in the order of their positions.
        *Honesty*: revisions of a key are 1, 2, 3 … within an epoch. When the count is lost, or forgotten because
        no field is left, the epoch changes, to a name that it never had before. What ``put``, ``renew`` and
        ``remove`` do, and leases that run out, is not counted.
    """

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        """Set a field for *ttl* seconds.

        :param expected: set only if the present value is this; None: only if there is none.
        :return: whether it was set.
        """
        ...

    async def renew(self, key: str, fields: Iterable[str], *, ttl: float) -> Iterable[str]:
        """Extend leases to *ttl* seconds from now; returns the fields that were gone already."""
        ...

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        """Delete a field, with *expected* only while it has that value; returns whether it was deleted."""
        ...

    async def entries(self, key: str) -> Mapping[str, bytes]:
        """All fields whose lease has not run out; empty when there are none."""
        ...

    async def revise(
        self,
        key: str,
        changes: Mapping[str, bytes | None],
        *,
        ttl: float,
        expected: Mapping[str, bytes | None],
        topic: str,
        payload: bytes,
    ) -> Position | None:
        """Change several fields of a key, count it, and publish that it was done.

        :param changes: what each field shall hold, for *ttl* seconds; None deletes it.
        :param expected: what fields, these or others, have to hold now; None: nothing.
        :param topic: where to publish *payload*, with the position that is returned. It belongs together with *key*
            (see above).
        :return: None when a field holds something else than expected: then nothing was done.
        """
        ...

    async def revision(self, key: str) -> Revision:
        """The fields of a key and the position of its last revision, of one moment."""
        ...

    async def positions(self, keys: Sequence[str]) -> Sequence[Position]:
        """The positions of the last revisions of many keys, in their order; each is of a moment of its own."""
        ...


# isinstance() of a protocol looks for each of its methods: too slow to be asked with every message.
_streams: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
_state: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def keeps_streams(broker: Broker) -> TypeIs[StreamBroker]:
    """Whether it is a :class:`StreamBroker`, by its type; looked at once for each type."""
    found = _streams.get(type(broker))
    if found is None:
        found = _streams[type(broker)] = isinstance(broker, StreamBroker)
    return found


def keeps_state(broker: Broker) -> TypeIs[StateBroker]:
    """Whether it is a :class:`StateBroker`, likewise."""
    found = _state.get(type(broker))
    if found is None:
        found = _state[type(broker)] = isinstance(broker, StateBroker)
    return found
