"""Resume tokens: who may take up which session again (C4). Pure, but for chance.

A token says: the client *c* of user *u*, last owned by node *n*, in its generation *g*; good until *e*. It is
signed, so that no other can be made, and proves nothing about who shows it: authentication comes first, and a token
of another user's is as good as none.

The generation counts how often a session was taken up. What a claim finds in the broker decides:

==================  =======================================================================================
in the broker       a claim with generation *g*
==================  =======================================================================================
nothing             is good: the session was never taken up before (a plain connect writes nothing)
*g*                 is good
*g* + 1             is good too: whoever took it up with this same token did not get the answer; or a second tab
                    shows a copy of it, and then the newer claim wins and the older is told ``replaced``
anything else       is stale: it makes a new session
==================  =======================================================================================
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

import msgspec

__all__ = ["Claim", "Owner", "OwnerHead", "may_take_up", "read_token", "write_token"]

_MAC: Final = 16
#: Longer ones are not looked at. (A user's name has no bound of its own but that of a frame.)
_LONGEST: Final = 4096


@dataclass(frozen=True, slots=True)
class Claim:
    """What a token says.

    :param client: the session's id.
    :param user: whose it is.
    :param node: that owned it when the token was made.
    :param generation: how often it had been taken up by then.
    :param expires_at: in seconds of the wall clock.
    """

    client: str
    user: str
    node: str
    generation: int
    expires_at: int


class Owner(msgspec.Struct, array_like=True, frozen=True):
    """What the broker keeps of a session that was taken up: its generation, and the node that has it."""

    v: int
    generation: int
    node: str


class OwnerHead(msgspec.Struct, array_like=True, frozen=True):
    """What every version of it begins with."""

    v: int


_claims = msgspec.msgpack.Decoder(tuple[int, str, str, str, int, int])
_encode = msgspec.msgpack.Encoder().encode


def _sign(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, b"rtkit resume\0" + body, hashlib.sha256)[:_MAC]


def write_token(secret: bytes, claim: Claim, *, version: int = 1) -> str:
    """The token that says this, in a version that all nodes read (W5)."""
    body = _encode((version, claim.client, claim.user, claim.node, claim.generation, claim.expires_at))
    return base64.urlsafe_b64encode(_sign(secret, body) + body).rstrip(b"=").decode()


def read_token(secret: bytes, token: str, *, now: float, reads: tuple[int, int] = (1, 1)) -> Claim | None:
    """What a token says; None for one that is not ours, is malformed, or too old.

    :param reads: the oldest and the newest version that are understood.
    """
    if len(token) > _LONGEST or not token.isascii():
        return None
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        return None
    mac, body = data[:_MAC], data[_MAC:]
    if not hmac.compare_digest(mac, _sign(secret, body)):
        return None
    try:
        version, client, user, node, generation, expires_at = _claims.decode(body)
    except msgspec.DecodeError:
        return None
    claim = Claim(client, user, node, generation, expires_at)
    return claim if reads[0] <= version <= reads[1] and now < claim.expires_at else None


def may_take_up(claim: Claim, found: Owner | None) -> int | None:
    """The generation that a good claim begins; None for a stale one. See the table above."""
    if found is None or found.generation == claim.generation:
        return claim.generation + 1
    if found.generation == claim.generation + 1:
        return found.generation + 1
    return None
