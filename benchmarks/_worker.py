"""A swarm as a process of its own: it reads orders, lines of JSON, from stdin, and answers each with one on stdout.

Between orders its connections live on: pings are answered, messages counted and checked. It ends with its stdin.
"""

import gc
import json
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

from _load.frames import client_frame
from _load.proc import core, usage
from _load.state import Client, Piece
from _load.swarm import Swarm


class Publisher:
    """Sends numbered publications over one connection.

    The unit that members get is about as long whatever the wire: a peer is given it ready-made.
    """

    def __init__(self, swarm: Swarm, client: Client, number: int, channel: str, size: int) -> None:
        self.swarm = swarm
        self.client = client
        self.number = number
        self.seq = 0
        self._id = 10
        self._channel = json.dumps(channel)
        self._pad = "x" * size

    def publish(self, at: int) -> None:
        """Send the next one; *at* is what counts as its moment, monotonic ns."""
        self.seq += 1
        self._id += 1
        data = f'{{"p":{self.number},"s":{self.seq},"t":{at},"x":"{self._pad}"}}'
        if self.swarm.wire == "rtkit":
            unit = f'{{"id":{self._id},"publish":{{"channel":{self._channel},"data":{data}}}}}'
        else:
            info = '{"user":"anonymous","client":"ZIuY_LOU7P0DIUM1"}'
            unit = f'{{"push":{{"channel":{self._channel},"pub":{{"data":{data},"info":{info}}}}}}}'
        self.swarm.send(self.client, client_frame(unit.encode()))


class Worker:
    """Carries out orders, one after another."""

    def __init__(self) -> None:
        self.swarm: Swarm | None = None
        self.publishers: list[Publisher] = []
        self._input = b""
        self._orders: list[dict[str, Any]] = []

    def run(self) -> None:
        """Until stdin ends."""
        while True:
            if self.swarm is None:
                self._read()
            else:
                self.swarm.turn(1.0)
            while self._orders:
                order = self._orders.pop(0)
                do: Callable[..., dict[str, Any]] = getattr(self, "do_" + order.pop("do"))
                print(json.dumps(do(**order)), flush=True)

    def _read(self) -> None:
        data = os.read(0, 65536)
        if not data:
            sys.exit(0)
        *lines, self._input = (self._input + data).split(b"\n")
        self._orders += [json.loads(line) for line in lines]

    @property
    def _swarm(self) -> Swarm:
        assert self.swarm is not None, "the first order is start"
        return self.swarm

    def do_start(self, port: int, **options: Any) -> dict[str, Any]:
        """Which server; see :class:`Swarm`."""
        self.swarm = Swarm(("127.0.0.1", port), **options)
        self.swarm.epoll.register(0)
        self.swarm.others[0] = self._read
        return {"pid": os.getpid()}

    def do_join(self, rooms: list[str], window: int = 64, timeout: float = 120.0) -> dict[str, Any]:
        """Connect a member for each name of *rooms*."""
        swarm, began = self._swarm, time.monotonic()
        swarm.reset()
        joined = swarm.connect(rooms, window=window, timeout=timeout)
        seconds = time.monotonic() - began
        # What has come to stay is not to be looked at by the collector in the middle of a measurement.
        gc.collect()
        gc.disable()
        return {
            "wanted": len(rooms),
            "joined": len(joined),
            "failed": dict(swarm.failed),
            "seconds": seconds,
            "joining": spread(swarm.joining),
        }

    def do_publishers(self, numbers: list[int], channel: str, size: int) -> dict[str, Any]:
        """Connect publishers with these numbers, which are their own in all processes."""
        clients = self._swarm.connect([""] * len(numbers))
        self.publishers = [
            Publisher(self._swarm, client, number, channel, size)
            for client, number in zip(clients, numbers, strict=True)
        ]
        return {"connected": len(clients)}

    def do_flow(
        self, seconds: float, warmup: float, inflight: int, pid: int, server_core: int, load_core: int
    ) -> dict[str, Any]:
        """Keep so many publications in flight: the next goes out when all members have the oldest.

        Polls without ever sleeping, so that the server is never charged for waking us up.
        """
        swarm, publisher = self._swarm, self.publishers[0]

        def on_complete(piece: Piece) -> None:
            publisher.publish(time.monotonic_ns())

        swarm.on_complete = on_complete
        for _ in range(inflight):
            publisher.publish(time.monotonic_ns())
        self._spin(warmup)
        swarm.reset()
        before, mine, cores = usage(pid), usage(os.getpid()), (core(server_core), core(load_core))
        published = publisher.seq
        idle = self._spin(seconds)
        after, mine_after = usage(pid), usage(os.getpid())
        server_busy, load_busy = core(server_core), core(load_core)
        result = {
            "deliveries": swarm.deliveries,
            "received": swarm.received,
            "publications": publisher.seq - published,
            "latency": spread(swarm.latencies),
            "last": spread(swarm.last_latencies),
        }
        swarm.on_complete = None
        missing = self._settle([publisher.seq], 10.0)
        spent, load = after.since(before), mine_after.since(mine)
        return result | {
            "seconds": spent.at,
            "cpu": spent.total,
            "user": spent.user,
            "system": spent.system,
            "load": max(0.0, load.total - idle),
            # What others did on these two cores meanwhile: the noise.
            "foreign": max(0.0, server_busy.busy - cores[0].busy - spent.total)
            + max(0.0, load_busy.busy - cores[1].busy - load.total),
            "missing": missing,
            **self._health(),
        }

    def _spin(self, seconds: float) -> float:
        """Deal with what happens, and never sleep; returns the seconds in which nothing had happened."""
        turn, clock, idle = self._swarm.turn, time.monotonic, 0.0
        now = clock()
        until = now + seconds
        while now < until:
            happened, before = turn(0), now
            now = clock()
            if not happened:
                idle += now - before
        return idle

    def do_publish(self, rate: float, seconds: float) -> dict[str, Any]:
        """Publish so many a second, by turns, whatever becomes of them.

        What counts as a publication's moment is when it was due, so that a late publisher hides nothing.
        """
        swarm, began, sent, late = self._swarm, time.monotonic_ns(), 0, array("q")
        swarm.reset()
        total, step = round(rate * seconds), 1e9 / rate
        while sent < total:
            due = began + round(sent * step)
            now = time.monotonic_ns()
            if now < due:
                swarm.turn((due - now) / 1e9)
                continue
            late.append((now - due) // 1000)
            self.publishers[sent % len(self.publishers)].publish(due)
            sent += 1
        lasted = (time.monotonic_ns() - began) / 1e9
        until = time.monotonic() + 10
        answered = sent if swarm.wire == "rtkit" else 0
        while swarm.acks < answered and time.monotonic() < until:
            swarm.turn(0.1)
        return {
            "sent": {each.number: each.seq for each in self.publishers},
            "published": sent,
            "acks": swarm.acks,
            "late": spread(late),
            "seconds": lasted,
            **self._health(),
        }

    def do_reset(self) -> dict[str, Any]:
        """Begin to count anew."""
        self._swarm.reset()
        return {}

    def do_collect(self, expected: list[int], timeout: float = 10.0) -> dict[str, Any]:
        """Wait until every member has that many of each publisher; what it was like."""
        missing = self._settle(expected, timeout)
        swarm = self._swarm
        return {
            "members": sum(room.members for room in swarm.rooms.values()),
            "deliveries": swarm.deliveries,
            "received": swarm.received,
            "latency": spread(swarm.latencies),
            "histogram": histogram(swarm.latencies),
            "missing": missing,
            **self._health(),
        }

    def _settle(self, expected: list[int], timeout: float) -> int:
        """Wait for what is on its way; how many messages are missing, over all members."""
        swarm, until = self._swarm, time.monotonic() + timeout
        members = [client for client in swarm.clients.values() if client.room is not None]
        while True:
            missing = sum(
                sum(want - got for want, got in zip(expected, client.last, strict=True)) for client in members
            )
            if not missing or time.monotonic() > until:
                return missing
            turn_until = time.monotonic() + 0.05
            while time.monotonic() < turn_until:
                swarm.turn(0.05)

    def do_state(self) -> dict[str, Any]:
        """How things are, between measurements."""
        return {"members": sum(room.members for room in self._swarm.rooms.values()), **self._health()}

    def _health(self) -> dict[str, Any]:
        swarm = self._swarm
        return {
            "faults": swarm.fault_count,
            "examples": swarm.faults,
            "lost": dict(swarm.lost),
            "pongs": swarm.pongs,
        }


def spread(values: "array[int]") -> dict[str, float]:
    """Median, percentiles and maximum of microseconds, in milliseconds."""
    if not values:
        return {}
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": ordered[-1] / 1000}


def histogram(values: "array[int]") -> dict[str, int]:
    """Counts by value, to two or three digits, so that several processes' can be added up."""
    counts: Counter[int] = Counter()
    for value in values:
        digits = max(0, value.bit_length() - 8)
        counts[(value >> digits) << digits] += 1
    return {str(value): count for value, count in counts.items()}


if __name__ == "__main__":
    Worker().run()
