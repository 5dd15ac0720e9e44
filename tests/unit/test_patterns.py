"""Names of room families: what they match, how they are filled, and when two of them clash (api 2, W4)."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rtkit import DeclarationError, UsageError
from rtkit.patterns import Pattern, respelled
from rtkit.wire import check_room_name

# -- what a pattern may be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text without control characters and lone surrogates, not ''"),
        ("a\nb", "without control characters"),
        ("a\x00", "without control characters"),
        ("a\x7f", "without control characters"),
        ("a\x85", "without control characters"),
        ("a\ud800", "lone surrogates"),
        ("{}", "braces only enclose a name"),
        ("a{", "braces only enclose a name"),
        ("a}", "braces only enclose a name"),
        ("{1a}", "braces only enclose a name"),
        ("{a-b}", "braces only enclose a name"),
        ("{{a}}", "braces only enclose a name"),
        ("{a*}x", r"\{a\*\} is allowed only at the end"),
        ("{a*}{b}", r"\{a\*\} is allowed only at the end"),
        ("{a}{b}", "two placeholders side by side cannot be told apart"),
        ("{a}:{a}", "the name 'a' is used twice"),
        ("x:{a}{b*}", "side by side"),
        ("{a}%{b}", "a % between two placeholders cannot be told from an escape"),
        ("x:{a}-%-{b*}", "a % between two placeholders"),
        ("x" * 256, r"'x{60}'…: each name of it has more than 255 bytes"),
        ("é" * 127 + "{a}-", "more than 255 bytes"),
    ],
)
def test_what_is_no_pattern(text: str, message: str) -> None:
    """API 2: refused when declared; the message says why."""
    with pytest.raises(DeclarationError, match=message):
        Pattern(text)


@pytest.mark.parametrize(
    "text",
    [
        *("chat", "chat:{room}", "{a}-{b}", "t:{t}:doc:{path*}", "{rest*}", "é:{x}", "a b"),
        *("%{a}%", "{a}:%:{b}", "x" * 255, "é" * 127 + "{a}"),
    ],
)
def test_what_is(text: str) -> None:
    pattern = Pattern(text)
    assert pattern.text == text
    assert repr(pattern) == f"Pattern({text!r})"


# -- matching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("chat", "chat", {}),
        ("chat", "chat:", None),
        ("chat", "chats", None),
        ("chat:{room}", "chat:lobby", {"room": "lobby"}),
        ("chat:{room}", "chat:", None),
        ("chat:{room}", "chat:a:b", None),
        ("chat:{room}", "chat:a/b", {"room": "a/b"}),
        ("chat:{room}", "xchat:a", None),
        ("chat:{room}", "chat:a%3Ab", {"room": "a:b"}),
        ("chat:{room}", "chat:€", {"room": "€"}),
        ("chat:{room}", "chat:%E2%82%AC", None),
        ("{a}-{b}", "x-y", {"a": "x", "b": "y"}),
        ("{a}-{b}", "x-y-z", None),
        ("{a}-{b}", "x%2Dy-z", {"a": "x-y", "b": "z"}),
        ("{a}-{b}:{c}", "x-y:z-z", {"a": "x", "b": "y", "c": "z-z"}),
        ("{a}-{b}:{c}", "x-y:%2D", None),
        ("{a}-{b*}", "x-y-z", {"a": "x", "b": "y-z"}),
        ("{a}-{b*}", "x%2Dy-%2D:%", {"a": "x-y", "b": "%2D:%"}),
        ("{a}-{b*}", "x:y-z", None),
        ("{a}2{b}", "%32%252%25", {"a": "2%", "b": "%"}),
        ("{a}é{b}", "%C3%A9éè", {"a": "é", "b": "è"}),
        ("{a}é{b}", "%C3é%A9", None),
        ("{a}]{b}^-{c}", "%5D]%5E^-%2D", {"a": "]", "b": "^", "c": "-"}),
        ("a{x}a", "aaa", {"x": "a"}),
        ("a{x}a", "aa", None),
        ("{x}41", "%2541", {"x": "%"}),
        ("{x}41", "%41", None),
        ("t:{t}:doc:{path*}", "t:1:doc:a:b/c", {"t": "1", "path": "a:b/c"}),
        ("t:{t}:doc:{path*}", "t:1:doc:", None),
        ("t:{t}:doc:{path*}", "t:1:doc::", {"t": "1", "path": ":"}),
        ("{rest*}", "anything:at all", {"rest": "anything:at all"}),
        ("{rest*}", "%41%", {"rest": "%41%"}),
        ("a.b", "axb", None),
        ("(x)", "(x)", {}),
        ("{a}.{b}", "1.2", {"a": "1", "b": "2"}),
    ],
)
def test_match(text: str, name: str, params: dict[str, str] | None) -> None:
    """API 2: `{x}` never matches a colon; `{rest*}` anything; values are decoded."""
    assert Pattern(text).match(name) == params


@pytest.mark.parametrize("pattern", ["chat:{room}", "chat:{room*}", "chat:{room}-{rest*}"])
@pytest.mark.parametrize("char", ["\n", "\0", "\x1f", "\x7f", "\x80", "\x85", "\x9f", "\ud800", "x\udfff"])
def test_what_is_no_name_is_of_no_room(pattern: str, char: str) -> None:
    """W4: control characters, and what UTF-8 cannot hold."""
    assert Pattern(pattern).match("chat:a-b")
    for name in (f"chat:{char}", f"chat:a-b{char}", f"chat:{char}a-b"):
        assert Pattern(pattern).match(name) is None


def test_what_is_longer_than_a_name_is_of_no_room() -> None:
    """W4: in bytes."""
    for text in ("{x}", "{rest*}"):
        assert Pattern(text).match("é" * 127 + "x")
        assert Pattern(text).match("é" * 128) is None
        assert Pattern(text).match("x" * 256) is None


# -- filling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "params", "name"),
    [
        ("chat", {}, "chat"),
        ("chat:{room}", {"room": "a:b/c%"}, "chat:a%3Ab/c%25"),
        ("doc:{path*}", {"path": "a:b/c d%41%"}, "doc:a:b/c d%41%"),
        ("doc:{id}:{path*}", {"id": ":%", "path": ":%"}, "doc:%3A%25::%"),
        ("{a}-{b}", {"a": "1", "b": "2"}, "1-2"),
        ("{a}-{b}", {"a": "-", "b": "x-"}, "%2D-x%2D"),
        ("{a}-{b*}", {"a": "-", "b": "x-"}, "%2D-x-"),
        ("{a}-{b}:{c}", {"a": "1", "b": "2", "c": "-"}, "1-2:-"),
        ("a{x}a", {"x": "a"}, "aaa"),
        ("{a}2{b}", {"a": "2", "b": "%"}, "%322%25"),
        ("{a}é{b}", {"a": "é", "b": "è"}, "%C3%A9éè"),
        ("chat:{room}", {"room": "\n\x00{}"}, "chat:%0A%00{}"),
    ],
)
def test_fill(text: str, params: dict[str, str], name: str) -> None:
    """API 2: escaped is what must be, so that any user id fits."""
    assert Pattern(text).fill(params) == name
    assert Pattern(text).match(name) == params


VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "room_names.json").read_text("utf-8")
)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: ascii(vector["value"]))
def test_the_vectors_for_a_lone_placeholder(vector: dict[str, Any]) -> None:
    """API 2, K1: what clients in other languages make of a value, too."""
    for pattern in (Pattern("{x}"), Pattern("chat:{x}"), Pattern("a:{x}z:b")):
        first, last = pattern.text.split("{x}")
        if vector["encoded"] is None:
            with pytest.raises(UsageError, match="lone surrogate|not empty"):
                pattern.fill({"x": vector["value"]})
        else:
            name = first + vector["encoded"] + last
            assert pattern.fill({"x": vector["value"]}) == name
            assert pattern.match(name) == {"x": vector["value"]}
            check_room_name(name)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"'chat:\{room\}' takes room, but was given nothing"),
        ({"room": "a", "x": "b"}, "takes room, but was given room, x"),
        ({"x": "b"}, "takes room, but was given x"),
        ({"room": ""}, "room must be a string that is not empty, not ''"),
        ({"room": None}, "room must be a string that is not empty, not None"),
        ({"room": 0}, "room must be a string that is not empty, not 0"),
        ({"room": 42}, "room must be a string that is not empty, not 42"),
        ({"room": b"x"}, "room must be a string"),
        ({"room": "\ud800"}, "room .*surrogate"),
        ({"room": "x" * 251}, r"the room name 'chat:x+'… has more than 255 bytes"),
        ({"room": "é" * 126}, "has more than 255 bytes"),
        ({"room": ":" * 84}, "has more than 255 bytes"),
    ],
)
def test_what_cannot_be_filled(params: dict[str, str], message: str) -> None:
    """API 2: 0 is refused like 42, or the room of the first row of a table would be the only one that fails."""
    with pytest.raises(UsageError, match=message):
        Pattern("chat:{room}").fill(params)


@pytest.mark.parametrize("char", ["\n", "\0", "\x7f", "\x85"])
def test_what_a_rest_cannot_hold(char: str) -> None:
    """W4: it is taken as it is, so that it holds what a name can."""
    with pytest.raises(UsageError, match="path is taken as it is, and no room name has control characters"):
        Pattern("{id}:{path*}").fill({"id": "\n", "path": f"a{char}b"})
    with pytest.raises(UsageError, match="path has a lone surrogate"):
        Pattern("{id}:{path*}").fill({"id": "a", "path": "\udc00"})


def test_nothing_to_fill() -> None:
    with pytest.raises(UsageError, match="'chat' takes nothing, but was given room"):
        Pattern("chat").fill({"room": "a"})


VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.sampled_from(["chat:{a}", "doc:{a*}", "x:{a}:{b}"]), VALUES)
def test_no_value_reaches_into_another_family(text: str, value: str) -> None:
    """API 2: whatever a client calls itself, it stays in its own part of the name."""
    pattern = Pattern("t:{tenant}:" + text)
    try:
        name = pattern.fill({key: value if key == "tenant" else "z" for key in pattern.names})
    except UsageError:
        assume(False)
        raise
    assert name.count(":") == text.count(":") + 2
    assert pattern.match(name) is not None
    assert Pattern("t:other:" + text).match(name) is None or value == "other"


# -- one room, one name -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alias",
    [
        *("%41", "%20", "%2F", "%2f", "a%2Fb", "%7E", "%40", "%C3%A9", "%c3%a9", "%E2%82%AC", "%F0%9F%98%80"),
        *("%3a", "%0a", "%7f", "%c2%85", "%C2%A0", "%C2%7F"),  # wrong case; near misses
        *("%", "%%", "%2", "a%", "%G0", "%2G", "%-1", "% 25", "%u0041", "%25%", "%2%35", "%25%4"),  # broken
        *("%FF", "%C3", "%C3%28", "%ED%A0%80", "%C0%80", "%85", "%C2", "%C2x", "%C2%", "%C2%8"),  # no UTF-8
        *("\n", "\x85", "\ud800"),
    ],
)
def test_every_room_has_one_name(alias: str) -> None:
    """A2: an application decides by parameters, rtkit bans and numbers by name: they must agree."""
    assert Pattern("{x}").match("%25%3A%00%7F%C2%85") == {"x": "%:\0\x7f\x85"}
    for name in (alias, alias + "x", "x" + alias):
        assert Pattern("{x}").match(name) is None
        assert Pattern("a:{x}:{y}").match(f"a:{name}:y") is None
        assert Pattern("a:{x}-{y}").match(f"a:{name}-y") is None
        assert Pattern("a:{x}-{y}").match(f"a:y-{name}") is None
        assert Pattern("a{x}-{y*}").match(f"a{name}-y") is None


LITERALS = st.text("ab:-.%2DéA^]\\&~|[", max_size=3)
ANY_TEXT = st.text("ab:-.%2D35éA^]\\&~|[\n\x85\ud800", min_size=1, max_size=5)


@st.composite
def any_pattern(draw: st.DrawFn) -> Pattern:
    """Patterns with up to three placeholders, whose literals are what escapes are made of, too."""
    text = draw(LITERALS)
    for n in range(draw(st.integers(0, 3))):
        text += f"{{p{n}}}" + draw(LITERALS)
    if draw(st.booleans()):
        text += "{rest*}"
    try:
        return Pattern(text)
    except DeclarationError:
        assume(False)
        raise


@given(any_pattern(), st.data())
def test_what_was_filled_in_comes_out_again(pattern: Pattern, data: st.DataObject) -> None:
    """API 2: whatever text the values are; and the name is one that W4 allows."""
    params = {name: data.draw(ANY_TEXT | VALUES, label=name) for name in pattern.names}
    try:
        name = pattern.fill(params)
    except UsageError as error:
        # No value is refused for looking like something else.
        for reason, holds in {
            "255 bytes": sum(len(value) for value in params.values()) > 20,
            "lone surrogate": "\ud800" in "".join(params.values()),
            "control characters": re.search(r"[\0-\x1f\x7f-\x9f]", params.get("rest", "")) is not None,
        }.items():
            if reason in str(error):
                assert holds
                return
        raise
    check_room_name(name)
    assert pattern.match(name) == params


@given(any_pattern(), st.data())
def test_and_what_comes_out_makes_the_same_name(pattern: Pattern, data: st.DataObject) -> None:
    """API 2: a name that matches is the one name of its room."""
    pieces = ["%25", "%3A", "%0A", "%C2%85", "%2D", "%2E", "%32", "%44", "%C3%A9", "%5D", "%61", "%3a"]
    value = st.lists(st.sampled_from(pieces) | ANY_TEXT, min_size=1, max_size=4).map("".join)
    name = re.sub(r"\{\w+\*?\}", lambda _: data.draw(value), pattern.text)
    params = pattern.match(name)
    if params is not None:
        assert set(params) == set(pattern.names)
        assert pattern.fill(params) == name


def test_the_names_of_short_values() -> None:
    """API 2, by brute force: of all short strings those are names that are made of some values."""
    chars = "a-:%25D3A"
    strings = ["".join(each) for length in range(1, 5) for each in itertools.product(chars, repeat=length)]
    for text in ("{x}", "{x}-{y}", "{x}a", "{x*}", "{x}:{y}"):
        pattern = Pattern(text)
        short = strings[: 9 + 81] if "y" in text else strings
        made: set[str] = set()
        for values in itertools.product(short, repeat=len(pattern.names)):
            name = pattern.fill(dict(zip(pattern.names, values, strict=True)))
            assert name not in made
            made.add(name)
        for name in strings:
            assert (pattern.match(name) is not None) == (name in made), name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("chat:a%20b", "chat:a b"),
        ("chat:%41", "chat:A"),
        ("chat:a%2fb%3ac", "chat:a/b%3Ac"),
        ("chat:%C3%A9", "chat:é"),
        ("chat:%", "chat:%25"),
        ("chat:100%:x", "chat:100%25:x"),
        ("chat:\n", "chat:%0A"),
        ("chat:%FF", None),
        ("chat:a%3Ab%25", "chat:a%3Ab%25"),
    ],
)
def test_how_a_name_is_spelled(name: str, meant: str | None) -> None:
    """For the hint that somebody gets whose escapes are another library's."""
    assert respelled(name) == meant


# -- clashes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "clash"),
    [
        ("chat:{a}", "chat:{b}", True),
        ("chat:{a}", "chat:lobby", False),  # the longer literal prefix wins
        ("chat:{a}", "chat:{b}:{c}", False),
        ("chat:{a*}", "chat:{b}:{c}", True),
        ("{a}:x", "{b}:y", False),
        ("{a}:x", "{b}:{c}", True),
        ("{a}x", "{b}y", False),
        ("{a}-1", "{b}1", True),
        ("{a}-{b}", "{c}_{d}", True),
        ("{a}-{b}", "{c}-{d}-{e}", False),  # a value has no raw "-" here
        ("{a}-{b}", "{c}-{d*}", True),
        ("{a}-{b}", "{c}--{d}", False),
        ("{a}-{b}", "-{c}", False),
        ("{a*}", "{b}-{c}", True),
        ("{a}-{b}:", "{c}:", True),
        ("x{a}", "y{b}", False),
        ("{a*}", "{b}", True),
        ("same", "same", True),
        ("{a}:", "{b}", False),
    ],
)
def test_clashes(one: str, two: str, clash: bool) -> None:
    """API 2: some name matches both, and neither has the longer literal prefix."""
    assert Pattern(one).clashes(Pattern(two)) is clash
    assert Pattern(two).clashes(Pattern(one)) is clash


ALPHABET = "a:-"
# An x is in no pattern, so that a value can always have it.
NAMES = ["".join(letters) for length in range(1, 7) for letters in itertools.product("x:-a", repeat=length)]


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    """Small patterns over a small alphabet, so that all short names can be tried."""
    pieces: list[str] = []
    for n in range(draw(st.integers(1, 3))):
        literal = draw(st.text(ALPHABET, min_size=1, max_size=2))
        pieces.append(draw(st.sampled_from([literal, f"{{p{n}}}"])))
    text = re.sub(r"\}\{", "}a{", "".join(pieces))
    if draw(st.integers(0, 3)) == 0 and not text.endswith("}"):
        text += "{rest*}"
    return Pattern(text)


@given(patterns(), patterns())
def test_clashing_is_decided_as_brute_force_does(one: Pattern, two: Pattern) -> None:
    """API 2: over every name of up to six letters; longer ones are not needed for patterns this small."""
    shared = any(one.match(name) is not None and two.match(name) is not None for name in NAMES)
    expected = shared and len(one.prefix) == len(two.prefix)
    if expected:
        assert one.clashes(two)
    elif len(one.text) + len(two.text) < 18:
        # A name that both match need not be longer than both patterns together; here six letters are enough.
        assert not one.clashes(two) or longest(one) + longest(two) > 6


def longest(pattern: Pattern) -> int:
    """How many letters the shortest name of a pattern has."""
    return len(re.sub(r"\{\w+\*?\}", "x", pattern.text))


# -- matching, against the obvious regular expression --------------------------------------------------


def regex_of(pattern: Pattern) -> re.Pattern[str]:
    """What a pattern means, for names without escapes."""
    segments: list[str] = []
    for segment in re.split(":", pattern.text):
        pieces = re.split(r"\{(\w+)(\*?)\}", segment)
        between = re.escape("".join(pieces[3:-1:3]))
        text = re.escape(pieces[0])
        for name, star, literal in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            text += f"(?P<{name}>{'.+' if star else f'[^:{between}]+'})" + re.escape(literal)
        segments.append(text)
    return re.compile(":".join(segments))


MANY = [
    Pattern(text)
    for text in (
        "{a}-{b}",
        "{a}-{b}-{c}",
        "a{a}-{b}a",
        "{a}--{b}",
        "{a}:{b}-{c}",
        "{a}-{b*}",
        "-{a}:{b}a{c*}",
        "{a*}",
        "a:{b*}",
        "a{a}a:{b}",
    )
]


@pytest.mark.parametrize("pattern", MANY, ids=lambda pattern: pattern.text)
def test_matching_means_what_the_regular_expression_does(pattern: Pattern) -> None:
    """API 2: for every name of up to six letters."""
    regex = regex_of(pattern)
    for name in NAMES:
        found = regex.fullmatch(name)
        assert pattern.match(name) == (found.groupdict() if found else None), name


@given(patterns(), st.text(ALPHABET, max_size=12))
def test_and_for_longer_ones(pattern: Pattern, name: str) -> None:
    found = regex_of(pattern).fullmatch(name)
    assert pattern.match(name) == (found.groupdict() if found else None)


def test_a_value_that_looks_like_the_pattern() -> None:
    """API 2: a tenant whose name has a dash must not get into the rooms of another one."""
    pattern = Pattern("doc-{tenant}-{id}")
    one, two = pattern.fill({"tenant": "a", "id": "b-c"}), pattern.fill({"tenant": "a-b", "id": "c"})
    assert (one, two) == ("doc-a-b%2Dc", "doc-a%2Db-c")
    assert pattern.match("doc-2026-01-02") is None


@pytest.mark.parametrize(
    "text",
    ["{a}", "{a}x", "{a}-{b}-{c}-{d}-{e}-{f}", "{a}-{b}-{c}-{d*}", "{a}-{b}-{c}!", "{a}a{b}aa{c}aaa", "{a*}"],
)
def test_no_name_takes_long_to_match(text: str) -> None:
    """W3: names come from clients; an innocent regular expression takes minutes for these."""
    pattern = Pattern(text)
    names = ["x" + "-" * 250 + ":", "-" * 255, "x-" * 127, ":" * 255, "x" + "-" * 250 + ":x"]
    names += ["%25" * 85, "%C2%85" * 42 + "%", "%" * 255, "%C2" * 85, "a" * 255, "x" * 254 + "\n"]
    names += ["x" * 1_000_000, "%25" * 300_000, "-" * 1_000_000, ":" * 1_000_000]
    begin = time.process_time()
    for name in names:
        for _ in range(20):
            pattern.match(name)
            if len(name) < 256:
                respelled(name)
    assert time.process_time() - begin < 1
