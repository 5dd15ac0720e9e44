"""What is written down: one record is one message of JetStream, and one act.

The first line of a message is JSON and says what it is, the rest are the payloads, one after another. Everything
stands in the body, because a header of NATS cannot hold just any text, and is limited.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rtkit.brokers import NewEntry
from rtkit.position import Position

__all__ = ["Bounds", "Damaged", "Record", "pack", "unpack"]

#: Count, bytes and seconds of a ``History``.
Bounds = tuple[int, int, float]


class Damaged(Exception):
    """A message on one of our subjects that is none of ours."""


def pack(head: dict[str, Any], payloads: tuple[bytes, ...]) -> bytes:
    """A message: what it is, and what it carries."""
    line = json.dumps({**head, "s": [len(payload) for payload in payloads]}, separators=(",", ":"))
    return b"\n".join((line.encode(), b"".join(payloads)))


def unpack(body: bytes) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    """The reverse.

    :raises Damaged: when it is no message of :func:`pack`.
    """
    line, newline, rest = body.partition(b"\n")
    try:
        head = json.loads(line)
        sizes = head.pop("s")
        payloads, begin = [], 0
        for size in sizes:
            payloads.append(rest[begin : begin + size])
            begin += size
        if begin != len(rest) or not newline:
            raise ValueError("its sizes do not add up")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"a foreign message of {len(body)} bytes: {error}") from error
    return head, tuple(payloads)


@dataclass(frozen=True, slots=True)
class Record:
    """One act upon a topic's stream: some entries were appended, or none, and what held from then on.

    :param epoch: of the stream from here on.
    :param first: the offset of the first entry; of a record without entries, that the next one will have.
    :param entries: what was appended.
    :param bounds: what the stream was to be trimmed to; None for what was said last.
    :param takeovers: former epochs that the stream went through without losing what it had up to then; see
        :func:`rtkit.streams.locate`.
    :param fence: which life of the server it was written in; see :class:`~rtkit_nats.link.Link`.
    :param before: the JetStream sequence of the topic's record before; 0 for the first.
    """

    epoch: str
    first: int
    entries: tuple[NewEntry, ...] = ()
    bounds: Bounds | None = None
    takeovers: tuple[tuple[str, int], ...] = ()
    fence: str = ""
    before: int = 0

    @property
    def end(self) -> Position:
        """Where the stream stands after it."""
        return Position(self.epoch, self.first + len(self.entries) - 1)

    @property
    def size(self) -> int:
        """Bytes of payloads."""
        return sum(len(entry.payload) for entry in self.entries)

    def encode(self) -> bytes:
        """The message."""
        head: dict[str, Any] = {"e": self.epoch, "n": self.first, "f": self.fence, "p": self.before}
        if any(entry.key is not None for entry in self.entries):
            head["k"] = [entry.key for entry in self.entries]
        if self.bounds is not None:
            head["b"] = self.bounds
        if self.takeovers:
            head["t"] = self.takeovers
        return pack(head, tuple(entry.payload for entry in self.entries))

    @classmethod
    def decode(cls, body: bytes) -> Record:
        """What a message says.

        :raises Damaged: when it is no record.
        """
        head, payloads = unpack(body)
        try:
            keys = head.get("k") or [None] * len(payloads)
            count, size, ttl = head.get("b") or (0, 0, 0.0)
            return cls(
                epoch=str(head["e"]),
                first=int(head["n"]),
                entries=tuple(NewEntry(payload, key) for payload, key in zip(payloads, keys, strict=True)),
                bounds=(int(count), int(size), float(ttl)) if "b" in head else None,
                takeovers=tuple((str(epoch), int(offset)) for epoch, offset in head.get("t", ())),
                fence=str(head["f"]),
                before=int(head["p"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"a foreign record: {error}") from error
