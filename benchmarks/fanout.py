"""What does one delivery cost? CPU per recipient of a publication, from ``hub.publish`` to the host's pipe.

Pipes that throw everything away stand for the sockets, so this is rtkit's own share, without any kernel. Beside
it, interleaved in the same run, the naive way: encode the same message anew for each recipient and write it.

    ./dev bench fanout [--members 1000] [--publications 200] [--rounds 7]
"""

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass

import msgspec

from rtkit import Grant, History, Hub, anonymous
from rtkit.transports import Batch, Handshake, WebSocketTransport, joined


@dataclass
class Said:
    text: str


class Nowhere:
    """A pipe that counts what it is given."""

    buffered = 0

    def __init__(self) -> None:
        self.bytes = 0
        self.transport = WebSocketTransport(self, max_frame=65536)

    def write(self, data: bytes) -> None:
        self.bytes += len(data)

    def write_batch(self, batch: Batch) -> None:
        self.bytes += len(batch.form(joined))

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        asyncio.get_running_loop().call_soon(self.transport.lost, code, reason)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def main(members: int, publications: int, rounds: int) -> None:
    hub = Hub(authenticate=anonymous)
    hub.rooms("plain:{x}", publishes=Said, grant=Grant())
    hub.rooms("kept:{x}", publishes=Said, grant=Grant(), history=History(100, ttl=60))
    message = Said("x" * 150)
    async with hub:
        pipes: dict[str, list[Nowhere]] = {}
        for room in ("plain:1", "kept:1"):
            pipes[room] = [Nowhere() for _ in range(members)]
            for pipe in pipes[room]:
                transport = pipe.transport
                transport.drive(hub.connect(transport, Handshake()))
                transport.message(b'{"id":1,"connect":{"rt":{"v":1}}}')
                transport.message(b'{"id":2,"subscribe":{"channel":"%s"}}' % room.encode())
                await settle()
        naive = [Nowhere() for _ in range(members)]
        seconds: dict[str, list[float]] = {"plain:1": [], "kept:1": [], "naive": []}
        for _ in range(rounds):
            for room in ("plain:1", "kept:1"):
                began = time.process_time()
                for _ in range(publications):
                    await hub.publish(room, message)
                    await settle()
                seconds[room].append(time.process_time() - began)
            began = time.process_time()
            for offset in range(publications):
                for pipe in naive:
                    unit = {"push": {"channel": "plain:1", "pub": {"data": message, "offset": offset}}}
                    pipe.write(msgspec.json.encode(unit))
                await settle()
            seconds["naive"].append(time.process_time() - began)
    base = statistics.median(seconds["naive"])
    print(f"{members} members, {publications} publications, median of {rounds} rounds")
    for name, title in (
        ("plain:1", "room without history"),
        ("kept:1", "room with history"),
        ("naive", "encode per recipient"),
    ):
        median = statistics.median(seconds[name])
        each = median / members / publications * 1e6
        print(f"  {title:22}  {each:6.2f} us per delivery   {median / base:5.2f} x naive")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--publications", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    asyncio.run(main(args.members, args.publications, args.rounds))
