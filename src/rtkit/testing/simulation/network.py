"""A network between machines: streams of bytes, as TCP makes them, over links that delay, cut, and go silent.

What TCP promises holds here too: bytes arrive in order, once, or the connection breaks. So a lost packet is a delay, a
partition is silence that ends with the partition or with somebody's patience, and a machine that lost its power says
nothing, while one whose process died resets its connections.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import math
import random
import socket as _socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from .loop import Machine, SimulatedLoop

__all__ = ["Link", "Network", "SimulatedTransport"]

_SEGMENT: Final = 16 * 1024
#: Seconds until a connection is given up that nobody answers, or that cannot get its bytes through.
_GIVE_UP: Final = 60.0
#: For what the network itself does: it is on no machine.
_nobody: Final = contextvars.Context()


@dataclass(frozen=True, slots=True)
class Link:
    """How it is between two machines.

    :param delay: seconds one way, drawn between these two for each piece.
    :param loss: the share of pieces that are lost and so come later, after TCP's retransmission.
    :param up: False: nothing gets through, in silence.
    """

    delay: tuple[float, float] = (0.001, 0.005)
    loss: float = 0.0
    up: bool = True

    def draw(self, chance: random.Random) -> float:
        """Seconds that a piece takes."""
        least, most = self.delay
        seconds = least + (most - least) * chance.random()
        retransmission = 0.2
        while self.loss and chance.random() < self.loss and retransmission < 20:
            seconds += retransmission
            retransmission *= 2
        return seconds


class Network:
    """All links, and who listens where.

    :param chance: draws delays.
    :ivar link: how it is between machines that nothing else was said about.
    :ivar window: bytes on their way to, or unread at, the other end of a connection: TCP's window.
    :ivar pieces: how many were sent so far, for what a run is compared by.
    """

    def __init__(self, loop: SimulatedLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.link = Link()
        self.connections: dict[SimulatedTransport, None] = {}
        self.window = 128 * 1024
        self.pieces = 0
        self.unsent: dict[SimulatedTransport, None] = {}  # closed here, and the other end has not heard of it
        self._links: dict[frozenset[str], Link] = {}
        self._listeners: dict[tuple[str, int], tuple[Machine, Callable[[], asyncio.BaseProtocol]]] = {}
        self._balanced: dict[str, tuple[str, ...]] = {}
        self._dead: list[SimulatedTransport] = []
        self._watched: set[Machine] = set()
        self._ports = itertools.count(40_000)
        self._spare, self._other = _socket.socketpair()
        loop.network = self

    def close(self) -> None:
        """At the end of the simulation."""
        self._spare.close()
        self._other.close()
        self.loop.network = None

    # -- how it is

    def between(self, one: str, other: str) -> Link:
        """The link of two machines."""
        return self._links.get(frozenset((one, other)), self.link)

    def set(self, one: str, other: str, link: Link | None = None, **changes: Any) -> None:
        """Change the link of two machines: to *link*, or what is said of the one there is."""
        self._links[frozenset((one, other))] = replace(link or self.between(one, other), **changes)
        self._flow(one, other)

    def partition(self, *sides: tuple[str, ...]) -> None:
        """Nothing gets through between the sides; within each it does."""
        for mine, theirs in itertools.combinations(sides, 2):
            for one, other in itertools.product(mine, theirs):
                self.set(one, other, up=False)

    def rejoin(self, *sides: tuple[str, ...]) -> None:
        """End what :meth:`partition` began, and leave other links as they are."""
        for mine, theirs in itertools.combinations(sides, 2):
            for one, other in itertools.product(mine, theirs):
                self.set(one, other, up=True)

    def heal(self) -> None:
        """All links as they were at first."""
        pairs = [tuple(pair) for pair in self._links]
        self._links.clear()
        for pair in pairs:
            self._flow(pair[0], pair[-1])

    def cut(self, one: str, other: str) -> int:
        """Break all connections of two machines, so that both hear of it; returns how many there were."""
        found = [each for each in self.connections if each.pair == {one, other}]
        for each in found:
            each.broken(ConnectionResetError("the simulated network cut this connection"))
        return len(found) // 2

    def _flow(self, one: str, other: str) -> None:
        if self.between(one, other).up:
            for each in [*self.connections, *self.unsent]:
                if each.pair == {one, other}:
                    # After a partition TCP's next retransmission may take a while.
                    self.loop.call_later(self.chance.random(), each.healed, context=_nobody)

    # -- connections

    def listen(self, machine: Machine, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Have connections to *port* of *machine* made by *factory*, until it crashes."""
        self._listeners[machine.name, port] = machine, factory
        self._watch(machine)

    def stop_listening(self, machine: Machine, port: int) -> None:
        """And from now on refused."""
        found = self._listeners.get((machine.name, port))
        if found is not None and found[0] is machine:
            del self._listeners[machine.name, port]

    def balance(self, name: str, *hosts: str) -> None:
        """Have connections to *name* go to one of *hosts* at random, among those where somebody listens."""
        self._balanced[name] = hosts

    def _host(self, name: str, port: int) -> str:
        hosts = self._balanced.get(name, (name,))
        return self.chance.choice([host for host in hosts if (host, port) in self._listeners] or hosts)

    def _watch(self, machine: Machine) -> None:
        if machine not in self._watched:
            self._watched.add(machine)
            machine.on_crash(lambda: self._crashed(machine))

    def _crashed(self, machine: Machine) -> None:
        for port in [port for name, port in self._listeners if name == machine.name]:
            self.stop_listening(machine, port)
        for each in [each for each in self.connections if each.machine is machine]:
            each.died()
            self._dead.append(each)

    def bury(self) -> None:
        """At the end: tell what is left of machines that crashed that their connections are gone."""
        for each in self._dead:
            each.buried()
        self._dead.clear()

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str | bytes, port: int, **options: Any
    ) -> tuple[SimulatedTransport, asyncio.BaseProtocol]:
        """What ``loop.create_connection`` does here.

        :raises ConnectionRefusedError: when nobody listens there.
        :raises TimeoutError: when no answer came.
        """
        if options.get("ssl") or options.get("sock"):
            raise OSError("the simulated network has no TLS and no ready-made sockets")
        host = self._host(host.decode("ascii") if isinstance(host, bytes) else host, port)
        machine = Machine.current()
        if machine is None:
            raise RuntimeError("connections are made by a machine: run this with Machine.spawn")
        deadline = self.loop.time() + _GIVE_UP
        for _ in range(2):  # there and back
            while not self.between(machine.name, host).up:
                if self.loop.time() > deadline:
                    raise TimeoutError(f"{host} does not answer")
                await asyncio.sleep(0.5 + self.chance.random())
            await asyncio.sleep(self.between(machine.name, host).draw(self.chance))
        found = self._listeners.get((host, port))
        if found is None:
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        theirs, make = found
        local = (machine.name, next(self._ports))
        mine = SimulatedTransport(self, machine, local, (host, port))
        peer = SimulatedTransport(self, theirs, (host, port), local)
        mine.peer, peer.peer = peer, mine
        for each in (mine, peer):
            self.connections[each] = None
            self._watch(each.machine)
        peer.on_machine(lambda: peer.begin(make()))
        protocol = factory()
        mine.begin(protocol)
        return mine, protocol


class _Socket:
    """What is asked of a transport's socket now and then."""

    family = _socket.AF_INET

    def __init__(self, transport: SimulatedTransport, spare: int) -> None:
        self._transport = transport
        self._spare = spare

    def fileno(self) -> int:
        """A descriptor that is never readable, or -1 when closed."""
        return -1 if self._transport.is_closing() else self._spare

    def setsockopt(self, *_: Any) -> None:
        """Whatever."""

    def getsockname(self) -> Any:
        return self._transport.local

    def getpeername(self) -> Any:
        return self._transport.remote


class SimulatedTransport(asyncio.Transport):
    """One end of a connection.

    What is written waits here until the window lets it go; what has arrived waits while reading is paused, and
    keeps the window shut. What the kernel would do goes on while the machine is frozen.
    """

    peer: SimulatedTransport

    def __init__(self, network: Network, machine: Machine, local: Any, remote: Any) -> None:
        super().__init__()
        self.network = network
        self.machine = machine
        self.local = local
        self.remote = remote
        self._protocol: Any = None
        self._outgoing: deque[bytes] = deque()
        self._size = 0
        self._under_way = 0  # bytes that the other end's program has not got yet
        self._arrival = 0.0
        self._flight: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()  # sent, not arrived
        self._withheld = 0  # of these, how many have met a link that is down
        self._arrived: deque[bytes] = deque()
        self._high, self._low = 64 * 1024, 16 * 1024
        self._choked = False
        self._reading = True
        self._scheduled = False
        self._closing = False
        self._eof_wanted = False
        self._eof_sent = False
        self._peer_ended = False
        self._lost = False
        self._error: Exception | None = None
        self._stuck_since = math.inf

    # -- the machine's side

    def on_machine(self, callback: Callable[..., object], *args: Any) -> None:
        """Call something soon, as the machine."""
        self.network.loop.call_soon(callback, *args, context=self.machine.context)

    def begin(self, protocol: Any) -> None:
        """Connected."""
        self._protocol = protocol
        protocol.connection_made(self)
        if self._lost:  # before the program could accept it
            self.on_machine(protocol.connection_lost, self._error)
        self._hand_over_soon()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peername``, ``sockname``, and something like a ``socket``."""
        if name == "socket":
            return _Socket(self, self.network._spare.fileno())
        return {"peername": self.remote, "sockname": self.local}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See :class:`asyncio.BaseTransport`."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See :class:`asyncio.BaseTransport`."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """See :class:`asyncio.BaseTransport`."""
        return self._closing or self._lost

    def is_reading(self) -> bool:
        """See :class:`asyncio.ReadTransport`."""
        return self._reading and not self.is_closing()

    def pause_reading(self) -> None:
        """See :class:`asyncio.ReadTransport`."""
        self._reading = False

    def resume_reading(self) -> None:
        """See :class:`asyncio.ReadTransport`."""
        self._reading = True
        self._hand_over_soon()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See :class:`asyncio.WriteTransport`."""
        self._high = high if high is not None else (64 * 1024 if low is None else 4 * low)
        self._low = low if low is not None else self._high // 4

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """See :class:`asyncio.WriteTransport`."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Bytes that TCP has not taken yet."""
        return self._size

    def can_write_eof(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> None:
        """See :class:`asyncio.WriteTransport`."""
        if self._eof_wanted:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.is_closing() or not data:
            return
        self._outgoing.append(bytes(data))
        self._size += len(data)
        self.transmit()
        if self._size > self._high and not self._choked:
            self._choked = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        """See :class:`asyncio.WriteTransport`."""
        self._eof_wanted = True
        self.transmit()

    def close(self) -> None:
        """What is written still goes out; nothing is read any more."""
        if self.is_closing():
            return
        self._closing = True
        self._eof_wanted = True
        self._reading = False
        self._arrived.clear()
        self.transmit()
        if not self._outgoing and not self._lost:
            self._end()
            self._lose(None)

    def abort(self) -> None:
        """At once."""
        self._closing = True
        self._lose(None)
        self._tell_peer(ConnectionResetError("connection reset by peer"))

    # -- the network's side

    @property
    def pair(self) -> set[str]:
        """The names of the machines at its ends."""
        return {self.machine.name, self.peer.machine.name}

    @property
    def _link(self) -> Link:
        return self.network.between(self.machine.name, self.peer.machine.name)

    def healed(self) -> None:
        """The link is up again: what was lost is sent again."""
        self.network.unsent.pop(self, None)
        again, self._withheld = self._withheld, 0
        for _ in range(again):
            self._schedule()
        self.transmit()

    def transmit(self) -> None:
        """Send what the window and the link let through."""
        loop, link = self.network.loop, self._link
        if self._lost:
            return
        if not link.up:
            if self._outgoing and self._stuck_since == math.inf:
                self._stuck_since = loop.time()
                loop.call_later(_GIVE_UP, self._give_up, loop.time(), context=_nobody)
            return
        self._stuck_since = math.inf
        while self._outgoing and self._under_way < self.network.window:
            data = self._outgoing.popleft()
            if len(data) > _SEGMENT:
                self._outgoing.appendleft(data[_SEGMENT:])
                data = data[:_SEGMENT]
            self._size -= len(data)
            self._under_way += len(data)
            self._send(self.peer._arrive, data)
        if self._choked and self._size <= self._low:
            self._choked = False
            self.on_machine(self._resume_writing)
        if not self._outgoing and self._eof_wanted:
            self._end()
        if not self._outgoing and self._closing:
            self._lose(None)

    def _end(self) -> None:
        if not self._eof_sent:
            self._eof_sent = True
            self._send(self.peer._arrive, b"")

    def _send(self, arrive: Callable[..., object], *args: Any) -> None:
        """One piece, after all that went before it."""
        self.network.pieces += 1
        self._flight.append((arrive, args))
        self._schedule()

    def _schedule(self) -> None:
        """Have a piece arrive: whichever is the first by then, so that none overtakes another."""
        loop = self.network.loop
        # Later than the one before by a little: timers of one moment run in any order.
        self._arrival = max(self._arrival + 1e-6, loop.time() + self._link.draw(self.network.chance))
        loop.call_at(self._arrival, self._deliver, context=_nobody)

    def _deliver(self) -> None:
        if not self._link.up or self._withheld:
            # It is lost, and TCP sends it again, in its turn, when something gets through.
            self._withheld += 1
            if self._lost:
                self.network.unsent[self] = None
            return
        arrive, args = self._flight.popleft()
        arrive(*args)

    def _give_up(self, since: float) -> None:
        if self._stuck_since == since and not self._lost:
            self.broken(TimeoutError("the connection timed out"))

    def _arrive(self, data: bytes) -> None:
        """A piece has come; an empty one is the end."""
        if self._lost or self._closing:
            if data and not self.machine.dark:
                self._tell_peer(ConnectionResetError("connection reset by peer"))
            return
        self._arrived.append(data)
        self._hand_over_soon()

    def _hand_over_soon(self) -> None:
        if self._arrived and self._reading and not self._scheduled and self._protocol is not None:
            self._scheduled = True
            self.on_machine(self._hand_over)

    def _hand_over(self) -> None:
        self._scheduled = False
        if not self._arrived or not self._reading or self.is_closing():
            return
        data = self._arrived.popleft()
        if not data:
            self._peer_ended = True
            if not self._protocol.eof_received():
                self.close()
            return
        self.network.loop.call_later(
            self._link.draw(self.network.chance), self._taken, len(data), context=_nobody
        )
        if isinstance(self._protocol, asyncio.BufferedProtocol):
            while data:
                buffer = memoryview(self._protocol.get_buffer(len(data)))
                count = min(len(buffer), len(data))
                buffer[:count] = data[:count]
                self._protocol.buffer_updated(count)
                data = data[count:]
        else:
            self._protocol.data_received(data)
        self._hand_over_soon()

    def _taken(self, size: int) -> None:
        """Our program has got so much: the other end may send on."""
        peer = self.peer
        peer._under_way -= size
        peer.transmit()

    def _resume_writing(self) -> None:
        if not self._lost:
            self._protocol.resume_writing()

    def _tell_peer(self, error: Exception) -> None:
        if self._link.up:
            self._send(self.peer.broken, error)

    def broken(self, error: Exception) -> None:
        """The connection is gone."""
        self._lose(error)

    def died(self) -> None:
        """The machine crashed: if only its process died, the kernel resets what was open."""
        self._lost = True
        self.network.connections.pop(self, None)
        if not self.machine.dark:
            self._tell_peer(ConnectionResetError("connection reset by peer"))

    def buried(self) -> None:
        """What :meth:`died` left out: the program never heard of it."""
        if self._protocol is not None:
            self.on_machine(self._protocol.connection_lost, None)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._closing = True
        self._error = error
        self._outgoing.clear()
        self._size = 0
        self.network.connections.pop(self, None)
        if self._protocol is not None:
            self.on_machine(self._protocol.connection_lost, error)

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<SimulatedTransport {self.local} to {self.remote} {state}>"
