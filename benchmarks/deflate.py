"""What does compression cost and save: off, once for all members, or each member by itself? (T9)

    python benchmarks/deflate.py
    python benchmarks/deflate.py --members 100 --messages 50

A stream of chat messages goes to the members of a room, frame by frame as the server makes them, but for the sockets:
what is compared is the work of making frames, and their bytes. *Once* is our server's `deflate=True`. *Each* is what
servers do that answer the usual way: a compressor for each connection that remembers what it was sent, with the
window of 4 KiB that the websockets library takes unless told otherwise, and with zlib's own of 32 KiB. Memory is
resident memory of this process for so many compressors and decompressors, after they were used; without remembering
there are none.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from rtkit.hosting.frames import TEXT, deflated_text_frame, frame, text_frame

TALK = """
the quick look at my review please thanks sure maybe later ok great works for me see you tomorrow meeting room link
build failed again who has time for lunch today I think we should ship this now what about it never mind
"""
WORDS = TALK.split()


def chat(count: int, seed: int = 1) -> list[bytes]:
    """Messages of a room as its members are sent them: 3 to 25 words, by one of 50 people."""
    chance = random.Random(seed)
    made = []
    for n in range(count):
        user = f"user{chance.randrange(50)}"
        text = " ".join(chance.choice(WORDS) for _ in range(chance.randrange(3, 26)))
        said = {"event": "Said", "data": {"text": text}}
        info = {"user": user, "client": f"{chance.getrandbits(64):016x}"}
        pub = {"data": said, "offset": n + 1, "info": info}
        made.append(
            json.dumps({"push": {"channel": "chat:lobby", "pub": pub}}, separators=(",", ":")).encode()
        )
    return made


class Each:
    """A connection that compresses by itself."""

    def __init__(self, window: int, memory: int) -> None:
        self._made = zlib.compressobj(6, zlib.DEFLATED, -window, memory)
        self._read = zlib.decompressobj(-window)

    def frame(self, payload: bytes) -> bytes:
        data = self._made.compress(payload) + self._made.flush(zlib.Z_SYNC_FLUSH)
        return frame(0x40 | TEXT, data[:-4])

    def hear(self, payload: bytes) -> None:
        made = zlib.compressobj(6, zlib.DEFLATED, -12)
        self._read.decompress(made.compress(payload) + made.flush(zlib.Z_SYNC_FLUSH))


def shared(form: Callable[[list[bytes]], bytes], messages: list[bytes]) -> tuple[float, float]:
    """CPU seconds and bytes of a message, whose frame is made once."""
    began, size = time.process_time(), 0
    for message in messages:
        size += len(form([message]))
    return (time.process_time() - began) / len(messages), size / len(messages)


def apart(members: int, window: int, memory: int, messages: list[bytes]) -> tuple[float, float, float]:
    """CPU seconds of a message, bytes of a delivery, and bytes of memory of a connection."""
    gc.collect()
    before = resident()
    everybody = [Each(window, memory) for _ in range(members)]
    began, size = time.process_time(), 0
    for message in messages:
        for each in everybody:
            size += len(each.frame(message))
    cpu = (time.process_time() - began) / len(messages)
    for each in everybody:
        each.hear(messages[0] * 20)
    return cpu, size / len(messages) / members, (resident() - before) / members


def resident() -> int:
    """Bytes of resident memory of this process; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--members", type=int, default=1000)
    options.add_argument(
        "--messages", type=int, default=40, help="to all members; 50 times as many where one is enough"
    )
    chosen = options.parse_args()
    few, many = chat(chosen.messages), chat(50 * chosen.messages)
    rows = [
        ("off", *shared(text_frame, many), 0.0),
        ("once for all", *shared(deflated_text_frame, many), 0.0),
        ("each, 4 KiB", *apart(chosen.members, 12, 5, few)),
        ("each, 32 KiB", *apart(chosen.members, 15, 8, few)),
    ]
    size = sum(map(len, many)) / len(many)
    print(f"{size:.0f} bytes a message, {chosen.members} members")
    print(f"{'':14}{'bytes a delivery':>18}{'ms of CPU a message':>21}{'KB a connection':>17}")
    for name, cpu, sent, memory in rows:
        print(f"{name:14}{sent:18.0f}{cpu * 1000:21.3f}{memory / 1000:17.1f}")


if __name__ == "__main__":
    main()
