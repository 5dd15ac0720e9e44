"""What does it cost that a thousand members who read everything are told how far the others are?

    ./dev bench marks [--members 1000] [--rate 100] [--seconds 10] [--case marks room]

One room with history, in which *rate* messages a second are published. Each member gets all of them, and says once a
second that it has got and read what there was, as rtkit's SDKs do. ``marks`` is a room with receipts, in which all of
them ask to be told; ``room`` is the same room without, for comparison. Hub, broker and clients share one process: the
clients are pipes that count. So CPU is that of everything, and what receipts cost is the difference. No member may
get more than two frames of marks a second, and in the end it has to be known that all have read the last message;
else it ends with status 1. (Three in less than a second at the soonest is how they left: a loop that is late sends
together what was made one after the other.)
"""

import argparse
import asyncio
import json
import math
import time
from collections import Counter, deque
from typing import Any, Final

from rtkit import Credentials, Grant, History, Hub, Identity, Limits
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.features import Receipts
from rtkit.transports import Batch, Handshake, WebSocketTransport, joined

ROOM: Final = "crowd:1"
_MARKS: Final = b'"marks":{'


class CountingBroker(MemoryBroker):
    """Counts what it is asked to do for receipts."""

    def __init__(self) -> None:
        super().__init__(MemoryBackend())
        self.asked: Counter[str] = Counter()

    async def revise(self, key: str, changes: Any, **options: Any) -> Any:
        self.asked["revise"] += 1
        self.asked["entries revised"] += len(changes)
        return await super().revise(key, changes, **options)

    async def entries(self, key: str) -> Any:
        self.asked["entries"] += key.startswith("marks:")
        return await super().entries(key)

    async def revision(self, key: str) -> Any:
        self.asked["revision"] += key.startswith("marks:")
        return await super().revision(key)


class Member:
    """A client as little as can be: it looks at nothing but marks.

    :ivar shortest: seconds in which it got three frames of them.
    """

    buffered = 0

    def __init__(self, hub: Hub[Any], user: str) -> None:
        self.user = user
        self.frames = 0
        self.bytes = 0
        self.shortest = math.inf
        self.times: deque[float] = deque(maxlen=3)
        self.read: dict[str, int] = {}
        self.looks = False  # at what the frames say, too
        self.lost = ""
        self.transport = WebSocketTransport(self, max_frame=hub.max_frame)
        self.transport.drive(hub.connect(self.transport, Handshake()))

    def write(self, data: bytes) -> None:
        if _MARKS not in data:
            return
        for unit in data.splitlines():
            if b'"push"' in unit and _MARKS in unit:
                self.frames += 1
                self.bytes += len(unit)
                self.times.append(time.monotonic())
                if len(self.times) == 3:
                    self.shortest = min(self.shortest, self.times[2] - self.times[0])
                if self.looks:
                    self.read.update(json.loads(unit)["push"]["marks"].get("read", {}))

    def write_batch(self, batch: Batch) -> None:
        self.write(batch.form(joined))

    def pause_reading(self) -> None:
        """It sends little."""

    def resume_reading(self) -> None:
        """Likewise."""

    def close(self, code: int, reason: str) -> None:
        self.lost = f"{code} {reason}"
        asyncio.get_running_loop().call_soon(self.transport.lost, code, reason)

    def tell(self, *commands: dict[str, Any]) -> None:
        self.transport.message("\n".join(map(json.dumps, commands)))


async def by_token(credentials: Credentials) -> Identity[None]:
    return Identity(credentials.token or "nobody")


async def measure(case: str, args: argparse.Namespace) -> tuple[bool, float]:
    """One case: whether all was well, and the CPU seconds of a second."""
    broker = CountingBroker()
    hub = Hub(authenticate=by_token, broker=broker, limits=Limits(heartbeat=None, max_pending=1024))
    hub.rooms(
        "crowd:{x}",
        publishes=object,
        history=History(1000, ttl=600),
        grant=Grant(),
        receipts=Receipts() if case == "marks" else None,
    )
    async with hub:
        members: list[Member] = []
        for number in range(args.members):
            member = Member(hub, f"user{number:04}")
            asked = {"channel": ROOM, "marks": case == "marks"}
            member.tell(
                {"id": 1, "connect": {"token": member.user, "rt": {"v": 1}}}, {"id": 2, "subscribe": asked}
            )
            members.append(member)
            await asyncio.sleep(0)
        while (hub.statistics().totals or {}).get("joins", 0) < args.members:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        members[-1].looks = True
        broker.asked.clear()
        began, spent = time.monotonic(), time.process_time()
        said = marked = 0
        place: Any = None
        while (now := time.monotonic()) < began + args.seconds:
            for _ in range(said, int((now - began) * args.rate)):
                said += 1
                place = (await hub.publish(ROOM, f"message {said}")).position
            for number in range(marked, int((now - began) * args.members)):
                marked += 1
                if case == "marks" and place is not None:
                    mark(members[number % args.members], place)
            await asyncio.sleep(0.002)
        seconds = time.monotonic() - began
        spent = time.process_time() - spent
        frames = max(member.frames for member in members) / seconds
        size = sum(member.bytes for member in members) / len(members) / seconds
        asked_for = {what: count / seconds for what, count in sorted(broker.asked.items())}
        good = not any(member.lost for member in members)
        print(f"{case}: {args.members} members, {said / seconds:.0f} messages a second, {seconds:.1f} s")
        print(f"  CPU {spent / seconds:.1%} of a core")
        if case == "marks":
            assert place is not None
            for member in members:
                mark(member, place)
            await asyncio.sleep(3)
            shortest = min(member.shortest for member in members)
            known = members[-1].read
            behind = args.members - sum(known.get(member.user) == place.offset for member in members)
            good = good and frames <= 2.1 and not behind
            print(f"  {2 * marked / seconds:,.0f} marks a second by the members")
            print(
                f"  {frames:.2f} frames a second for each member, 3 in {shortest:.2f} s at the soonest; "
                f"{size / 1024:.1f} KiB/s"
            )
            print("  broker, each second: " + ", ".join(f"{n:.1f} {what}" for what, n in asked_for.items()))
            print(f"  in the end {behind} members were not known to have read everything")
    return good, spent / seconds


def mark(member: Member, place: Any) -> None:
    """As an SDK does: both kinds."""
    body = {"channel": ROOM, "epoch": place.epoch, "offset": place.offset}
    member.tell({"id": 3, "mark": {**body, "kind": "delivered"}}, {"id": 4, "mark": {**body, "kind": "read"}})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--case", nargs="+", choices=["marks", "room"], default=["room", "marks"])
    args = parser.parse_args()
    found = {case: asyncio.run(measure(case, args)) for case in args.case}
    if len(found) == 2:
        print(f"receipts cost {found['marks'][1] - found['room'][1]:.1%} of a core")
    return 0 if all(good for good, _ in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
