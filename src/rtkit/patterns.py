"""Names of room families: ``chat:{room}``, ``tenant:{tenant}:doc:{path*}``.

``{x}`` stands for one or more characters other than ``:``; ``{rest*}``, allowed only at the end, for one or more
of any. Values are percent-encoded, so that any user id fits. When several patterns match a name, the one with
the longest literal prefix wins; two patterns with equally long prefixes that share a name are ambiguous, and
refused when they are declared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from .errors import DeclarationError, UsageError

__all__ = ["Pattern"]

_PIECE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\*?)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Steps of the tiny automaton that decides whether two patterns share a name.
_WILD, _REST = "\x01", "\x02"


class Pattern:
    """A parsed pattern.

    :param text: the pattern.
    :raises DeclarationError: when it cannot be a pattern; the message says why.
    """

    __slots__ = ("_segments", "_steps", "names", "prefix", "text")

    def __init__(self, text: str) -> None:
        if not text or _CONTROL.search(text):
            raise DeclarationError(f"a room pattern is text without control characters, not {text!r}")
        self.text = text
        self.names: tuple[str, ...] = ()
        steps, at = "", 0
        for piece in _PIECE.finditer(text):
            literal = self._literal(text[at : piece.start()])
            if at and not literal:
                raise DeclarationError(f"{text!r}: two placeholders side by side cannot be told apart")
            name, star = piece.groups()
            if name in self.names:
                raise DeclarationError(f"{text!r}: the name {name!r} is used twice")
            if star and piece.end() != len(text):
                raise DeclarationError(f"{text!r}: {{{name}*}} is allowed only at the end")
            self.names += (name,)
            steps += literal + (_REST if star else _WILD)
            at = piece.end()
        literal = self._literal(text[at:])
        self._steps = steps + literal
        # A placeholder never holds a colon, so that each piece between colons stands for itself.
        self._segments = tuple(_Segment(segment) for segment in text.split(":"))
        self.prefix = text.split("{", 1)[0]

    def _literal(self, literal: str) -> str:
        if "{" in literal or "}" in literal:
            raise DeclarationError(
                f"{self.text!r}: braces only enclose a name, as in 'chat:{{room}}' or, at the end, '{{rest*}}'"
            )
        return literal

    def match(self, name: str) -> Mapping[str, str] | None:
        """The placeholders' values, decoded; None if *name* does not match."""
        if not name.startswith(self.prefix):
            return None
        segments, found = self._segments, dict[str, str]()
        pieces = name.split(":", len(segments) - 1 if segments[-1].open_end else -1)
        if len(pieces) != len(segments):
            return None
        for segment, piece in zip(segments, pieces, strict=True):
            if not segment.match(piece, found):
                return None
        return {key: unquote(value) for key, value in found.items()}

    def fill(self, params: Mapping[str, str]) -> str:
        """The name of one room.

        :raises UsageError: for missing, unknown or empty values, or a name of more than 255 bytes, or one that
            would be the name of other values too.
        """
        if set(params) != set(self.names):
            raise UsageError(
                f"{self.text!r} takes {_listed(self.names)}, but was given {_listed(tuple(params))}"
            )

        def value(piece: re.Match[str]) -> str:
            name, star = piece.groups()
            text: object = params[name]
            if not isinstance(text, str) or not text:
                raise UsageError(f"{self.text!r}: {name} must be a string that is not empty, not {text!r}")
            try:
                quoted = quote(text, safe=":/@" if star else "@")
            except UnicodeEncodeError:
                raise UsageError(
                    f"{self.text!r}: {name} has a lone surrogate, which UTF-8 cannot hold"
                ) from None
            # Where "{a}-{b}" is to be told apart again, a value's own "-" must not look like the pattern's.
            for segment in self._segments:
                for char in segment.between if name in segment.names else ():
                    quoted = quoted.replace(char, f"%{ord(char):02X}")
            return quoted

        room = _PIECE.sub(value, self.text)
        if self.match(room) != dict(params):
            raise UsageError(f"{self.text!r}: the name {room[:60]!r} would stand for other values too")
        if len(room.encode()) > 255:
            raise UsageError(f"the room name {room[:60]!r}… has more than 255 bytes")
        return room

    def clashes(self, other: Pattern) -> bool:
        """Whether some name matches both and neither has the longer prefix."""
        return len(self.prefix) == len(other.prefix) and _share_a_name(self._steps, other._steps)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


class _Segment:
    """What stands between two colons of a pattern: literals, and placeholders between them.

    Of several ways to read a name the first placeholder takes as much as it can. That is found from the right, by
    looking for each literal once: a name comes from anybody, so that it must not cost more than its length.
    """

    __slots__ = ("between", "literals", "names", "open_end")

    def __init__(self, text: str) -> None:
        pieces = _PIECE.split(text)  # literal, name, star, literal, …
        self.literals = pieces[0::3]
        self.names = pieces[1::3]
        self.open_end = bool(self.names) and pieces[-2] == "*"
        # What could be mistaken in a value; not what an escape itself is made of.
        self.between = sorted(set("".join(self.literals[1:-1])) - set("%0123456789ABCDEF"))

    def match(self, piece: str, found: dict[str, str]) -> bool:
        """Whether it is a reading of *piece*; puts the values into *found*."""
        literals, names = self.literals, self.names
        if not names:
            return piece == literals[0]
        begin, end = len(literals[0]), len(piece) - len(literals[-1])
        if not (piece.startswith(literals[0]) and piece.endswith(literals[-1])):
            return False
        # Only an open end may hold colons: what stands before it is over where the first one is.
        colon = piece.find(":")
        for index in range(len(names) - 1, 0, -1):
            at = piece.rfind(literals[index], begin + 1, end - 1 if colon < 0 else min(end - 1, colon))
            if at < 0:
                return False
            found[names[index]] = piece[at + len(literals[index]) : end]
            end, colon = at, -1
        found[names[0]] = piece[begin:end]
        return end > begin


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "nothing"


def _share_a_name(left: str, right: str) -> bool:
    """Walk both patterns together over every name they could share.

    A state is a place in each pattern and whether its wildcard there has taken a character yet.
    """
    alphabet = (set(left) | set(right) | {"\x03", ":"}) - {_WILD, _REST}

    def moves(steps: str, at: int, taken: bool, char: str) -> list[tuple[int, bool]]:
        found: list[tuple[int, bool]] = []
        if at < len(steps):
            step = steps[at]
            if step == _REST or (step == _WILD and char != ":"):
                found.append((at, True))
            elif step == char:
                found.append((at + 1, False))
        if taken:  # the wildcard may also be over
            found.extend(moves(steps, at + 1, False, char))
        return found

    def done(steps: str, at: int, taken: bool) -> bool:
        return at == len(steps) or (taken and at + 1 == len(steps))

    seen = {(0, False, 0, False)}
    todo = list(seen)
    while todo:
        a, a_taken, b, b_taken = todo.pop()
        if done(left, a, a_taken) and done(right, b, b_taken):
            return True
        for char in alphabet:
            for a2 in moves(left, a, a_taken, char):
                for b2 in moves(right, b, b_taken, char):
                    state = (*a2, *b2)
                    if state not in seen:
                        seen.add(state)
                        todo.append(state)
    return False
