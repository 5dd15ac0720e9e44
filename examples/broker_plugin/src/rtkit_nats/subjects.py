"""Names: from a topic of the hub to subjects of NATS.

A subject is a row of tokens with dots between them. Everything of one topic lies below two tokens: its *place*, which
is what follows the topic's first colon, and its *kind*, which is what stands before it. ``room:chat:1`` has the kind
``room`` and the place ``chat:1``::

    rt.in.chat:1.room.log               what was appended to the topic
    rt.in.chat:1.room.pass              what was only published
    rt.in.chat:1.room.state=presence    the fields of the key presence:chat:1, when a revision is told on room:chat:1
    rt.out.chat:1.room                  what nodes subscribe to: JetStream publishes there what it has stored

Whatever is stored below ``in`` is published below ``out``, by one rule of the server (``republish``), which can only
copy tokens. That is why the state of a key is stored below the *topic* that a change is told on.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from urllib.parse import quote_from_bytes

__all__ = ["Subjects", "token"]

# A subject has a limit (4 KiB with everything in the same line), and long names are nothing to read anyway.
_LONGEST: Final = 200

# What may stand in a token as it is. A dot separates, * and > are wildcards, a space ends it; = and ~ are ours.
_READABLE: Final = ":/@!+,;()"


def token(name: str) -> str:
    """A name as one token of a subject. Different names have different tokens."""
    raw = name.encode("utf-8", "surrogatepass")
    text = quote_from_bytes(raw, safe=_READABLE).replace(".", "%2E").replace("~", "%7E")
    if len(text) > _LONGEST:
        return f"{text[:100]}~{blake2b(raw, digest_size=20).hexdigest()}"
    return text or "%"  # quoting never yields a single %


def _parts(name: str) -> tuple[str, str]:
    """Place and kind."""
    kind, colon, rest = name.partition(":")
    # x, which has no colon, and :x shall not be the same.
    return (token(rest), token(kind)) if colon else (token(name), "%%")


class Subjects:
    """The names of one cluster.

    :param prefix: the first token of all of them, and the name of the JetStream stream.
    """

    def __init__(self, prefix: str) -> None:
        self.stream = prefix
        self.everything = f"{prefix}.in.*.*.*"
        self.republished = f"{prefix}.out.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"
        self._in = f"{prefix}.in"
        self._out = f"{prefix}.out"

    def out(self, topic: str) -> str:
        """Where nodes hear of a topic."""
        place, kind = _parts(topic)
        return f"{self._out}.{place}.{kind}"

    def log(self, topic: str) -> str:
        """Where its stream is kept."""
        place, kind = _parts(topic)
        return f"{self._in}.{place}.{kind}.log"

    def passing(self, topic: str) -> str:
        """Where is published what is not kept."""
        place, kind = _parts(topic)
        return f"{self._in}.{place}.{kind}.pass"

    def state(self, key: str, topic: str | None = None) -> str:
        """Where the fields of a key are kept that are told on *topic*; None: that are told nobody."""
        place, kind = _parts(key)
        told = "=" if topic is None else _parts(topic)[1]
        return f"{self._in}.{place}.{told}.state={kind}"

    def state_anywhere(self, key: str) -> str:
        """All subjects that :meth:`state` has for a key."""
        place, kind = _parts(key)
        return f"{self._in}.{place}.*.state={kind}"
