"""What lies in the broker: an entry for each client of a room, and what nodes tell each other of changes.

Keys, fields and topics, all of them for this feature alone:

=================================  =============  ===============================================================
key                                field          value
=================================  =============  ===============================================================
``presence:<room>``                client id      an :class:`Entry`
``presence-rooms:<life>``          room           nothing: where that life of a node has entries
``presence-lives:all``             life           nothing: which lives have entries anywhere
``presence-reaping``               life           the node that takes away what a dead life has left
topic ``\\0presence:<room>``                       a :class:`Notice`, published with each revision of the first
=================================  =============  ===============================================================

A *life* is ``<node>/<incarnation>``; it is worth as much as the node's lease (:mod:`rtkit.hub.lease`). The index is
written before the first entry and removed after the last, so that what it says is never too little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from ...wire.envelope import FORMATS, Formats
from .roster import Present

__all__ = [
    "LIVES",
    "LIVES_TOPIC",
    "REAPING",
    "decode_entry",
    "decode_notice",
    "encode_entry",
    "encode_notice",
    "index_of",
    "key_of",
    "life_of",
    "topic_of",
]

LIVES: Final = "presence-lives:all"
#: Nobody listens: that a life is put down is a revision, so that the count of :data:`LIVES` has an epoch.
LIVES_TOPIC: Final = "\0presence-lives:all"
REAPING: Final = "presence-reaping"


def key_of(room: str) -> str:
    """The key of a room's entries."""
    return f"presence:{room}"


def topic_of(room: str) -> str:
    """The topic of a room's notices. It begins with NUL, so that it is no room's (W4)."""
    return f"\0presence:{room}"


def index_of(life: str) -> str:
    """The key of the rooms in which a life of a node has entries."""
    return f"presence-rooms:{life}"


def life_of(node: str, incarnation: str) -> str:
    """The name of one life of a node."""
    return f"{node}/{incarnation}"


class Entry(msgspec.Struct, omit_defaults=True):
    """A client in a room; the field it lies in is the client's id (W5)."""

    v: int
    user: str
    node: str
    life: str
    generation: int = 0
    meta: Raw = Raw(b"{}")


class Notice(msgspec.Struct, omit_defaults=True):
    """What a revision has changed."""

    v: int
    there: dict[str, Entry] = {}
    gone: list[str] = []


class _NoticeOut(msgspec.Struct, omit_defaults=True):
    v: int
    there: dict[str, Raw] = {}
    gone: list[str] = []


_encode: Final = msgspec.json.Encoder().encode
_ENTRY: Final = "a presence entry"
_entries: Final = msgspec.json.Decoder(Entry)
_notices: Final = msgspec.json.Decoder(Notice)


def encode_entry(present: Present, version: int) -> bytes:
    """As it lies in the broker, in a version that all nodes read (W5)."""
    return _encode(
        Entry(
            version,
            present.user,
            present.node,
            present.incarnation,
            present.generation,
            Raw(present.meta),
        )
    )


def decode_entry(client: str, value: bytes, formats: Formats = FORMATS) -> Present:
    """From the broker.

    :param formats: what this release reads.
    :raises BadUnit: for what no release of rtkit has written, or a newer one did.
    """
    return _present(client, formats.decode(_ENTRY, value, _entries.decode))


def encode_notice(changes: Mapping[str, bytes | None], version: int) -> bytes:
    """Of encoded entries, by client; None is gone."""
    there = {client: Raw(value) for client, value in changes.items() if value is not None}
    return _encode(_NoticeOut(version, there, [client for client, value in changes.items() if value is None]))


def decode_notice(payload: bytes, formats: Formats = FORMATS) -> dict[str, Present | None]:
    """The changes that a notice tells of.

    :param formats: what this release reads.
    :raises BadUnit: for what no release of rtkit has written, or a newer one did.
    """
    notice = formats.decode("a presence notice", payload, _notices.decode)
    changes: dict[str, Present | None] = dict.fromkeys(notice.gone)
    for client, entry in notice.there.items():
        formats.check(_ENTRY, entry.v)
        changes[client] = _present(client, entry)
    return changes


def _present(client: str, entry: Entry) -> Present:
    return Present(client, entry.user, bytes(entry.meta), entry.node, entry.life, entry.generation)
