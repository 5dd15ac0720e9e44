"""A broker between the machines of a simulation, and all that can go wrong with one.

:class:`BrokerServer` stands for a Redis: the memory broker's state on a machine of its own, fenced as the Redis broker
fences (B6). Each hub has a :class:`SimulatedBroker`, a client of it: commands and deliveries take their time on the
link, get lost with it, and what was sent and not answered is unknown.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from typing import Any, Final, TypeVar

from ...brokers.base import ANYTHING, Anything, Appended, NewEntry, Revision, Sink
from ...brokers.memory import MemoryBackend
from ...errors import BrokerUnavailable, NotRunning, PublishUnknown, UsageError
from ...messages import Durability, History
from ...position import Position
from ...streams import StreamPage, locate, locate_back
from .loop import Machine, State
from .running import Simulation

__all__ = ["BrokerServer", "SimulatedBroker"]

logger = logging.getLogger("rtkit.testing.simulation.broker")

T = TypeVar("T")

_PATIENCE: Final = 2.0
_RECONNECT: Final = 0.25
_nobody: Final = Context()


class _Backend(MemoryBackend):
    """The memory broker's state, with a fence: another life of the server is another epoch."""

    def __init__(self, machine: Machine) -> None:
        self._made = 0
        self.life = 1
        self.fence = True
        self.lives: dict[str, int] = {}
        self.takeovers: dict[str, list[tuple[str, int]]] = {}
        super().__init__(clock=machine.clock, new_epoch=self._name)

    def _name(self) -> str:
        self._made += 1
        return f"e{self._made}"

    def _stream(self, topic: str, now: float) -> Any:
        stream = super()._stream(topic, now)
        if self.lives.setdefault(topic, self.life) != self.life and self.fence:
            before = self.takeovers.setdefault(topic, [])
            before.append((stream.epoch, stream.top))
            del before[:-16]
            stream.epoch = self._name()
        self.lives[topic] = self.life
        return stream

    def clear(self, topic: str) -> Position:
        """See :meth:`MemoryBackend.clear`."""
        self.takeovers.pop(topic, None)
        return super().clear(topic)

    def read(
        self, topic: str, since: Position | None, limit: int, reverse: bool, history: History | None
    ) -> StreamPage:
        """See :meth:`MemoryBackend.read`; positions of former epochs count up to where they were taken over."""
        page = super().read(topic, None, 0, False, history)
        stream, limit = self._streams[topic], max(0, limit)
        bounds: dict[str, Any] = {
            "epoch": page.epoch,
            "top": page.top,
            "floor": page.floor,
            "takeovers": self.takeovers.get(topic, ()),
        }
        if reverse:
            last, lost = locate_back(since, **bounds)
            start = min(last, max(page.floor, last - limit))
            entries = stream.after(start, last - start)[::-1] if start >= page.floor else ()
        else:
            start, lost = locate(since, **bounds)
            entries = stream.after(start, limit)
        return StreamPage(page.epoch, page.top, page.floor, start, entries, lost)


class BrokerServer:
    """A server for brokers, on a machine of its own, with its faults.

    :ivar lost: the share of published messages that are lost on their way to a hub.
    """

    def __init__(self, simulation: Simulation, machine: Machine) -> None:
        self.simulation = simulation
        self.machine = machine
        self.backend = _Backend(machine)
        self.up = True
        self.lost = 0.0
        self.ports: dict[_Port, None] = {}
        self.counts = {"commands": 0, "messages": 0, "lost": 0}

    # -- faults

    def stop(self) -> None:
        """It is away: connections are refused."""
        self.up = False
        for port in list(self.ports):
            port.drop()

    def start(self, *, empty: bool = False) -> None:
        """It is back, with its data or *empty*; another life of it in either case."""
        self.up = True
        self.another_life(self.backend if not empty else _Backend(self.machine))

    def reappear(self) -> None:
        """It was only out of reach: the same life of it goes on."""
        self.up = True

    def snapshot(self) -> Any:
        """Its data, for :meth:`fail_over`."""
        backend = self.backend
        return copy.deepcopy((backend._streams, backend._state, backend.lives, backend.takeovers))

    def fail_over(self, snapshot: Any) -> None:
        """A replica takes over that has what *snapshot* had: what was acknowledged since is lost."""
        self.stop()
        backend = self.backend
        backend._streams, backend._state, backend.lives, backend.takeovers = copy.deepcopy(snapshot)
        self.start()

    def another_life(self, backend: _Backend) -> None:
        """Go on with other data; the fence tells it from before."""
        backend._made, backend.life = self.backend._made + 1000, self.backend.life + 1
        backend.fence = self.backend.fence
        if backend.fence:
            for found in backend._state.values():
                if found.revisions:
                    found.epoch = backend._name()
        self.backend = backend

    # -- for its clients

    def execute(self, command: Callable[[_Backend], T]) -> T:
        """Run a command."""
        self.counts["commands"] += 1
        return command(self.backend)

    def __repr__(self) -> str:
        return f"<BrokerServer {'up' if self.up else 'away'}, {len(self.ports)} clients>"


class _Port:
    """The server's end of a client's connection; to the backend it is a memory broker."""

    def __init__(self, server: BrokerServer, client: SimulatedBroker) -> None:
        self.server = server
        self.client = client
        self.backend = server.backend
        self.topics: dict[str, None] = {}
        self.open = True
        self.deaf = False
        self._there = 0.0
        self._back = 0.0

    def request(self, arrive: Callable[..., object], *args: Any) -> None:
        """From the client to the server."""
        self._there = self._carry(self._there, self._arrived, arrive, args)

    def reply(self, arrive: Callable[..., object], *args: Any) -> None:
        """From the server to the client."""
        self._back = self._carry(self._back, self._arrived, arrive, args)

    def _carry(self, after: float, how: Callable[..., object], *args: Any) -> float:
        simulation = self.server.simulation
        link = simulation.network.between(self.client.machine.name, self.server.machine.name)
        when = max(after + 1e-6, simulation.now + link.draw(simulation.network.chance))
        simulation.loop.call_at(when, how, *args, context=_nobody)
        return when

    def _arrived(self, arrive: Callable[..., object], args: tuple[Any, ...]) -> None:
        link = self.server.simulation.network.between(self.client.machine.name, self.server.machine.name)
        if self.open and self.server.up and link.up:
            arrive(*args)

    def subscribe(self, topics: Sequence[str]) -> None:
        """On the server."""
        self.topics.update(dict.fromkeys(topics))
        self.backend.subscribe(self, topics)  # type: ignore[arg-type]

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """On the server."""
        for topic in topics:
            self.topics.pop(topic, None)
        self.backend.unsubscribe(self, topics)  # type: ignore[arg-type]

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        """Called by the backend: send it to the hub, if it does not get lost."""
        server = self.server
        server.counts["messages"] += 1
        if self.deaf or (server.lost and server.simulation.network.chance.random() < server.lost):
            server.counts["lost"] += 1
            return
        self.reply(self.client._delivered, self, topic, payload, position)

    def drop(self) -> None:
        """The connection is gone."""
        if self.open:
            self.open = False
            self.backend.unsubscribe(self, list(self.topics))  # type: ignore[arg-type]
            self.server.ports.pop(self, None)


class SimulatedBroker:
    """A hub's broker in a simulation: a client of a :class:`BrokerServer`.

    :ivar probes: whether it notices within 10 s that it hears nothing any more (B5).
    """

    def __init__(self, server: BrokerServer, machine: Machine) -> None:
        self.server = server
        self.machine = machine
        self.probes = True
        self._port: _Port | None = None
        self._sink: Sink | None = None
        self._topics: dict[str, None] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()
        machine.on_crash(self._crashed)

    def _crashed(self) -> None:
        if self._port is not None:
            self._port.drop()

    # -- life

    async def open(self, sink: Sink) -> None:
        """See :meth:`.Broker.open`."""
        if self._sink is not None:
            raise UsageError("this broker is open already")
        await self._connect()
        self._sink = sink
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def aclose(self) -> None:
        """See :meth:`.Broker.aclose`."""
        self._sink = None
        self._topics.clear()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        self._crashed()
        self._port = None

    async def _connect(self) -> None:
        link = self.server.simulation.network.between(self.machine.name, self.server.machine.name)
        await asyncio.sleep(link.draw(self.server.simulation.network.chance))
        if not link.up or not self.server.up or self.machine.state is State.BURIED:
            raise BrokerUnavailable("the simulated broker is away")
        self._port = _Port(self.server, self)
        self.server.ports[self._port] = None
        if self._topics:
            topics = list(self._topics)
            port = self._port
            await self._ask(lambda _: port.subscribe(topics), again=True)

    async def _keep(self) -> None:
        """Connect again when the connection is gone, and probe what seems to be there."""
        while True:
            port = self._port
            if port is None or not port.open:
                await asyncio.sleep(_RECONNECT)
                try:
                    await self._connect()
                except (BrokerUnavailable, PublishUnknown):
                    continue
                self._interrupt(list(self._topics))
                continue
            if self.probes:
                self._heard.clear()
                port.request(self._probe, port)
                if not await self._hear(port):
                    port.drop()
                    continue
            await asyncio.sleep(2.0)

    async def _hear(self, port: _Port) -> bool:
        """Whether a probe came back within 5 s; yes too if the connection has gone meanwhile."""
        for _ in range(20):
            await asyncio.sleep(0.25)
            if self._heard.is_set() or not port.open:
                return True
        return False

    def _probe(self, port: _Port) -> None:
        if not port.deaf:
            port.reply(self._on_machine, self._heard.set)

    def _on_machine(self, callback: Callable[..., object], *args: Any) -> None:
        self.server.simulation.loop.call_soon(callback, *args, context=self.machine.context)

    def _delivered(self, port: _Port, topic: str, payload: bytes, position: Position | None) -> None:
        self._on_machine(self._deliver, port, topic, payload, position)

    def _deliver(self, port: _Port, topic: str, payload: bytes, position: Position | None) -> None:
        if self._sink is not None and port is self._port and topic in self._topics:
            try:
                self._sink.deliver(topic, payload, position)
            except Exception:
                logger.exception("a hub failed on a payload of topic %r; it is told to read again", topic)
                self._interrupt((topic,))

    def _interrupt(self, topics: Sequence[str]) -> None:
        try:
            if self._sink is not None:
                self._sink.interrupted(topics)
        except Exception:
            logger.exception("a hub failed to note that it may have missed something")

    # -- commands

    async def _ask(self, command: Callable[[_Backend], T], *, again: bool) -> T:
        """Have the server do something.

        :param again: to do it twice is to do it once, so that it is only a pity when nobody knows.
        """
        port = self._port
        if port is None or not port.open:
            raise BrokerUnavailable("the simulated broker is away")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def execute() -> None:
            try:
                outcome: tuple[T | None, Exception | None] = (port.server.execute(command), None)
            except Exception as error:
                outcome = (None, error)
            port.reply(self._on_machine, settle, *outcome)

        port.request(execute)
        waited = 0.0
        while waited < _PATIENCE and port.open:
            done, _ = await asyncio.wait([answer], timeout=0.25)
            if done:
                return answer.result()
            waited += 0.25
        if answer.done():
            return answer.result()
        port.drop()
        if again:
            raise BrokerUnavailable("the simulated broker does not answer")
        raise PublishUnknown("the simulated broker does not answer")

    def _checked(self) -> None:
        if self._sink is None:
            raise NotRunning("this broker is not open")

    async def publish(self, topic: str, payload: bytes) -> None:
        """See :meth:`.Broker.publish`."""
        self._checked()
        await self._ask(lambda backend: backend.publish(topic, payload, None), again=False)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """See :meth:`.Broker.subscribe`."""
        self._checked()
        wanted = list(topics)
        self._topics.update(dict.fromkeys(wanted))
        port = self._port
        await self._ask(lambda _: None if port is None else port.subscribe(wanted), again=True)

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        """See :meth:`.Broker.unsubscribe`."""
        self._checked()
        unwanted = list(topics)
        for topic in unwanted:
            self._topics.pop(topic, None)
        port = self._port
        await self._ask(lambda _: None if port is None else port.unsubscribe(unwanted), again=True)

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
        """See :meth:`.StreamBroker.append`."""
        self._checked()
        return await self._ask(
            lambda backend: backend.append(topic, payload, history, key, expected), again=False
        )

    async def extend(
        self,
        topic: str,
        entries: Sequence[NewEntry],
        *,
        history: History,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Position:
        """See :meth:`.StreamBroker.extend`."""
        self._checked()
        return await self._ask(lambda backend: backend.extend(topic, entries, history, expected), again=False)

    async def read(
        self,
        topic: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
        history: History | None = None,
    ) -> StreamPage:
        """See :meth:`.StreamBroker.read`."""
        self._checked()
        return await self._ask(
            lambda backend: backend.read(topic, since, limit, reverse, history), again=True
        )

    async def clear(self, topic: str) -> Position:
        """See :meth:`.StreamBroker.clear`."""
        self._checked()
        return await self._ask(lambda backend: backend.clear(topic), again=False)

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        """See :meth:`.StateBroker.put`."""
        self._checked()
        return await self._ask(lambda backend: backend.put(key, field, value, ttl, expected), again=False)

    async def renew(self, key: str, fields: Iterable[str], *, ttl: float) -> Iterable[str]:
        """See :meth:`.StateBroker.renew`."""
        self._checked()
        names = list(fields)
        return await self._ask(lambda backend: backend.renew(key, names, ttl), again=True)

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        """See :meth:`.StateBroker.remove`."""
        self._checked()
        return await self._ask(lambda backend: backend.remove(key, field, expected), again=False)

    async def entries(self, key: str) -> Mapping[str, bytes]:
        """See :meth:`.StateBroker.entries`."""
        self._checked()
        return await self._ask(lambda backend: backend.entries(key), again=True)

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
        """See :meth:`.StateBroker.revise`."""
        self._checked()
        return await self._ask(
            lambda backend: backend.revise(key, changes, ttl, expected, topic, payload), again=False
        )

    async def revision(self, key: str) -> Revision:
        """See :meth:`.StateBroker.revision`."""
        self._checked()
        return await self._ask(lambda backend: backend.revision(key), again=True)

    async def positions(self, keys: Sequence[str]) -> Sequence[Position]:
        """See :meth:`.StateBroker.positions`."""
        self._checked()
        return await self._ask(lambda backend: [backend.position(key) for key in keys], again=True)

    def __repr__(self) -> str:
        return f"<SimulatedBroker on {self.machine.name} {'open' if self._sink is not None else 'closed'}>"
