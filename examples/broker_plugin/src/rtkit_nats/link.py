"""The way to the server: there is a connection, or one is being made; and what is asked of JetStream.

A call that comes while a lost connection is being replaced waits for the outcome of the first attempt, so that a
server that restarts in no time is not noticed. Once that has failed, calls fail at once.

Errors become those of the contract here. What matters is whether anything can have been done: if nothing was sent, or
the server refused, it is ``BrokerUnavailable``. If a message that stores something was sent and no answer came, it is
``PublishUnknown``. Reading changes nothing, so what fails there is always the former.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error

from rtkit.brokers import MAX_PAYLOAD
from rtkit.clock import Clock
from rtkit.errors import BrokerUnavailable, InvalidMessage, PublishUnknown
from rtkit.primitives.backoff import Backoff

from .connection import Connection, Lost, NotSent, is_nobody
from .settings import Settings
from .subjects import Subjects

__all__ = ["Link", "Overtaken", "Stored"]

logger = logging.getLogger("rtkit_nats")

# Errors of JetStream by their number: https://github.com/nats-io/nats-server/blob/main/server/errors.json
_NO_MESSAGE: Final = 10037
_NO_STREAM: Final = 10059
_NAME_IN_USE: Final = 10058
# The second is of a cluster, where another's message is on its way to the replicas.
_WRONG_SEQUENCE: Final = (10071, 10164)

# Bytes that the headers of a message may have, ours and the server's.
_HEADERS: Final = 4 * 1024
# The first line of a record.
_LINE: Final = 4 * 1024

# How many messages are asked for at once, and bytes.
_BATCH: Final = 256
_BATCH_BYTES: Final = 16 * 1024 * 1024


class Overtaken(Exception):
    """The last message is not the one that was expected; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of JetStream: its sequence, its body, and when it was stored, by the server's clock."""

    sequence: int
    body: bytes
    stored: float


def _seconds(stamp: str) -> float:
    """RFC 3339 with up to nine digits behind the point, as seconds since 1970."""
    return datetime.fromisoformat(stamp).timestamp()


def stored(message: Msg) -> Stored:
    """A message that JetStream published again, or was asked for, from its headers.

    :raises KeyError: when it is none; ValueError likewise.
    """
    headers = message.headers or {}
    return Stored(int(headers["Nats-Sequence"]), message.data, _seconds(headers["Nats-Time-Stamp"]))


class Link:
    """See the module.

    :param came_back: called with a new connection, before anybody else gets it; subscribes to everything again.
    :param is_back: called when that was done: tells the hub that it may have missed something.
    :param dropped: called with a subscription of which a payload was dropped.
    """

    def __init__(
        self,
        servers: Sequence[str],
        options: Mapping[str, Any],
        settings: Settings,
        clock: Clock,
        *,
        came_back: Callable[[Connection], Any],
        is_back: Callable[[], None],
        dropped: Callable[[Subscription], None],
    ) -> None:
        self.subjects = Subjects(settings.prefix)
        self._servers = list(servers)
        self._options = options
        self._settings = settings
        self._clock = clock
        self._came_back, self._is_back, self._dropped = came_back, is_back, dropped
        self._connection: Connection | None = None
        # There is a connection, or it is known that there is none: calls wait for that, and no longer.
        self._settled = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._ahead = 0.0  # the server's clock, less ours
        self.replicas = settings.replicas
        # Names one life of the server, where it is alone: what it acknowledged and had not written to its disk is
        # gone when the machine loses its power. In a cluster a majority has it, and this is empty.
        self.fence = ""

    # -- being there

    async def open(self) -> None:
        """Connect.

        :raises BrokerUnavailable: nobody is there, or it is not fit for this.
        """
        try:
            await self._connect()
        except (OSError, Error, TimeoutError, NotSent, Lost) as error:
            raise BrokerUnavailable(f"no NATS server with JetStream could be reached: {error!r}") from error
        self._keeper = asyncio.create_task(self._keep(), name="rtkit_nats link")

    async def aclose(self) -> None:
        """Let go. Bounded in time, because nothing is waited for but tasks that were cancelled."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.aclose()

    async def _keep(self) -> None:
        """Whenever the connection ends, make another."""
        backoff = Backoff(minimum=0.05, maximum=2.0)
        while True:
            assert self._connection is not None
            await self._connection.lost
            ended, self._connection = self._connection, None
            self._settled.clear()
            logger.warning("the connection to NATS is lost")
            await ended.aclose()
            backoff.reset()
            while self._connection is None:
                try:
                    await self._connect()
                except Exception as error:  # whatever it is: nobody else will try again
                    logger.info("no connection to NATS yet: %r", error)
                    self._settled.set()  # from now on calls fail at once
                    await asyncio.sleep(backoff.next())
            logger.warning("there is a connection to NATS again")
            self._is_back()

    async def _connect(self) -> None:
        connection = await Connection.connect(
            self._servers, self._options, patience=self._settings.patience, dropped=self._dropped
        )
        try:
            await self._prepare(connection)
            await self._came_back(connection)
        except BaseException:
            await connection.aclose()
            raise
        self._connection = connection
        self._servers = connection.servers
        self._settled.set()

    async def _prepare(self, connection: Connection) -> None:
        """Have the stream, and learn what time it is there."""
        settings = self._settings
        config: dict[str, Any] = {
            "name": self.subjects.stream,
            "subjects": [self.subjects.everything],
            "storage": settings.storage,
            "num_replicas": settings.replicas,
            "retention": "limits",
            "discard": "old",
            # A message can be asked of any replica …
            "allow_direct": True,
            # … can say how long it lives …
            "allow_msg_ttl": True,
            # … and can replace all others on its subject (state).
            "allow_rollup_hdrs": True,
            # What is stored is published, in the order in which it is stored: atomicity and order are the server's.
            "republish": {"src": self.subjects.everything, "dest": self.subjects.republished},
        }

        async def ask(name: str, what: Mapping[str, Any]) -> dict[str, Any]:
            return await connection.ask_api(
                f"STREAM.{name}.{self.subjects.stream}", what, patience=settings.patience
            )

        asked = self._clock.monotonic()
        info = await ask("INFO", {})
        if info.get("error", {}).get("err_code") == _NO_STREAM:
            info = await ask("CREATE", config)
            if info.get("error", {}).get("err_code") == _NAME_IN_USE:  # another node made it this very moment
                info = await ask("INFO", {})
        if "error" in info:
            raise BrokerUnavailable(f"JetStream refuses: {info['error'].get('description')}")
        for name in ("subjects", "allow_direct", "allow_msg_ttl", "allow_rollup_hdrs", "republish"):
            if info["config"].get(name) != config[name]:
                raise BrokerUnavailable(
                    f"the JetStream stream {config['name']!r} has {name}={info['config'].get(name)!r}, where "
                    f"{config[name]!r} is needed: choose another prefix, or a server of version 2.12 or later"
                )
        if connection.max_payload < MAX_PAYLOAD + _LINE + _HEADERS:
            logger.warning(
                "this NATS server takes messages of %d bytes; rtkit may send %d: set max_payload to 8MB in its "
                "configuration, or larger messages are refused",
                connection.max_payload,
                MAX_PAYLOAD + _LINE + _HEADERS,
            )
        self.replicas = info["config"]["num_replicas"]
        self.fence = "" if connection.info.get("cluster") else str(connection.info.get("server_id", ""))
        # Half of the way there: the answer was written somewhere between asking and now.
        self._ahead = _seconds(info["ts"]) - (asked + self._clock.monotonic()) / 2

    def now(self) -> float:
        """The time by the server's clock, so that nodes need not agree on theirs."""
        return self._clock.monotonic() + self._ahead

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Connection]:
        """A connection, once there is one; what goes wrong with it becomes an error of the contract."""
        try:
            if not self._settled.is_set():
                async with asyncio.timeout(self._settings.patience):
                    await self._settled.wait()
            if self._connection is None:
                raise NotSent("there is no connection now")
            yield self._connection
        except (NotSent, Lost, TimeoutError) as error:
            raise BrokerUnavailable(f"NATS cannot be reached: {error!r}") from error

    # -- storing

    def _check(self, size: int) -> None:
        """Refuse what the server would cut the connection for."""
        if self._connection is not None and size > self._connection.max_payload - _HEADERS:
            raise InvalidMessage(
                f"{size} bytes are more than this NATS server takes in one message; max_payload in its "
                f"configuration says how many, now {self._connection.max_payload}"
            )

    async def store(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None, ttl: float
    ) -> int:
        """Have JetStream store a message, and publish it; returns its sequence.

        :param ttl: seconds until the server forgets it by itself.
        :raises Overtaken: the condition in *headers* does not hold; nothing was stored.
        :raises InvalidMessage: it is larger than the server takes.
        """
        self._check(len(body))
        headers = {"Nats-TTL": str(max(1, int(ttl) + 1)), **(headers or {})}
        async with self._connected() as connection:
            try:
                answer = await connection.ask(subject, body, headers, patience=self._settings.patience)
            except (Lost, TimeoutError) as error:
                raise PublishUnknown("NATS did not say whether it was stored") from error
            if is_nobody(answer):
                # Nobody stores what comes there: somebody has deleted the stream. A new connection makes it again.
                await connection.aclose()
                raise BrokerUnavailable("the JetStream stream is gone, or has no leader now")
        found = json.loads(answer.data)
        refusal = found.get("error")
        if refusal is None:
            return int(found["seq"])
        if refusal.get("err_code") in _WRONG_SEQUENCE:
            raise Overtaken
        raise BrokerUnavailable(f"JetStream refuses: {refusal.get('description')}")

    async def purge(self, subject: str, before: int) -> None:
        """Give back the messages of a subject before a sequence."""
        await self._api("STREAM.PURGE", {"filter": subject, "seq": before})

    # -- reading

    async def last(self, subject: str) -> Stored | None:
        """The last message of a subject, asked of the leader: it has all that was acknowledged."""
        found = await self._api("STREAM.MSG.GET", {"last_by_subj": subject})
        if found is None:
            return None
        message = found["message"]
        body = base64.b64decode(message.get("data", ""))
        return Stored(int(message["seq"]), body, _seconds(message["time"]))

    async def after(self, subject: str, sequence: int, limit: int = _BATCH) -> list[Stored]:
        """Messages of a subject after a sequence, in their order; not all of them if there are many.

        A replica may answer, which lags: who knows how far there is something to read looks whether it is there.
        """
        question = {
            "seq": sequence + 1,
            "next_by_subj": subject,
            "batch": min(limit, _BATCH),
            "max_bytes": _BATCH_BYTES,
        }
        async with self._connected() as connection:
            answers = await connection.ask_for_many(
                f"$JS.API.DIRECT.GET.{self.subjects.stream}",
                json.dumps(question).encode(),
                patience=self._settings.patience,
                # The end has a status: 204 after the messages, 404 if there are none, 503 if nobody is there.
                last=lambda answer: "Status" in (answer.headers or {}),
            )
        if is_nobody(answers[-1]):
            raise BrokerUnavailable("the JetStream stream is gone, or has no leader now")
        return [stored(answer) for answer in answers[:-1]]

    async def barrier(self, connection: Connection) -> None:
        """When this returns, the server that stores and publishes knows of all subscriptions made before.

        In a cluster that is another server than ours. It learns of them by the same way as of this question.
        """
        await connection.ask_api(
            f"STREAM.MSG.GET.{self.subjects.stream}",
            {"last_by_subj": f"{self.subjects.stream}.in.none.none.none"},
            patience=self._settings.patience,
        )

    @asynccontextmanager
    async def using(self) -> AsyncGenerator[Connection]:
        """A connection, to subscribe with."""
        async with self._connected() as connection:
            yield connection

    async def _api(self, name: str, what: Mapping[str, Any]) -> dict[str, Any] | None:
        """Ask about our stream; None if there is no such message.

        :raises BrokerUnavailable: it is not there, does not answer, or refuses.
        """
        async with self._connected() as connection:
            found = await connection.ask_api(
                f"{name}.{self.subjects.stream}", what, patience=self._settings.patience
            )
            number = found.get("error", {}).get("err_code")
            if number == _NO_MESSAGE:
                return None
            if number == _NO_STREAM:
                await connection.aclose()  # somebody has deleted it; a new connection makes it again
            if "error" in found:
                raise BrokerUnavailable(f"JetStream refuses: {found['error'].get('description')}")
            return found
