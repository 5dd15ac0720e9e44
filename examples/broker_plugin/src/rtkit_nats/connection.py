"""One connection to a NATS server, from its beginning to its end; :mod:`.link` makes the next one.

nats-py can reconnect by itself. Here it must not: it would send what it had buffered long after the caller was told
that it failed, would leave those who wait for an answer waiting, and gives up for good on some errors. A connection
that ends here fails all who wait on it, at once, and whoever comes next finds a new one.

What else has to be known of nats-py 2.16:

- While its queue is full, ``publish`` and ``subscribe`` wait, and *swallow a cancellation* that comes then. With a
  queue and a buffer without bounds they do not wait at all, so that there is nothing to cancel. What bounds them is
  that everybody here waits for an answer before going on.
- ``close`` cancels its tasks and does not wait for them; for a peer that has stopped reading it does, for ever; and
  when the socket fails meanwhile, it is left half done, and neither ``closed_cb`` nor anybody else is told. So the
  end of a connection is the end of the task that reads. To see it takes attributes that are not public.
- Each subscription has a task of its own. That is what a topic costs a node.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error, SlowConsumerError

__all__ = ["Connection", "Lost", "NotSent"]

logger = logging.getLogger("rtkit_nats")

#: Seconds between two pings, of which two may be unanswered: a peer that is gone without a word is noticed.
PING_INTERVAL: Final = 5

#: Seconds for a farewell.
CLOSING: Final = 1.0

#: Payloads of one subscription that may wait for this process, before nats-py drops one.
PENDING: Final = 64 * 1024
PENDING_BYTES: Final = 128 * 1024 * 1024


class Lost(Exception):
    """The connection ended while an answer was waited for."""


class NotSent(Exception):
    """Nothing was handed to the network."""


class Connection:
    """See the module. Made by :meth:`connect`.

    :ivar lost: done when it has ended.
    """

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = Client()
        self._answers: dict[str, asyncio.Queue[Msg | None]] = {}
        self._inbox = ""
        self._serial = 0
        self._dropped: Callable[[Subscription], None] | None = None

    @classmethod
    async def connect(
        cls,
        servers: Sequence[str],
        options: Mapping[str, Any],
        *,
        patience: float,
        dropped: Callable[[Subscription], None],
    ) -> Connection:
        """Connect to one of the servers.

        :param options: of ``nats.connect``, for those who need more than a URL can say.
        :param dropped: called with the subscription of which nats-py had to drop a payload.
        :raises OSError: nobody is there, or does not answer within *patience* seconds; ``nats.errors.Error`` likewise.
        """
        self = cls()
        self._dropped = dropped
        ours: dict[str, Any] = {
            "name": "rtkit",
            "connect_timeout": patience,
            "ping_interval": PING_INTERVAL,
            **options,
            "servers": list(servers),
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "error_cb": self._on_error,
            # No bounds, so no waiting, so no swallowed cancellation: see above.
            "flusher_queue_size": 0,
            "pending_size": 0,
        }
        try:
            async with asyncio.timeout(patience):
                await self._client.connect(**ours)
                for task in self._parts():
                    task.add_done_callback(self._part_ended)
                self._inbox = self._client.new_inbox()
                await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def aclose(self) -> None:
        """End it, in bounded time, and leave nothing behind. Whoever waits for an answer gets :class:`Lost`."""
        client = self._client
        tasks = {task for task in self._parts() if not task.done()}
        for subscription in client._subs.values():
            task: asyncio.Task[None] | None = subscription._wait_for_msgs_task  # its annotation says None
            if task is not None:
                tasks.add(task)
        try:
            async with asyncio.timeout(CLOSING):
                await client.close()
        except (OSError, Error, TimeoutError, AssertionError) as error:  # the last: it had not even begun
            logger.debug("closing a connection: %r", error)
        # What that has not done, because it failed half-way, or had done so before.
        writer = getattr(client._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING)
        self._end()

    def _parts(self) -> list[asyncio.Task[Any]]:
        """The tasks of the client that live as long as the connection."""
        client = self._client
        parts = (client._reading_task, client._flusher_task, client._ping_interval_task)
        return [task for task in parts if task is not None]

    def _part_ended(self, task: asyncio.Task[Any]) -> None:
        # Its exception is looked at: nobody else does.
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("NATS: %r", error)
        self._end()

    # -- what the server said of itself

    @property
    def max_payload(self) -> int:
        """Bytes that one message may have, headers included."""
        return self._client.max_payload

    @property
    def info(self) -> Mapping[str, Any]:
        """The server's greeting. nats-py has no public name for it."""
        return self._client._server_info

    @property
    def servers(self) -> list[str]:
        """Those it was told of, and those the server told of."""
        return [f"{uri.scheme}://{uri.hostname}:{uri.port}" for uri in self._client.servers]

    # -- asking

    async def ask(
        self, subject: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, patience: float
    ) -> Msg:
        """Send a message, and return the answer.

        :raises NotSent: nothing was sent.
        :raises Lost: the connection ended, and the answer with it.
        :raises TimeoutError: nobody has answered in time.
        """
        return (await self.ask_for_many(subject, body, headers, patience=patience, last=lambda answer: True))[
            0
        ]

    async def ask_for_many(
        self,
        subject: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        patience: float,
        last: Callable[[Msg], bool],
    ) -> list[Msg]:
        """Send a message, and return the answers, up to and with the one that is the last.

        :param patience: seconds to wait for each.
        """
        self._serial += 1
        name = f"{self._serial:x}"
        answers = self._answers[name] = asyncio.Queue()
        found: list[Msg] = []
        try:
            if self.lost.done():
                raise NotSent("the connection has ended")
            try:
                await self._client.publish(
                    subject, body, reply=f"{self._inbox}.{name}", headers=dict(headers) if headers else None
                )
            except Error as error:
                raise NotSent(f"{error!r}") from error
            while True:
                async with asyncio.timeout(patience):
                    answer = await answers.get()
                if answer is None:
                    raise Lost("the connection ended before the answer came")
                found.append(answer)
                if last(answer):
                    return found
        finally:
            del self._answers[name]

    async def ask_api(self, name: str, what: Mapping[str, Any], *, patience: float) -> dict[str, Any]:
        """Ask JetStream's API.

        :return: its answer, which may hold an ``error``.
        """
        answer = await self.ask(f"$JS.API.{name}", json.dumps(what).encode(), patience=patience)
        if is_nobody(answer):
            raise NotSent("no JetStream there")
        found: dict[str, Any] = json.loads(answer.data)
        return found

    async def _on_answer(self, message: Msg) -> None:
        answers = self._answers.get(message.subject.rpartition(".")[2])
        if answers is not None:
            answers.put_nowait(message)

    # -- listening

    async def listen(self, subject: str, deliver: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Subscribe. It is not certain yet that the server knows: ask it something afterwards, by this connection.

        :raises NotSent: the connection has ended.
        """
        try:
            return await self._client.subscribe(
                subject, cb=deliver, pending_msgs_limit=PENDING, pending_bytes_limit=PENDING_BYTES
            )
        except Error as error:
            raise NotSent(f"{error!r}") from error

    @staticmethod
    async def ignore(subscription: Subscription) -> None:
        """End that; harmless when its connection has ended."""
        try:
            await subscription.unsubscribe()
        except Error as error:
            logger.debug("unsubscribing: %r", error)

    # -- what nats-py tells

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, SlowConsumerError) and self._dropped is not None:
            self._dropped(error.sub)
        else:
            logger.info("NATS: %r", error)

    def _end(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        for answers in self._answers.values():
            answers.put_nowait(None)


def is_nobody(answer: Msg) -> bool:
    """Whether the server says that nobody listens where the question went."""
    return (answer.headers or {}).get("Status") == "503" and not answer.data
