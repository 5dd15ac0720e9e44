"""Publications and pushes as the wire shows them, encoded once for everybody (W2)."""

from __future__ import annotations

from typing import Final

from msgspec import UnsetType

from ..wire import ClientInfo, Envelope, Publication, Push, Reply, UnsubscribePush, dumps

__all__ = ["HIGH_WATER", "REPLY_BYTES", "Prepared", "publication", "unsubscribe_unit"]

#: Bytes of publications in one reply. The rest of a long recovery follows as pushes; of a history, in more pages.
REPLY_BYTES: Final = 256 * 1024


#: Bytes handed to a transport at once; more waits in the outbox, where policies can act on it.
HIGH_WATER: Final = 64 * 1024


class Prepared:
    """One publication on its way to many members: encoded once for each form somebody needs (W2)."""

    __slots__ = ("_base", "_rt", "channel", "envelope", "offset")

    def __init__(self, channel: str, envelope: Envelope, offset: int) -> None:
        self.channel = channel
        self.envelope = envelope
        self.offset = offset
        self._base: bytes | None = None
        self._rt: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of the message itself."""
        data = self.envelope.data
        return 0 if isinstance(data, UnsetType) else len(data)

    def unit(self, rt: bool) -> bytes:
        """The push unit, for rtkit's own clients or for any."""
        if rt:
            if self._rt is None:
                self._rt = self._encode(True)
            return self._rt
        if self._base is None:
            self._base = self._encode(False)
        return self._base

    def _encode(self, rt: bool) -> bytes:
        return dumps(Reply(push=Push(channel=self.channel, pub=publication(self.envelope, self.offset, rt))))


def publication(envelope: Envelope, offset: int, rt: bool) -> Publication:
    """A message as the wire shows it; ``time`` is rtkit's own addition."""
    info = ClientInfo(envelope.user, envelope.client) if envelope.user else None
    found = Publication(envelope.data, offset, info)
    if rt:
        found.time = envelope.time
    return found


def unsubscribe_unit(channel: str, code: int, reason: str) -> bytes:
    """The push that takes a client out of a room."""
    return dumps(Reply(push=Push(channel=channel, unsubscribe=UnsubscribePush(code, reason))))
