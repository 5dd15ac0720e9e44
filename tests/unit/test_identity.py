"""Who somebody is, as values (A2, A3, A5)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from rtkit import Credentials, Grant, Identity, anonymous


def test_an_identity() -> None:
    identity = Identity("ann", {"tenant": 4}, expires_at=12.5)
    assert (identity.user, identity.claims, identity.expires_at) == ("ann", {"tenant": 4}, 12.5)
    plain = Identity("ann")
    assert (plain.claims, plain.expires_at) == (None, None)


@pytest.mark.parametrize("user", ["", "a\nb", "\x00", "a\x7f", "x" * 256, "é" * 128])
def test_what_is_no_user_id(user: str) -> None:
    """W4: it ends up in keys, topics and logs; a line feed would let two users' keys meet (H7)."""
    with pytest.raises(
        ValueError, match="1 to 255 bytes of UTF-8 without control characters, not "
    ) as caught:
        Identity(user)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("user", ["a", "x" * 255, "é" * 127, "org:7/ann@example.org", " ", "{}%*"])
def test_what_is_one(user: str) -> None:
    """API 2: any user id fits."""
    assert Identity(user).user == user


@pytest.mark.parametrize("user", ["\ud800", "a\udfff"])
def test_a_user_id_with_a_lone_surrogate(user: str) -> None:
    """W3: UTF-8 cannot hold it, so that nothing this user publishes could be encoded."""
    with pytest.raises(ValueError, match="UTF-8"):
        Identity(user)


@pytest.mark.parametrize("user", [None, 7, b"ann"])
def test_a_user_id_is_a_string(user: Any) -> None:
    """An id straight from a database is a common mistake; it is told where it is made, not where it is used."""
    with pytest.raises((TypeError, ValueError)) as caught:
        Identity(user)
    assert "user id" in str(caught.value)


def test_an_identity_is_immutable() -> None:
    """API: frozen."""
    identity = Identity("ann")
    for name in ("user", "claims", "expires_at", "other"):
        with pytest.raises(AttributeError):
            setattr(identity, name, "x")
    with pytest.raises(AttributeError):
        del identity.user  # type: ignore[misc]


def test_identities_are_values() -> None:
    one, same = Identity("ann", {"a": 1}, expires_at=1), Identity("ann", {"a": 1}, expires_at=1)
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same}) == 1
    for other in (
        Identity("bob", {"a": 1}, expires_at=1),
        Identity("ann", {"a": 2}, expires_at=1),
        Identity("ann", {"a": 1}),
    ):
        assert one != other
    assert one != "ann"
    assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one


def test_no_secret_in_a_repr() -> None:
    """A5: claims and tokens never."""
    assert repr(Identity("ann", {"card": "4111"}, expires_at=5.0)) == "Identity('ann', expires_at=5.0)"
    assert repr(Identity("ann")) == "Identity('ann')"
    shown = Credentials(
        token="s3cret", headers={"cookie": "s3cret"}, cookies={"a": "s3cret"}, address="10.0.0.1"
    )
    assert repr(shown) == "Credentials(token=shown, address='10.0.0.1')"
    assert repr(Credentials()) == "Credentials(token=none, address='')"
    assert "s3cret" not in f"{shown}{shown!s}"


def test_credentials_default_to_nothing() -> None:
    empty = Credentials()
    assert (empty.token, empty.data, empty.address, empty.previous) == (None, None, "", None)
    assert empty.headers == empty.cookies == empty.query == empty.scope == {}
    with pytest.raises(AttributeError):
        empty.token = "x"  # type: ignore[misc]


def test_grants() -> None:
    """A2."""
    assert Grant().rights == frozenset()
    assert Grant("publish", "history", ttl=5).rights == {"publish", "history"}
    assert Grant(ttl=0.5).ttl == 0.5
    assert repr(Grant("signal", "publish", ttl=5)) == "Grant('publish', 'signal', ttl=5)"
    assert repr(Grant()) == "Grant()"


@pytest.mark.parametrize("rights", [("write",), ("publish", "admin"), ("",), ("Publish",)])
def test_unknown_rights(rights: Any) -> None:
    """API 3: names those that there are."""
    with pytest.raises(
        ValueError, match=r"unknown rights \[.*\]; there are \['history', 'presence', 'publish', 'signal'\]"
    ):
        Grant(*rights)


@pytest.mark.parametrize("ttl", [0, -1, float("nan")])
def test_a_ttl_is_positive(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl is positive seconds or None, not "):
        Grant(ttl=ttl)


async def test_anonymous_lets_everybody_in() -> None:
    """API 3."""
    assert await anonymous(Credentials()) == await anonymous(Credentials(token="x")) == Identity("anonymous")
