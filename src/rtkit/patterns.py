"""Names of room families: ``chat:{room}``, ``tenant:{tenant}:doc:{path*}``.

``{x}`` stands for one or more characters other than ``:``; ``{rest*}``, allowed only at the end, for one or more
of any. When several patterns match a name, the one with the longest literal prefix wins; two patterns with
equally long prefixes that share a name are ambiguous, and refused when they are declared.

Every room has exactly one name, and every name is of one room: applications decide by parameters, rtkit numbers,
counts and bans by name, and the two must not disagree about which room is meant. Therefore:

- In the value of ``{x}`` these are escaped, and nothing else is: ``%``, ``:``, control characters and, where
  several placeholders stand between two colons, the characters of the literals between them. An escape is ``%XX``
  for each byte of UTF-8, with upper-case digits. So any text fits, and what needs no escape reads as it is.
- The value of ``{rest*}`` is taken as it is. What a name cannot hold, it cannot either.
- What :meth:`Pattern.fill` would not have written does not match: needless, broken or lower-case escapes.

``fill`` and ``match`` undo each other, whatever is given to either of them. A value never has a raw character
that ends it, so that reading a name is one pass from left to right that never goes back: names come from anybody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from .errors import DeclarationError, UsageError

__all__ = ["Pattern", "respelled"]

_PIECE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\*?)\}")
_MAX = 255  # bytes of a name (W4)
# Inside of brackets: what no name can hold. A lone surrogate is nothing that UTF-8 could say.
_CONTROL, _SURROGATE = r"\x00-\x1f\x7f-\x9f", r"\ud800-\udfff"
_has_control = re.compile(f"[{_CONTROL}]").search
_has_surrogate = re.compile(f"[{_SURROGATE}]").search
_NEEDS_ESCAPE = f"%:{_CONTROL}"
_ESCAPES = r"25|3A|[01][0-9A-F]|7F|C2%[89][0-9A-F]"  # what _NEEDS_ESCAPE becomes, after the first %
_REST = f"[^{_CONTROL}{_SURROGATE}]++"
_ESCAPABLE = re.compile(f"[{_NEEDS_ESCAPE}]")


class Pattern:
    """A parsed pattern.

    :param text: the pattern.
    :raises DeclarationError: when it cannot be a pattern; the message says why.
    """

    __slots__ = ("_segments", "_steps", "names", "prefix", "text")

    def __init__(self, text: str) -> None:
        if not text or _has_control(text) or _has_surrogate(text):
            raise DeclarationError(
                f"a room pattern is text without control characters and lone surrogates, not {text!r}"
            )
        self.text = text
        self.names: tuple[str, ...] = ()
        size, at = 0, 0
        for piece in _PIECE.finditer(text):
            literal = self._literal(text[at : piece.start()])
            if at and not literal:
                raise DeclarationError(f"{text!r}: two placeholders side by side cannot be told apart")
            if at and "%" in literal and ":" not in literal:
                raise DeclarationError(
                    f"{text!r}: a % between two placeholders cannot be told from an escape"
                )
            name, star = piece.groups()
            if name in self.names:
                raise DeclarationError(f"{text!r}: the name {name!r} is used twice")
            if star and piece.end() != len(text):
                raise DeclarationError(f"{text!r}: {{{name}*}} is allowed only at the end")
            self.names += (name,)
            size += len(literal.encode()) + 1
            at = piece.end()
        size += len(self._literal(text[at:]).encode())
        if size > _MAX:
            raise DeclarationError(f"{text[:60]!r}…: each name of it has more than {_MAX} bytes")
        # A placeholder never holds a raw colon, so that each piece between colons stands for itself.
        self._segments = tuple(_Segment(segment) for segment in text.split(":"))
        self._steps = self._segments[0].steps
        for segment in self._segments[1:]:
            self._steps += (":", *segment.steps)
        self.prefix = text.split("{", 1)[0]

    def _literal(self, literal: str) -> str:
        if "{" in literal or "}" in literal:
            raise DeclarationError(
                f"{self.text!r}: braces only enclose a name, as in 'chat:{{room}}' or, at the end, '{{rest*}}'"
            )
        return literal

    def match(self, name: str) -> Mapping[str, str] | None:
        """The placeholders' values, decoded; None if :meth:`fill` does not make *name* of any values."""
        if len(name) > _MAX or not name.startswith(self.prefix):
            return None
        segments, found = self._segments, dict[str, str]()
        pieces = name.split(":", len(segments) - 1 if segments[-1].open_end else -1)
        if len(pieces) != len(segments):
            return None
        for segment, piece in zip(segments, pieces, strict=True):
            if not segment.match(piece, found):
                return None
        return found if len(name.encode()) <= _MAX else None

    def fill(self, params: Mapping[str, str]) -> str:
        """The name of one room.

        :raises UsageError: for missing, unknown or empty values, for what UTF-8 or, in ``{rest*}``, a name cannot
            hold, and for a name of more than 255 bytes.
        """
        if set(params) != set(self.names):
            raise UsageError(
                f"{self.text!r} takes {_listed(self.names)}, but was given {_listed(tuple(params))}"
            )
        for name in self.names:
            text: object = params[name]
            if not isinstance(text, str) or not text:
                raise UsageError(f"{self.text!r}: {name} must be a string that is not empty, not {text!r}")
            if _has_surrogate(text):
                raise UsageError(f"{self.text!r}: {name} has a lone surrogate, which UTF-8 cannot hold")
        if self._segments[-1].open_end and _has_control(params[self.names[-1]]):
            raise UsageError(
                f"{self.text!r}: {self.names[-1]} is taken as it is, and no room name has control characters"
            )
        room = ":".join(segment.fill(params) for segment in self._segments)
        if len(room.encode()) > _MAX:
            raise UsageError(f"the room name {room[:60]!r}… has more than {_MAX} bytes")
        return room

    def clashes(self, other: Pattern) -> bool:
        """Whether some name matches both and neither has the longer prefix."""
        return len(self.prefix) == len(other.prefix) and _share_a_name(self._steps, other._steps)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


class _Segment:
    """What stands between two colons of a pattern: literals, and placeholders between them."""

    __slots__ = ("_escapable", "_values", "literals", "names", "open_end", "steps")

    def __init__(self, text: str) -> None:
        pieces = _PIECE.split(text)  # literal, name, star, literal, …
        self.literals = pieces[0::3]
        self.names = pieces[1::3]
        self.open_end = bool(self.names) and pieces[-2] == "*"
        # A raw one of these ends a value, so that a value's own are escaped.
        between = sorted(set("".join(self.literals[1:-1])))
        self._escapable = (
            re.compile(f"[{_NEEDS_ESCAPE}{re.escape(''.join(between))}]") if between else _ESCAPABLE
        )
        raw = f"[^{_NEEDS_ESCAPE}{_SURROGATE}{re.escape(''.join(between))}]"
        escapes = "|".join([_ESCAPES, *(_percent(char)[1:] for char in between)])
        # Possessive: where a value ends is never a matter of trying.
        values = [f"((?:{raw}++|%(?:{escapes}))++)" for _ in self.names]
        if self.open_end:
            values[-1] = f"({_REST})"
        literals = [*map(re.escape, self.literals[1:-1]), ""]
        self._values = re.compile("".join(map("".join, zip(values, literals, strict=False)))).fullmatch
        #: A literal character, or the set of those that a placeholder does not take.
        self.steps: tuple[str | frozenset[str], ...] = tuple(self.literals[0])
        for index in range(len(self.names)):
            last = self.open_end and index == len(self.names) - 1
            self.steps += (frozenset() if last else frozenset((":", *between)), *self.literals[index + 1])

    def match(self, piece: str, found: dict[str, str]) -> bool:
        """Whether it is a reading of *piece*; puts the values into *found*."""
        first, last, names = self.literals[0], self.literals[-1], self.names
        if not names:
            return piece == first
        if not (piece.startswith(first) and piece.endswith(last)):
            return False
        values = self._values(piece, len(first), len(piece) - len(last))
        if values is None:
            return False
        for name, value in zip(names, values.groups(), strict=True):
            found[name] = unquote(value)
        if self.open_end:
            found[names[-1]] = values[len(names)]
        return True

    def fill(self, params: Mapping[str, str]) -> str:
        """The segment with values in it, which must be fit for it."""
        if not self.names:
            return self.literals[0]
        filled = self.literals[0]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            text = params[name]
            if not (self.open_end and name == self.names[-1]):
                text = self._escapable.sub(_escape, text)
            filled += text + literal
        return filled


def respelled(name: str) -> str | None:
    """How a name is spelled here whose spelling may have been somebody else's; for a hint and for nothing more.

    Somebody percent-encodes what rtkit does not, or not what it does. None if the escapes are no UTF-8.
    """
    try:
        return ":".join(_ESCAPABLE.sub(_escape, unquote(piece, errors="strict")) for piece in name.split(":"))
    except UnicodeDecodeError:
        return None


def _escape(found: re.Match[str]) -> str:
    return _percent(found[0])


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode())


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "nothing"


def _share_a_name(left: tuple[str | frozenset[str], ...], right: tuple[str | frozenset[str], ...]) -> bool:
    """Walk both patterns together over every name they could share.

    A state is a place in each pattern and whether its placeholder there has taken a character yet. Escapes are taken
    for raw characters, which makes no difference, unless a literal has a ``%``: then some pairs count as sharing
    a name that none of the two has.
    """
    alphabet = {"\x00", ":"}  # the first one for whatever is in neither
    alphabet.update(step for step in (*left, *right) if isinstance(step, str))
    alphabet.update(*(step for step in (*left, *right) if not isinstance(step, str)))

    def moves(
        steps: tuple[str | frozenset[str], ...], at: int, taken: bool, char: str
    ) -> list[tuple[int, bool]]:
        found: list[tuple[int, bool]] = []
        if at < len(steps):
            step = steps[at]
            if isinstance(step, str):
                if step == char:
                    found.append((at + 1, False))
            elif char not in step:
                found.append((at, True))
        if taken:  # the placeholder may also be over
            found.extend(moves(steps, at + 1, False, char))
        return found

    def done(steps: tuple[str | frozenset[str], ...], at: int, taken: bool) -> bool:
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
