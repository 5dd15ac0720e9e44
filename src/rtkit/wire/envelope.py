"""What travels between nodes and lies in streams: a versioned envelope around a room's message (W5).

Everything that one node writes for another to read has a version, and all of it has the same one: envelopes, requests
between nodes, presence, sessions that moved, revocations. A release reads its own and the one before, and writes what
all nodes read (:mod:`rtkit.hub.versions`). Whoever cannot know who reads, such as a publisher outside of any hub,
writes the older.

To change a format: raise :data:`VERSION`, leave :data:`OLDEST` where it was, have :class:`Formats` read both, and write
either as it is told.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ..errors import BadUnit

__all__ = ["FORMATS", "OLDEST", "VERSION", "Envelope", "Formats", "Head", "Kind", "UnknownVersion"]

#: The newest version that this release reads and writes.
VERSION: Final = 1
#: The oldest: the one before, once there is one.
OLDEST: Final = 1


class UnknownVersion(BadUnit):
    """Another release has written this, and this one cannot read it.

    :ivar version: that it was written in.
    """

    def __init__(self, what: str, version: int, reads: str) -> None:
        super().__init__(f"{what} of version {version}; this release reads {reads}")
        self.version = version


class Kind(StrEnum):
    """What an envelope holds."""

    MESSAGE = "m"
    SIGNAL = "s"


class Envelope(msgspec.Struct, omit_defaults=True):
    """A message on its way to the members of a room.

    :param data: the message as clients will see it, in canonical JSON.
    :param time: when it was published, by the publishing node's clock.
    :param user: who published it, if a client did; likewise *client*.
    :param event: the name of a signal.
    :param skip: the client id that shall not get this signal.
    """

    v: int
    kind: Kind = Kind.MESSAGE
    data: Raw | UnsetType = UNSET
    time: float = 0.0
    user: str = ""
    client: str = ""
    event: str = ""
    skip: str = ""

    def encode(self) -> bytes:
        """As bytes, for a broker."""
        return _encoder.encode(self)

    @staticmethod
    def decode(payload: bytes) -> Envelope:
        """From a broker; as :meth:`Formats.open` of this release."""
        return FORMATS.open(payload)


class Versioned(Protocol):
    """What has a version."""

    @property
    def v(self) -> int: ...


class Head(msgspec.Struct):
    """What every version of every format has."""

    v: int


V = TypeVar("V", bound=Versioned)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)
_heads = msgspec.json.Decoder(Head)


class Formats:
    """What a release reads and writes for other nodes. Tests have others than this one's.

    :cvar oldest: the oldest version it reads; *newest* the newest.
    """

    oldest: int = OLDEST
    newest: int = VERSION

    def seal(self, envelope: Envelope, version: int) -> bytes:
        """An envelope as bytes, in a version that this release reads."""
        envelope.v = version
        return envelope.encode()

    def open(self, payload: bytes) -> Envelope:
        """The envelope in what came from a broker.

        :raises UnknownVersion: when a release has written it that is too new, or too old, for this one.
        :raises BadUnit: for what no release of rtkit has written.
        """
        return self.decode("an envelope", payload, _decoder.decode)

    def decode(
        self,
        what: str,
        payload: bytes,
        decode: Callable[[bytes], V],
        head: Callable[[bytes], Versioned] = _heads.decode,
    ) -> V:
        """What another node has written, in the form that it has in this release.

        :param what: it is, with its article, for the message of an error.
        :param decode: for the form of this release.
        :param head: for what all versions have, in case that the form is another version's.
        :raises UnknownVersion: when a release has written it that is too new, or too old, for this one.
        :raises BadUnit: for what no release of rtkit has written.
        """
        try:
            found = decode(payload)
        except (msgspec.DecodeError, RecursionError, ValueError):
            try:
                version = head(payload).v
            except (msgspec.DecodeError, RecursionError, ValueError):
                pass
            else:
                self.check(what, version)
            raise BadUnit(f"not {what} of rtkit") from None
        self.check(what, found.v)
        return found

    def check(self, what: str, version: int) -> None:
        """:raises UnknownVersion: for a version that this release does not read."""
        if not self.oldest <= version <= self.newest:
            reads = str(self.newest)
            if self.oldest < self.newest:
                reads = f"{self.oldest} to {reads}"
            raise UnknownVersion(what, version, reads)


#: Those of this release.
FORMATS: Final = Formats()
