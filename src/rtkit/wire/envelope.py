"""What travels between nodes and lies in streams: a versioned envelope around a room's message (W5)."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ..errors import BadUnit

__all__ = ["VERSION", "Envelope", "Kind"]

#: The version this release writes. It reads this one and, once there is one, the one before.
VERSION = 1


class Kind(StrEnum):
    """What an envelope holds."""

    MESSAGE = "m"
    SIGNAL = "s"
    KICK = "k"


class Envelope(msgspec.Struct, omit_defaults=True):
    """A message on its way to the members of a room.

    :param data: the message as clients will see it, in canonical JSON.
    :param time: when it was published, by the publishing node's clock.
    :param user: who published it, if a client did; likewise *client*.
    :param event: the name of a signal.
    :param skip: the client id that shall not get this signal.
    :param code: why a user is taken out of the room (``KICK``); likewise *reason*. *client* is the only one of theirs
        that is, if there is one.
    """

    v: int
    kind: Kind = Kind.MESSAGE
    data: Raw | UnsetType = UNSET
    time: float = 0.0
    user: str = ""
    client: str = ""
    event: str = ""
    skip: str = ""
    code: int = 0
    reason: str = ""

    def encode(self) -> bytes:
        """As bytes, for a broker."""
        return _encoder.encode(self)

    @staticmethod
    def decode(payload: bytes) -> Envelope:
        """From a broker.

        :raises BadUnit: for what no release of rtkit has written, or a newer one did.
        """
        try:
            envelope = _decoder.decode(payload)
        except (msgspec.DecodeError, RecursionError, ValueError):
            raise BadUnit("not an envelope of rtkit") from None
        if envelope.v != VERSION:
            raise BadUnit(f"an envelope of version {envelope.v}; this release reads {VERSION}")
        return envelope


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)
