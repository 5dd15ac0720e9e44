"""An issuer's keys come and go, its endpoint is away, and strangers show what they like."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from rtkit import Credentials, Reject
from rtkit.ext.jwt import JwtAuthentication, KeySet
from rtkit.testing import ManualClock
from tests.unit.ext.tokens import SECRET, Issuer, private_key, public_jwk, sign


class Door:
    """Those who come to a hub whose keys are fetched."""

    def __init__(self, *names: str, **options: Any) -> None:
        self.clock = ManualClock()
        self.issuer = Issuer(self.clock, *names)
        self.keys = KeySet(self.issuer.fetch, clock=self.clock, **options)
        self.auth = JwtAuthentication(self.keys, algorithms=["ES256"], clock=self.clock)

    async def show(self, token: str) -> Any:
        """The user, or the code and the seconds to wait."""
        try:
            return (await self.auth(Credentials(token=token))).user
        except Reject as error:
            return error.code, error.retry_after

    async def come(self, user: str = "ann", *, by: str, **options: Any) -> Any:
        return await self.show(self.issuer.token(user, by=by, **options))


UNKNOWN = (109, None)
BAD = (101, None)


async def test_keys_are_fetched_once_and_kept() -> None:
    door = Door("a", "b")
    assert (await door.come(by="a"), await door.come(by="b"), await door.come(by="a")) == ("ann",) * 3
    assert door.issuer.asked == 1
    stats = door.keys.statistics()
    assert (stats.keys, stats.fetches, stats.failures, stats.age) == (2, 1, 0, 0.0)


async def test_those_who_come_together_share_a_fetch() -> None:
    door = Door("a")
    door.issuer.hold = asyncio.Event()
    coming = [asyncio.ensure_future(door.come(f"u{n}", by="a")) for n in range(100)]
    await door.clock.settle()
    door.issuer.hold.set()
    assert await asyncio.gather(*coming) == [f"u{n}" for n in range(100)]
    assert door.issuer.asked == 1


async def test_a_new_key_is_found_when_it_is_first_used() -> None:
    """Rotation: the old key is good until it leaves the set."""
    door = Door("old")
    assert await door.come(by="old") == "ann"
    await door.clock.advance(60)
    door.issuer.names = ["old", "new"]
    assert (await door.come(by="new"), await door.come(by="old")) == ("ann", "ann")
    assert door.issuer.asked == 2
    door.issuer.names = ["new"]
    await door.clock.advance(3599)
    assert await door.come(by="old") == "ann", "nobody has looked yet"
    await door.clock.advance(1)
    assert (await door.come(by="old"), await door.come(by="new")) == (UNKNOWN, "ann")
    assert door.issuer.asked == 3


async def test_a_key_that_was_dropped_in_haste_is_known_to_be_gone() -> None:
    """All its tokens are told so at once, and cost no fetch; until the issuer brings it back."""
    door = Door("bad", "new")
    await door.come(by="bad")
    door.issuer.names = ["new"]
    await door.clock.advance(3600)
    assert [await door.come(by="bad") for _ in range(50)] == [UNKNOWN] * 50
    assert door.issuer.asked == 2
    door.issuer.names = ["new", "bad"]
    await door.clock.advance(3599)
    assert await door.come(by="bad") == UNKNOWN
    await door.clock.advance(1)
    assert await door.come(by="bad") == "ann"
    for n in range(120):
        door.issuer.names = [f"k{n}"]
        await door.clock.advance(3600)
        assert await door.come(by=f"k{n}") == "ann"
    assert len(door.keys._gone) == 100


async def test_strangers_with_keys_of_their_own_make_no_storm() -> None:
    """One fetch in ten seconds, and known keys go on as if nothing was."""
    door = Door("a")
    assert await door.come(by="a") == "ann"
    answers: dict[Any, int] = {}
    for n in range(300):
        answer = await door.show(sign({"sub": "eve", "exp": door.clock.time() + 9}, kid=f"k{n}", **FORGED))
        answers[answer[0]] = answers.get(answer[0], 0) + 1
        assert await door.come(by="a") == "ann"
        await door.clock.advance(0.1)
    assert door.issuer.asked == 3
    assert answers == {109: 2, 100: 298}, "who was not looked for is told to come again"


FORGED: dict[str, Any] = {"key": private_key("ES256", "eve"), "algorithm": "ES256"}


async def test_how_long_to_wait() -> None:
    door = Door("a", every=30)
    await door.come(by="a")
    await door.clock.advance(12)
    assert await door.come(by="b") == (100, 18.0)
    await door.clock.advance(18)
    door.issuer.names.append("b")
    assert await door.come(by="b") == "ann"


async def test_an_expired_token_of_an_old_key_costs_no_fetch() -> None:
    """A laptop that slept through a rotation is told to get a new token, not to stay away."""
    door = Door("new")
    assert await door.come(by="old", ttl=-86400) == (109, None)
    assert door.issuer.asked == 0


async def test_an_issuer_that_is_away_keeps_nobody_out_who_is_known(caplog: pytest.LogCaptureFixture) -> None:
    door = Door("a")
    await door.come(by="a")
    door.issuer.fail = ConnectionError("https://admin:s3cr3t@issuer")
    for _ in range(5):
        await door.clock.advance(3600)
        assert await door.come(by="a") == "ann"
        assert await door.come(by="b") == (100, 10.0), "it may be a new one"
    stats = door.keys.statistics()
    assert (stats.keys, stats.fetches, stats.failures, stats.age) == (1, 1, 5, 5 * 3600.0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["keys could not be fetched: ConnectionError; 1 are known"] * 5
    door.issuer.fail = None
    await door.clock.advance(10)
    door.issuer.names = ["b"]
    assert (await door.come(by="a"), await door.come(by="b")) == (UNKNOWN, "ann")


async def test_while_nothing_is_known_everybody_comes_again() -> None:
    """4001, not 3500: the issuer is at fault."""
    door = Door("a")
    door.issuer.fail = OSError()
    assert await door.come(by="a") == (100, 10.0)
    await door.clock.advance(4)
    assert await door.come(by="a") == (100, 6.0)
    assert door.issuer.asked == 1
    door.issuer.fail = None
    await door.clock.advance(6)
    assert await door.come(by="a") == "ann"


async def test_an_issuer_that_hangs() -> None:
    """Those who need it wait for its patience, those who do not go on."""
    door = Door("a", patience=3)
    await door.come(by="a")
    await door.clock.advance(3600)
    door.issuer.hold = asyncio.Event()
    first = asyncio.ensure_future(door.come("bob", by="a"))
    stranger = asyncio.ensure_future(door.come(by="b"))
    await door.clock.settle()
    assert not first.done()
    assert not stranger.done()
    assert await door.come(by="a") == "ann"
    await door.clock.advance(3)
    assert (await first, await stranger) == ("bob", (100, 10.0))
    assert door.issuer.asked == 2


async def test_the_one_that_fetches_may_be_cancelled() -> None:
    """Its client has gone; the next one fetches, and nobody is told to come again."""
    door = Door("a")
    door.issuer.hold = asyncio.Event()
    first, second, third = (asyncio.ensure_future(door.come(str(n), by="a")) for n in range(3))
    await door.clock.settle()
    first.cancel()
    await door.clock.settle()
    assert door.issuer.asked == 2
    assert not second.done()
    door.issuer.hold.set()
    assert await asyncio.gather(second, third) == ["1", "2"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_who_waits_for_a_fetch_may_be_cancelled() -> None:
    door = Door("a")
    door.issuer.hold = asyncio.Event()
    first, second = (asyncio.ensure_future(door.come(str(n), by="a")) for n in range(2))
    await door.clock.settle()
    second.cancel()
    door.issuer.hold.set()
    assert await first == "0"
    assert door.issuer.asked == 1


def test_it_outlives_an_event_loop() -> None:
    """Also one that was closed in the middle of a fetch."""
    door = Door("a", every=0.001)
    door.issuer.hold = asyncio.Event()

    async def begin() -> None:
        stuck = asyncio.ensure_future(door.come(by="a"))
        await door.clock.settle()
        assert door.issuer.asked == 1
        _stuck.append(stuck)

    _stuck: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    door.issuer.hold = None
    assert asyncio.run(_later(door)) == "ann"
    for task in asyncio.all_tasks(loop):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(_stuck[0])
    loop.close()
    assert asyncio.run(_later(door)) == "ann"


async def _later(door: Door) -> Any:
    await door.clock.advance(1)
    return await door.come(by="a")


# -- keys without names -----------------------------------------------------------------------------------


async def test_the_only_key_may_be_replaced_though_it_has_no_name() -> None:
    door = Door("a")

    async def fetch() -> Any:
        door.issuer.asked += 1
        return {"keys": [{**public_jwk("ES256", name), "kid": None} for name in door.issuer.names]}

    door.keys._fetch = fetch
    assert await door.come(by="a", named=False) == "ann"
    door.issuer.names = ["b"]
    assert await door.come(by="b", named=False) == (100, 10.0)
    await door.clock.advance(10)
    assert await door.come(by="b", named=False) == "ann"
    await door.clock.advance(10)
    assert await door.come(by="a", named=False) == BAD, "looked for, and it is not there"
    assert door.issuer.asked == 3


async def test_a_bad_signature_under_a_known_name_is_a_bad_token() -> None:
    door = Door("a")
    await door.come(by="a")
    await door.clock.advance(100)
    forged = sign({"sub": "eve", "exp": door.clock.time() + 9}, kid="a", **FORGED)
    assert await door.show(forged) == BAD
    assert door.issuer.asked == 1


# -- documents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda x: x, json.dumps, lambda x: json.dumps(x).encode()])
async def test_forms_of_a_document(form: Any) -> None:
    door = Door("a")
    plain = door.issuer.fetch

    async def fetch() -> Any:
        return form(await plain())

    door.keys._fetch = fetch
    assert await door.come(by="a") == "ann"


@pytest.mark.parametrize(
    "document",
    [
        None,
        7,
        "",
        b"\xff",
        "<html>",
        [],
        {},
        {"keys": {}},
        {"keys": []},
        {
            "keys": [
                None,
                1,
                [],
                {},
                {"kty": 5},
                {"kty": "EC"},
                {"kty": "oct", "k": "c2hvcnQ"},
                {"kty": "LMS"},
            ]
        },
        {"keys": [{**public_jwk("ES256", "a"), "use": "enc"}]},
        {"keys": [{**public_jwk("ES256", "a"), "alg": "ES384"}]},
        {"keys": [{**public_jwk("RS256", "a"), "alg": "RSA-OAEP"}]},
        {"keys": [{**public_jwk("ES256", "a"), "x": "AAAA"}]},
    ],
    ids=lambda each: repr(each)[:30],
)
async def test_documents_without_a_usable_key(document: Any) -> None:
    """Nobody is locked out by a mistake of the issuer's: what was known stays."""
    door = Door("a")

    async def fetch() -> Any:
        return document

    good = door.keys._fetch
    door.keys._fetch = fetch
    assert await door.come(by="a") == (100, 10.0)
    door.keys._fetch = good
    await door.clock.advance(10)
    assert await door.come(by="a") == "ann"
    door.keys._fetch = fetch
    await door.clock.advance(3600)
    assert await door.come(by="a") == "ann"
    assert door.keys.statistics().failures == 2


async def test_what_is_of_no_use_does_no_harm() -> None:
    """A shared secret in the set cannot be used with a public key's algorithm, nor the other way round."""
    door = Door("a")
    secret = {"kty": "oct", "kid": "s", "k": "x" * 43}
    private = json.loads(private_jwk := _private_jwk("mine"))
    assert "d" in private_jwk

    async def fetch() -> Any:
        return {"keys": [None, secret, {"kty": "EC", "kid": "a"}, public_jwk("ES256", "a"), private]}

    door.keys._fetch = fetch
    assert await door.come(by="a") == "ann"
    assert await door.come(by="mine") == "ann"
    assert door.keys.statistics().keys == 3
    assert await door.show(sign({"sub": "x", "exp": 9e9}, key=SECRET, kid="s")) == BAD, "its algorithm"
    assert "x" * 43 not in repr(vars(door.keys))
    assert not any(hasattr(key.material, "sign") for keys in door.keys._keys.values() for key in keys)


def _private_jwk(name: str) -> str:
    import jwt

    found = jwt.get_algorithm_by_name("ES256").to_jwk(private_key("ES256", name), as_dict=True)
    return json.dumps({**found, "kid": name})


async def test_shared_secrets_from_a_set() -> None:
    clock = ManualClock()
    import base64

    async def fetch() -> Any:
        k = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
        return {"keys": [{"kty": "oct", "kid": "s", "k": k, "alg": "HS256"}]}

    auth = JwtAuthentication(KeySet(fetch, clock=clock), algorithms=["HS256"], clock=clock)
    token = sign({"sub": "ann", "exp": clock.time() + 9}, kid="s")
    assert (await auth(Credentials(token=token))).user == "ann"
    assert SECRET not in repr(auth) + repr(vars(auth)) + repr(auth._keys._keys)
