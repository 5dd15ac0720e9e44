"""What things are called in Redis.

The topic or key ``room:chat:1`` has the *base* ``rt:{chat:1}:room``: the prefix, what follows the first colon, and
what stands before it. What is in braces decides where a Cluster keeps a key, so that all that belongs to
``chat:1``, of whatever kind, is on one server, where one script reaches it.

=========================  ================  ======================================================
key                        type              holds
=========================  ================  ======================================================
``<base>:m``               hash              a stream's meta: its epoch, its top, what it went through
``<base>:s``               stream            its entries
``<base>:k:<key>``         string            an idempotency key: where its entry stands
``<base>:f``               hash              fields of keyed state
``<base>:l``               sorted set        when their leases end
``<base>:v``               hash              how often they were revised
=========================  ================  ======================================================

The channel of publish and subscribe is the base itself. Channels know no databases, so that in another database than
0 its number follows: ``rt:{chat:1}:room:3``.

No two names become one. Braces, percent signs, control characters and lone surrogates are written as ``%7B``; a percent
sign that no such number follows stands for what has no letters: ``{%}`` for nothing after the colon, because Redis
passes over ``{}``; and ``:%`` for nothing before it, where a name without a colon has ``:``.
"""

from __future__ import annotations

from typing import Final, final

from ...errors import UsageError

__all__ = ["Names", "Place", "escape", "tag_of", "text_of", "to_bytes"]

# Topics whose names are remembered. More rooms than that are talked in at once on few nodes.
_REMEMBERED: Final = 20_000


def to_bytes(text: str) -> bytes:
    """A text as UTF-8. Lone surrogates, which UTF-8 does not have, become the bytes one would expect."""
    return text.encode("utf-8", "surrogatepass")


def text_of(data: bytes) -> str | None:
    """What :func:`to_bytes` made *data* of; None when it did not."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


_ESCAPES: Final = {
    code: "".join(f"%{byte:02X}" for byte in to_bytes(chr(code)))
    for code in (*b"{}%", *range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000))
}


def escape(name: str) -> str:
    """*name* without braces, control characters and what is no text; readable, and different for each name."""
    # Nearly all names, and the keys that a hub makes of a user's name, a line feed and a key, are done with this.
    quick = name.replace("%", "%25").replace("\n", "%0A")
    if quick.isprintable() and "{" not in quick and "}" not in quick:
        return quick
    return name.translate(_ESCAPES)


def tag_of(channel: bytes) -> str:
    """The part of a channel or key that decides where it lies: what is in its first braces."""
    begin = channel.index(b"{") + 1
    return channel[begin : channel.index(b"}", begin)].decode()


@final
class Place:
    """The names of one topic or key."""

    __slots__ = ("_base", "channel", "stream", "tag", "values")

    def __init__(self, base: str, tag: str, channel: bytes) -> None:
        self._base = base
        self.tag = tag
        self.channel = channel
        #: Meta and entries.
        self.stream = (f"{base}:m", f"{base}:s")
        #: Fields, leases, and the count of revisions.
        self.values = (f"{base}:f", f"{base}:l", f"{base}:v")

    def key(self, key: str) -> str:
        """Where the idempotency key *key* is remembered."""
        return f"{self._base}:k:{escape(key)}"

    def call(self, call: str) -> str:
        """The same for a call without such a key; no *key* leads here."""
        return f"{self._base}:k:%:{call}"

    def __repr__(self) -> str:
        return f"<Place {self._base}>"


@final
class Names:
    """Finds the names of topics and keys, and remembers those it found last.

    :param prefix: what they all begin with, so that several applications can share a server.
    :param database: the number of the database; only channels need to know.
    :raises ~rtkit.errors.UsageError: for a prefix that is empty, or has braces, spaces or control characters.
    """

    __slots__ = ("_end", "_places", "prefix")

    def __init__(self, prefix: str = "rt", database: int = 0) -> None:
        if not prefix or not prefix.isprintable() or any(character in "{}% " for character in prefix):
            raise UsageError(f"a prefix is a word without braces, percent signs and spaces, not {prefix!r}")
        self.prefix = prefix
        self._end = f":{database}" if database else ""
        self._places: dict[str, Place] = {}

    def __call__(self, name: str) -> Place:
        """The names of the topic, or key, *name*."""
        found = self._places.get(name)
        return self._find(name) if found is None else found

    def probe(self, tag: str) -> bytes:
        """The channel that a listener hears itself on; *tag* is printable, and that of no other listener."""
        return f"{self.prefix}:{{{escape(tag) or '%'}}}:%probe{self._end}".encode()

    def _find(self, name: str) -> Place:
        kind, colon, rest = name.partition(":")
        kind, rest = (escape(kind) or "%", rest) if colon else ("", name)
        tag = escape(rest) or "%"
        base = f"{self.prefix}:{{{tag}}}:{kind}"
        place = Place(base, tag, f"{base}{self._end}".encode())
        if len(self._places) >= _REMEMBERED:
            del self._places[next(iter(self._places))]
        self._places[name] = place
        return place

    def __repr__(self) -> str:
        return f"<Names {self.prefix}, {len(self._places)} remembered>"
