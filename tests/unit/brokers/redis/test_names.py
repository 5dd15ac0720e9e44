"""No two topics share a key, and what belongs together shares a slot."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rtkit.brokers.redis.names import Names, escape, tag_of, text_of, to_bytes
from rtkit.errors import UsageError

# All of Unicode, and lone surrogates; often what names are made of here.
texts = st.text(st.characters(exclude_categories=()) | st.sampled_from("{}%:km0\0"), max_size=12)


def keys_of(name: str) -> set[str]:
    place = Names()(name)
    return {*place.stream, *place.values, place.key("k"), place.key(""), place.key("m"), place.call("k")}


def test_names_are_readable() -> None:
    place = Names()("room:chat:1")
    assert place.tag == "chat:1"
    assert place.channel == b"rt:{chat:1}:room"
    assert place.stream == ("rt:{chat:1}:room:m", "rt:{chat:1}:room:s")
    assert place.values == ("rt:{chat:1}:room:f", "rt:{chat:1}:room:l", "rt:{chat:1}:room:v")
    assert place.key("ann\n17") == "rt:{chat:1}:room:k:ann%0A17"
    assert Names("myapp")("room:lobby é😀").channel == "myapp:{lobby é😀}:room".encode()


@pytest.mark.parametrize(
    "one, two", [("room:a:b", "presence:a:b"), ("room:a:b", "\0presence:a:b"), (":a", "a")]
)
def test_what_agrees_after_the_first_colon_shares_a_tag(one: str, two: str) -> None:
    names = Names()
    assert names(one).tag == names(two).tag
    assert not keys_of(one) & keys_of(two)


@given(texts, texts)
@example("abc", ":abc")
@example("abc", "k:abc")
@example("%:abc", ":abc")
@example("", ":")
@example("", "%")
@example("a:{", "a:%7B")
@example("\ud83d\ude00", "\U0001f600")
def test_different_names_have_nothing_in_common(one: str, two: str) -> None:
    if one != two:
        assert not keys_of(one) & keys_of(two)
        assert Names()(one).channel != Names()(two).channel


@given(texts)
@example("")
@example("room:")
@example("}{")
@example("room:\ud800")
def test_every_key_of_a_name_hashes_alike(name: str) -> None:
    place = Names()(name)
    assert place.tag, "Redis passes over empty braces, and would hash the whole key"
    for key in keys_of(name):
        assert key.isprintable() or not any(character < " " for character in key)
        # The rule of Redis Cluster: what is between the first { and the first } after it, if that is anything.
        assert tag_of(key.encode()) == place.tag
    assert tag_of(place.channel) == place.tag


@given(texts, texts)
def test_idempotency_keys_do_not_meet(one: str, two: str) -> None:
    place = Names()("room:r")
    assert (place.key(one) == place.key(two)) == (one == two)
    assert place.key(one) != place.call(two)


@given(texts)
def test_escaped_is_text_without_anything_special(name: str) -> None:
    escaped = escape(name)
    escaped.encode("utf-8")
    assert not set(escaped) & {"{", "}", *map(chr, range(32)), "\x7f"}


@given(texts)
def test_fields_keep_their_names(name: str) -> None:
    assert text_of(to_bytes(name)) == name


def test_what_is_no_text_has_no_name() -> None:
    assert text_of(b"\xff") is None


def test_channels_tell_the_database_that_redis_does_not() -> None:
    names = Names(database=3)
    assert names("room:r").channel == b"rt:{r}:room:3"
    assert names("room:r").stream == Names()("room:r").stream
    assert names.probe("x") == b"rt:{x}:%probe:3"


def test_a_probe_is_on_no_topics_channel() -> None:
    names = Names()
    assert tag_of(names.probe("abc")) == "abc"
    assert names.probe("abc") != names("%probe:abc").channel


@pytest.mark.parametrize("prefix", ["", "a{b", "a}b", "a b", "a\n", "50%"])
def test_a_prefix_is_a_word(prefix: str) -> None:
    with pytest.raises(UsageError):
        Names(prefix)


def test_names_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtkit.brokers.redis.names._REMEMBERED", 2)
    names = Names()
    one = names("a:1")
    assert names("a:1") is one
    names("a:2")
    names("a:3")
    assert "2 remembered" in repr(names)
    assert names("a:1") is not one
