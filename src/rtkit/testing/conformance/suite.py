"""What all suites stand on: how brokers are made, how time passes, and how their backend is taken away."""

from __future__ import annotations

import asyncio
import operator
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final

import pytest

from ...errors import BrokerUnavailable, PublishUnknown, Unavailable
from .sinks import Delivery, Node, RecordingSink

__all__ = ["HOOKS", "NOT_DONE", "UNKNOWN", "Suite", "provides"]

#: What a suite may be able to do to its backend, or says why it cannot.
HOOKS: Final = ("outage", "restart", "lose")

#: What a call may raise that was not carried out …
NOT_DONE: Final = BrokerUnavailable
#: … and one of which nobody knows.
UNKNOWN: Final = (BrokerUnavailable, PublishUnknown)

# Seconds between two tries of something that is to work again soon.
_RETRY: Final = 0.02


def provides(suite: type[Suite], hook: str) -> bool:
    """Whether a suite says how to do one of :data:`HOOKS`."""
    return getattr(suite, hook) is not getattr(Suite, hook)


class Suite:
    """Brokers on one backend, and what can be done to it."""

    pytestmark: ClassVar[Any] = pytest.mark.anyio

    #: Seconds after which something that has to come is given up.
    patience: ClassVar[float] = 5.0
    #: The unit of time in these tests, in seconds; leases last 10 of them. Small where time has to be waited for.
    tick: ClassVar[float] = 0.1
    #: The dedupe window the cluster was made with, in seconds; None if it is too long to wait for its end.
    dedupe_window: ClassVar[float | None] = None
    #: Seconds within which every call comes back, with an answer or an error, while the backend is away.
    bounded: ClassVar[float] = 10.0
    #: Seconds within which everything works again once the backend is back.
    recovery: ClassVar[float] = 20.0
    #: Which of ``outage``, ``restart`` and ``lose`` there are not, each with the reason. What they are needed for is
    #: reported as an expected failure.
    left_out: ClassVar[Mapping[str, str]] = {}

    def cluster(self) -> AbstractAsyncContextManager[Callable[[], Any]]:
        """Override this: yields a function that makes brokers on one backend, not open yet."""
        pytest.fail("a conformance suite says with cluster() how its brokers are made")

    async def advance(self, seconds: float) -> None:
        """Override this where time can be moved: let *seconds* pass for the brokers of the cluster."""
        await asyncio.sleep(seconds)

    # -- faults: each is overridden, or named in `left_out`. They are called while cluster() is entered.

    def outage(self) -> AbstractAsyncContextManager[None]:
        """Override this: within the block no broker of the cluster can reach the backend, which keeps all it has.

        When the block is entered, connections have been cut, and no new one can be made.
        """
        raise NotImplementedError

    async def restart(self) -> None:
        """Override this: the backend dies and comes back at the same place, with what it keeps through that."""
        raise NotImplementedError

    async def lose(self) -> None:
        """Override this: the same, but it comes back empty."""
        raise NotImplementedError

    def needs(self, hook: str) -> None:
        """A promise that cannot be tried without this hook is excused."""
        if not provides(type(self), hook):
            pytest.xfail(f"without {hook}(): {self.left_out.get(hook, 'it is not said why')}")

    # -- fixtures

    @pytest.fixture
    def anyio_backend(self) -> str:
        """Brokers are made for asyncio."""
        return "asyncio"

    @pytest.fixture
    def topic(self) -> str:
        """A topic of this test's own."""
        return f"conformance:{secrets.token_hex(8)}"

    @pytest.fixture
    async def make(self) -> AsyncIterator[Callable[[], Any]]:
        """Makes brokers on one backend."""
        async with self.cluster() as make:
            yield make

    @pytest.fixture
    async def nodes(self, make: Callable[[], Any]) -> AsyncIterator[tuple[Node, Node]]:
        """Two hubs of one cluster."""
        async with self.open(make) as first, self.open(make) as second:
            yield first, second

    @asynccontextmanager
    async def open(self, make: Callable[[], Any]) -> AsyncGenerator[Node]:
        """A broker, open for the length of the block."""
        broker, sink = make(), RecordingSink()
        await broker.open(sink)
        try:
            yield Node(broker, sink, self.patience)
        finally:
            await broker.aclose()

    async def subscribe(self, nodes: Iterable[Node], *topics: str) -> None:
        """Subscribe all of them."""
        for node in nodes:
            await node.broker.subscribe(topics)

    # -- for tests in which the backend goes away

    async def outcome(self, call: Callable[[], Any]) -> Any:
        """What a call returns, or the exception it raises; that it comes back at all is part of the promise."""
        task = asyncio.ensure_future(call())
        done, _ = await asyncio.wait([task], timeout=self.bounded)
        if not done:
            task.cancel()
            await asyncio.wait([task], timeout=self.bounded)
            pytest.fail(f"while the backend was away a call hung for {self.bounded} s")
        return task.exception() or task.result()

    async def refused(self, *calls: Callable[[], Any]) -> None:
        """While the backend is away, these say that nothing was done."""
        for found in await asyncio.gather(*(self.outcome(call) for call in calls)):
            assert isinstance(found, NOT_DONE), f"without a backend it came back with {found!r}"

    async def failed(self, *calls: Callable[[], Any]) -> list[Any]:
        """While the backend is away, these fail, and say what is known; returns what they raised."""
        raised = await asyncio.gather(*(self.outcome(call) for call in calls))
        for found in raised:
            assert isinstance(found, UNKNOWN), f"without a backend it came back with {found!r}"
        return raised

    async def again(self, call: Callable[[], Any]) -> Any:
        """Call until the backend is there again."""
        last: Unavailable | None = None
        try:
            async with asyncio.timeout(self.recovery):
                while True:
                    try:
                        return await call()
                    except Unavailable as error:
                        last = error
                    await asyncio.sleep(_RETRY)
        except TimeoutError:
            pytest.fail(f"the backend is back, but not for the broker: {last!r}")

    async def heard_again(self, nodes: Iterable[Node], topic: str) -> None:
        """Publish until all that are subscribed hear of it: subscriptions came back without any help."""
        nodes = list(nodes)
        end = b"again " + secrets.token_bytes(8)

        def heard() -> bool:
            return all(any(found.payload == end for found in node.sink.of(topic)) for node in nodes)

        try:
            async with asyncio.timeout(self.recovery):
                while not heard():
                    await self.again(lambda: nodes[0].broker.publish(topic, end))
                    await asyncio.sleep(_RETRY)
        except TimeoutError:
            pytest.fail("the backend is back, but a payload on a subscribed topic did not come any more")
        for node in nodes:
            node.sink.delivered = [found for found in node.sink.delivered if found.payload != end]

    async def interrupted(self, nodes: Iterable[Node], topic: str) -> None:
        """All of them are told that they may have missed something."""
        for node in nodes:
            patient, told = replace(node, patience=self.recovery), node.sink.interruptions
            await patient.until(
                partial(operator.contains, told, topic),
                "the backend was away, and nobody said that something may have been missed",
            )

    def deliveries(self, node: Node, topic: str, *without: bytes) -> list[Delivery]:
        """What a node was handed of a topic, but for some payloads."""
        return [found for found in node.sink.of(topic) if found.payload not in without]
