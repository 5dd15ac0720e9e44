"""What travels between nodes and lies in streams (W5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from rtkit.errors import BadUnit
from rtkit.wire import Envelope, Kind
from rtkit.wire.envelope import VERSION

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.sampled_from(list(Kind)),
    st.sampled_from([b"null", b"1", b'{"a":[1,"x"]}', b'"\xc3\xa9"']),
    st.floats(0, 1e12),
    NAMES,
    NAMES,
    NAMES,
)
def test_there_and_back(kind: Kind, data: bytes, time: float, user: str, client: str, event: str) -> None:
    """W5."""
    envelope = Envelope(1, kind, Raw(data), time, user, client, event, user)
    again = Envelope.decode(envelope.encode())
    assert (again.kind, again.time, again.user, again.client, again.event) == (
        kind,
        time,
        user,
        client,
        event,
    )
    assert again.skip == user
    assert not isinstance(again.data, type(UNSET))
    assert bytes(again.data) == data
    assert b"\n" not in envelope.encode()


def test_an_ordinary_message_is_small() -> None:
    """H6: what is stored a million times holds no defaults."""
    assert Envelope(v=1, data=Raw(b"1"), time=5.0).encode() == b'{"v":1,"data":1,"time":5.0}'


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"v":"1"}',
        b'{"v":1,"kind":"z"}',
        b'{"v":1,"time":"x"}',
        b"[" * 100_000,
        b'{"v":1,"user":"\\ud800"}',
    ],
)
def test_what_no_hub_has_written(payload: bytes) -> None:
    """W5: said so, and nothing else happens."""
    with pytest.raises(BadUnit, match="not an envelope of rtkit"):
        Envelope.decode(payload)


@pytest.mark.parametrize("version", [0, 2, 99, -1])
def test_another_version(version: int) -> None:
    """W5: this release reads 1."""
    with pytest.raises(BadUnit, match=f"an envelope of version {version}; this release reads 1"):
        Envelope.decode(b'{"v":%d,"data":1}' % version)
    assert VERSION == 1


def test_fields_of_a_newer_release_are_ignored() -> None:
    """W5: additions do not need a new version."""
    assert Envelope.decode(b'{"v":1,"data":1,"trace":{"x":1}}').time == 0.0
