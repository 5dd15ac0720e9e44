"""Names of the hub become names of NATS, and are not confused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rtkit_nats.settings import Settings, parse_url
from rtkit_nats.subjects import Subjects, token

from rtkit.errors import UsageError

names = st.text(st.characters(), max_size=300) | st.sampled_from(
    ["", ":", "::", "a", ":a", "a:", "%", "%%", "=", "."]
)


@given(names)
def test_a_token_can_stand_in_a_subject(name: str) -> None:
    assert re.fullmatch(r"[!-~]+", token(name))
    assert not set(token(name)) & set(".*>")
    assert len(token(name)) <= 200


@given(names, names)
def test_different_topics_have_different_subjects(one: str, two: str) -> None:
    subjects = Subjects("rt")
    assert (subjects.out(one) == subjects.out(two)) == (one == two)
    assert (subjects.state(one) == subjects.state(two)) == (one == two)


def test_what_belongs_together_lies_together() -> None:
    subjects = Subjects("rt")
    assert subjects.log("room:chat:1") == "rt.in.chat:1.room.log"
    assert subjects.passing("room:chat:1") == "rt.in.chat:1.room.pass"
    assert subjects.state("presence:chat:1", "room:chat:1") == "rt.in.chat:1.room.state=presence"
    assert subjects.out("room:chat:1") == "rt.out.chat:1.room"


@given(names, names)
def test_a_key_is_found_wherever_its_changes_are_told(key: str, topic: str) -> None:
    subjects = Subjects("rt")
    pattern = re.escape(subjects.state_anywhere(key)).replace(r"\*", "[^.]+")
    assert re.fullmatch(pattern, subjects.state(key, topic))
    assert re.fullmatch(pattern, subjects.state(key))


def test_a_url_names_servers_login_and_settings() -> None:
    servers, login, settings = parse_url(
        "nats://ann:s%40crt@one:4222,two:4223?prefix=chat&replicas=3&patience=1.5"
    )
    assert servers == ["nats://one:4222", "nats://two:4223"]
    assert login == {"user": "ann", "password": "s@crt"}
    assert settings == Settings(prefix="chat", replicas=3, patience=1.5)
    assert parse_url("nats://tok@one")[1] == {"token": "tok"}
    assert parse_url("nats://one") == (["nats://one"], {}, Settings())


@pytest.mark.parametrize(
    "url, complaint",
    [
        ("nats://", "a NATS URL is"),
        ("nats://x:secret@host/path", "a NATS URL is"),
        ("nats://x:secret@host?colour=red", "no option 'colour'"),
        ("nats://x:secret@host?replicas=2", "replicas is 1, 3 or 5, not 2"),
        ("nats://x:secret@host?replicas=many", "many"),
        ("nats://x:secret@host?prefix=a.b", "prefix is up to 32 letters"),
        ("nats://x:secret@host?storage=tape", "storage is"),
        ("nats://x:secret@host?patience=0", "patience is positive"),
    ],
)
def test_a_wrong_url_is_refused_without_its_secrets(url: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
