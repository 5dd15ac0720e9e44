"""Tokens: which are good, what clients are told of the others, and what is never written anywhere (A1, A3, A5)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, TypedDict

import jwt
import msgspec
import pydantic
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rtkit import Credentials, Hub, Identity, Reject
from rtkit.errors import DeclarationError, UsageError
from rtkit.ext.jwt import JwtAuthentication, KeySet
from rtkit.testing import ManualClock
from tests.unit.ext.tokens import SECRET, private_key, public_jwk, public_pem, raw_token, sign


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def auth(clock: ManualClock, keys: Any = SECRET, algorithms: Any = ("HS256",), **options: Any) -> Any:
    return JwtAuthentication(keys, algorithms=algorithms, clock=clock, **options)


async def refused(check: Any, token: str | None, **credentials: Any) -> tuple[int, str, float | None]:
    with pytest.raises(Reject) as caught:
        await check(Credentials(token=token, **credentials))
    return caught.value.code, caught.value.message, caught.value.retry_after


BAD = (101, "bad token", None)
EXPIRED = (109, "token expired", None)
UNKNOWN_KEY = (109, "token expired: its key is not in use", None)


def claims(clock: ManualClock, ttl: float = 300, **more: Any) -> dict[str, Any]:
    return {"sub": "ann", "exp": clock.time() + ttl, **more}


# -- good ones ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "HS512", "RS256", "PS256", "ES256", "ES384", "EdDSA"])
async def test_a_good_token(clock: ManualClock, algorithm: str) -> None:
    secret = algorithm.startswith("HS")
    key = SECRET.ljust(64) if secret else private_key(algorithm)
    verifying = key if secret else public_pem(algorithm)
    given = claims(clock, tenant=4)
    identity = await auth(clock, verifying, [algorithm])(
        Credentials(token=sign(given, key=key, algorithm=algorithm))
    )
    assert identity == Identity("ann", given, expires_at=given["exp"])


@pytest.mark.parametrize("form", ["pem", "text", "object", "jwk"])
async def test_forms_of_a_public_key(clock: ManualClock, form: str) -> None:
    key: Any = {
        "pem": public_pem("ES256"),
        "text": public_pem("ES256").decode(),
        "object": private_key("ES256").public_key(),
        "jwk": jwt.PyJWK(public_jwk("ES256", "")),
    }[form]
    token = sign(claims(clock), key=private_key("ES256"), algorithm="ES256")
    assert (await auth(clock, key, ["ES256"])(Credentials(token=token))).user == "ann"


async def test_keys_by_id(clock: ManualClock) -> None:
    """Two secrets are good while one replaces the other."""
    old, new = SECRET, SECRET[::-1]
    check = auth(clock, {"old": old, "new": new})
    for kid, key in (("old", old), ("new", new)):
        assert (await check(Credentials(token=sign(claims(clock), key=key, kid=kid)))).user == "ann"
    assert await refused(check, sign(claims(clock), key=old, kid="new")) == BAD
    assert await refused(check, sign(claims(clock), key=old, kid="gone")) == UNKNOWN_KEY
    assert await refused(check, sign(claims(clock), key=old)) == UNKNOWN_KEY, "which of the two?"


async def test_the_only_key_needs_no_name(clock: ManualClock) -> None:
    assert (await auth(clock, {"k": SECRET})(Credentials(token=sign(claims(clock))))).user == "ann"
    assert (await auth(clock)(Credentials(token=sign(claims(clock), kid="any")))).user == "ann"


async def test_the_token_of_a_cookie_is_the_last_resort(clock: ManualClock) -> None:
    check = auth(clock, cookie="__Host-token")
    cookies = {"__Host-token": sign(claims(clock)), "other": "x"}
    assert (await check(Credentials(cookies=cookies))).user == "ann"
    assert (await check(Credentials(token=sign(claims(clock, sub="bob")), cookies=cookies))).user == "bob"
    assert await refused(check, "nonsense", cookies=cookies) == BAD, "no second try with the cookie"
    assert await refused(check, None, cookies={"other": cookies["__Host-token"]}) == (101, "no token", None)
    assert await refused(auth(clock), None, cookies=cookies) == (101, "no token", None)


# -- time ---------------------------------------------------------------------------------------------


async def test_the_end_is_the_identitys_to_the_second(clock: ManualClock) -> None:
    check, token = auth(clock, leeway=30), sign(claims(clock, 300))
    await clock.advance(299.9)
    assert (await check(Credentials(token=token))).expires_at == clock.time() + 300 - 299.9
    await clock.advance(0.1)
    assert await refused(check, token) == EXPIRED


async def test_a_token_without_an_end(clock: ManualClock) -> None:
    """Is refused, unless it is said that they hold for ever."""
    token = sign({"sub": "ann"})
    assert await refused(auth(clock), token) == BAD
    assert await refused(auth(clock), raw_sign({"sub": "ann", "exp": None})) == BAD
    assert await auth(clock, must_expire=False)(Credentials(token=token)) == Identity("ann", {"sub": "ann"})
    assert await refused(auth(clock, must_expire=False), sign(claims(clock, -1))) == EXPIRED


def raw_sign(payload: Any, header: Any = None) -> str:
    """Signed, whatever it is; PyJWT would not make some of these."""
    unsigned = raw_token(header or {"alg": "HS256"}, payload).rpartition(".")[0]
    signature = jwt.get_algorithm_by_name("HS256").sign(unsigned.encode(), SECRET.encode())
    return f"{unsigned}.{raw_token(b'', b'', signature).rpartition('.')[2]}"


@pytest.mark.parametrize(
    "exp",
    [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"true", b'"1999999999"', b"[1]", b"-1", b"253402300800"]
    + [b"1" * size for size in (400, 5000)],
    ids=lambda exp: exp[:12].decode(),
)
async def test_an_end_that_is_no_time(clock: ManualClock, exp: bytes) -> None:
    assert await refused(auth(clock), raw_sign(b'{"sub": "ann", "exp": %b}' % exp)) == BAD


async def test_a_token_that_has_not_begun(clock: ManualClock) -> None:
    """The issuer's clock may be a little ahead; beyond that the client is told to come back, not to stay away."""
    check = auth(clock, leeway=10)
    token = sign(claims(clock, nbf=clock.time() + 25))
    assert await refused(check, token) == (101, "token not valid yet", 15.0)
    await clock.advance(15)
    assert (await check(Credentials(token=token))).user == "ann"
    far = sign(claims(clock, 9999, nbf=clock.time() + 5000))
    assert await refused(check, far) == (101, "token not valid yet", 60.0)
    assert await refused(check, sign(claims(clock, nbf="soon"))) == BAD
    assert (await check(Credentials(token=sign(claims(clock, iat=clock.time() + 500))))).user == "ann"


# -- whose, and for whom --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "given", "good"),
    [
        ({}, {"iss": "them"}, True),
        ({}, {"aud": "them"}, False),
        ({"issuer": "us"}, {"iss": "us"}, True),
        ({"issuer": "us"}, {"iss": "us2"}, False),
        ({"issuer": "us"}, {"iss": ["us"]}, False),
        ({"issuer": "us"}, {}, False),
        ({"issuer": ["us", "ours"]}, {"iss": "ours"}, True),
        ({"issuer": ["us", "ours"]}, {"iss": "our"}, False),
        ({"audience": "chat"}, {"aud": "chat"}, True),
        ({"audience": "chat"}, {"aud": ["mail", "chat"]}, True),
        ({"audience": ["chat", "talk"]}, {"aud": ["talk"]}, True),
        ({"audience": "chat"}, {"aud": "mail"}, False),
        ({"audience": "chat"}, {"aud": 7}, False),
        ({"audience": "chat"}, {"aud": []}, False),
        ({"audience": "chat"}, {}, False),
    ],
)
async def test_issuer_and_audience(
    clock: ManualClock, options: dict[str, Any], given: dict[str, Any], good: bool
) -> None:
    token = raw_sign({**claims(clock), **given})
    if good:
        assert (await auth(clock, **options)(Credentials(token=token))).user == "ann"
    else:
        assert await refused(auth(clock, **options), token) == BAD


async def test_who_it_is(clock: ManualClock) -> None:
    def named(claims: dict[str, Any]) -> str:
        return f"{claims['tenant']}/{claims['sub']}"

    for user, given, found in (
        ("uid", {"uid": 7}, "7"),
        ("uid", {"uid": "x:é"}, "x:é"),
        (named, {"tenant": 3}, "3/ann"),
    ):
        token = raw_sign({**claims(clock), **given})
        assert (await auth(clock, user=user)(Credentials(token=token))).user == found
    for value in (None, "", "a\nb", "x" * 256, True, 1.5, ["ann"], {"a": 1}):
        assert await refused(auth(clock), raw_sign({**claims(clock), "sub": value})) == BAD
    assert await refused(auth(clock, user="uid"), raw_sign(claims(clock))) == BAD


async def test_a_token_for_a_room_opens_no_connection(clock: ManualClock) -> None:
    """Whoever gives those out may give them to others than those who may connect."""
    assert await refused(auth(clock), sign(claims(clock, channel="chat:a"))) == BAD
    assert (await auth(clock, room="room")(Credentials(token=sign(claims(clock, channel="a"))))).user == "ann"
    assert await refused(auth(clock, room="room"), sign(claims(clock, room="a"))) == BAD


async def test_revoked(clock: ManualClock) -> None:
    """By its own id, say; asked last, about tokens that are good otherwise."""
    asked: list[Any] = []

    async def revoked(claims: Any) -> bool:
        asked.append(claims["jti"])
        if claims["jti"] == "broken":
            raise ConnectionError("the database is away")
        return bool(claims["jti"] == "stolen")

    check = auth(clock, revoked=revoked)
    assert (await check(Credentials(token=sign(claims(clock, jti="mine"))))).user == "ann"
    assert await refused(check, sign(claims(clock, jti="stolen"))) == BAD
    assert await refused(check, sign(claims(clock, -5, jti="old"))) == EXPIRED
    assert await refused(check, sign(claims(clock, jti="forged"), key="f" * 32)) == BAD
    with pytest.raises(ConnectionError):
        await check(Credentials(token=sign(claims(clock, jti="broken"))))
    assert asked == ["mine", "stolen", "broken"]


# -- typed claims -------------------------------------------------------------------------------------


@dataclass
class Staff:
    sub: str
    tenant: int
    admin: bool = False


class Struct(msgspec.Struct):
    sub: str
    tenant: int


class Model(pydantic.BaseModel):
    sub: str
    tenant: int


class Typed(TypedDict):
    sub: str
    tenant: int


@pytest.mark.parametrize("type_", [Staff, Struct, Model, Typed])
async def test_typed_claims(clock: ManualClock, caplog: pytest.LogCaptureFixture, type_: type[Any]) -> None:
    check = auth(clock, claims=type_)
    found = (await check(Credentials(token=sign(claims(clock, tenant=4))))).claims
    if type_ is Typed:
        assert found["tenant"] == 4
    else:
        assert isinstance(found, type_)
        assert found.tenant == 4
    with caplog.at_level(logging.INFO):
        assert await refused(check, sign(claims(clock, tenant="s3cr3t"))) == BAD
        assert await refused(check, sign(claims(clock))) == BAD
    assert "$.tenant" in caplog.text
    assert "s3cr3t" not in caplog.text


async def test_a_user_made_of_typed_claims(clock: ManualClock) -> None:
    check = JwtAuthentication(
        SECRET,
        algorithms=["HS256"],
        claims=Staff,
        user=lambda staff: f"{staff.tenant}:{staff.sub}",
        clock=clock,
    )
    assert (await check(Credentials(token=sign(claims(clock, tenant=4))))).user == "4:ann"


def test_claims_that_cannot_be_declared(clock: ManualClock) -> None:
    with pytest.raises(DeclarationError):
        auth(clock, claims=complex)


# -- forgery ------------------------------------------------------------------------------------------


async def test_tokens_without_a_signature(clock: ManualClock) -> None:
    """RFC 8725, section 2.1."""
    for alg in ("none", "None", "NONE", "nOnE", "", None, 0, ["HS256"], {"a": 1}):
        for keys, algorithms in ((SECRET, ["HS256"]), (public_pem("ES256"), ["ES256"])):
            assert await refused(auth(clock, keys, algorithms), raw_token({"alg": alg}, claims(clock))) == BAD
    assert await refused(auth(clock), raw_token({"typ": "JWT"}, claims(clock))) == BAD
    assert await refused(auth(clock), raw_token({"alg": "HS256"}, claims(clock))) == BAD


async def test_a_public_key_is_no_secret(clock: ManualClock) -> None:
    """RFC 8725, section 2.1: HS256 with the bytes that everybody knows."""
    for algorithm in ("RS256", "ES256", "EdDSA"):
        public = private_key(algorithm).public_key()
        check = auth(clock, public_pem(algorithm), [algorithm])
        for known in (
            public_pem(algorithm),
            public_pem(algorithm).rstrip(),
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        ):
            unsigned = raw_token({"alg": "HS256"}, claims(clock)).rpartition(".")[0]
            signature = jwt.get_algorithm_by_name("HS256").sign(unsigned.encode(), known)
            forged = f"{unsigned}.{raw_token(b'', b'', signature).rpartition('.')[2]}"
            assert await refused(check, forged) == BAD


async def test_another_algorithm_of_the_same_key(clock: ManualClock) -> None:
    """Those that are not listed are refused, though the key could verify them."""
    check = auth(clock, public_pem("RS256"), ["RS256"])
    for algorithm in ("RS512", "PS256"):
        assert await refused(check, sign(claims(clock), key=private_key("RS256"), algorithm=algorithm)) == BAD


async def test_tampered(clock: ManualClock) -> None:
    check = auth(clock)
    header, payload, signature = sign(claims(clock)).split(".")
    other = sign(claims(clock, sub="bob")).split(".")
    for forged in (
        f"{header}.{other[1]}.{signature}",
        f"{header}.{payload}.{signature[:-2]}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}..{signature}",
        f".{payload}.{signature}",
        f"{header}.{payload}.{signature}.{signature}",
        f"{header}.{payload}.{signature}.{signature}.{signature}",  # as an encrypted one has them
    ):
        assert await refused(check, forged) == BAD


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "kid": 7},
        {"alg": "HS256", "kid": ["a"]},
        {"alg": "HS256", "crit": ["exp"], "exp": 1},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
        [1],
        "HS256",
        b"\xff\xfe",
        b"[" * 2000,
    ],
    ids=repr,
)
async def test_odd_headers(clock: ManualClock, header: Any) -> None:
    assert await refused(auth(clock), raw_sign(claims(clock), header)) == BAD


@pytest.mark.parametrize(
    "payload", [[1], "x", b"", b"{", b"\xff", b"[" * 2000, b'{"a":' * 1000], ids=lambda each: repr(each)[:20]
)
async def test_odd_payloads(clock: ManualClock, payload: Any) -> None:
    assert await refused(auth(clock, must_expire=False), raw_sign(payload)) == BAD


@pytest.mark.parametrize("token", [" ", "x", "...", "é.é.é", "\ud800.a.b", "\0", "a" * 100_000, "=.=.="])
async def test_no_token_at_all(clock: ManualClock, token: str) -> None:
    assert await refused(auth(clock), token) == BAD


async def test_the_size_is_bounded(clock: ManualClock) -> None:
    """Before anything is decoded."""
    assert (await auth(clock)(Credentials(token=sign(claims(clock, x="x" * 5500))))).user == "ann"
    assert await refused(auth(clock), sign(claims(clock, x="x" * 6200))) == BAD


# -- what cannot be configured --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "algorithms", "why"),
    [
        (SECRET, [], "names what your issuer signs with"),
        (SECRET, ["none"], "names what your issuer signs with"),
        (SECRET, ["HS256", "none"], "names what your issuer signs with"),
        (SECRET, ["hs256"], "names what your issuer signs with"),
        (SECRET, "HS256", "is a list"),
        (public_pem("RS256"), ["HS256", "RS256"], "mixes HMAC with public keys"),
        ({"a": SECRET, "b": public_pem("RS256")}, ["HS256"], "no key for"),
        (public_pem("RS256"), ["HS256"], "no key for"),
        (public_jwk("ES256", "a"), ["ES256"], "no key for"),
        ("short", ["HS256"], "as long as the hash"),
        ("", ["HS256"], "as long as the hash"),
        (SECRET[:40], ["HS512"], "as long as the hash"),
        (SECRET, ["RS256"], "take a public key"),
        (public_pem("ES256"), ["RS256"], "take a public key"),
        (public_pem("ES384"), ["ES256"], "take a public key"),
        (private_key("ES256"), ["ES256"], "this is a private key"),
        (private_key("RS256"), ["RS256"], "this is a private key"),
        (7, ["HS256"], "no key for"),
        ({}, ["HS256"], "there is no key"),
    ],
)
def test_keys_and_algorithms_that_do_not_fit(
    clock: ManualClock, keys: Any, algorithms: Any, why: str
) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        auth(clock, keys, algorithms)
    assert SECRET[:10] not in str(caught.value)


def test_options_that_cannot_be(clock: ManualClock) -> None:
    for options in ({"issuer": ""}, {"audience": []}, {"issuer": ()}):
        with pytest.raises(UsageError, match="None asks for nothing"):
            auth(clock, **options)
    for leeway in (-1, float("nan")):
        with pytest.raises(ValueError, match="leeway="):
            auth(clock, leeway=leeway)
    with pytest.raises(ValueError, match="KeySet"):
        KeySet(None, ttl=0)  # type: ignore[arg-type]


def test_it_is_an_authenticate(clock: ManualClock) -> None:
    Hub(authenticate=auth(clock))


# -- secrets ------------------------------------------------------------------------------------------


async def test_nothing_secret_is_written_anywhere(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A5: neither key nor token; of a token's claims only where they do not fit."""
    check = auth(clock, claims=Staff, cookie="t", audience="us")
    mark = "m4rk"
    bad = [
        sign(claims(clock, -5, x=mark)),
        sign(claims(clock, sub=mark, aud="us", tenant=mark)),
        sign(claims(clock, aud=mark, tenant=4)),
        sign(claims(clock, aud="us", tenant=4, x=mark), key="k" * 32),
        sign(claims(clock, aud="us", tenant=4, nbf=clock.time() + 99, x=mark)),
        raw_sign(b'{"exp": 1%b}' % mark.encode()),
        mark * 3000,
    ]
    with caplog.at_level(logging.DEBUG):
        for token in bad:
            with pytest.raises(Reject) as caught:
                await check(Credentials(token=token, address="192.0.2.1"))
            assert mark not in repr(caught.value)
            assert token[:40] not in repr(caught.value)
            assert caught.value.__cause__ is None or mark not in str(caught.value.__cause__)
    assert len([record for record in caplog.records if record.name == "rtkit.auth"]) == len(bad)
    said = caplog.text + repr(check) + repr(vars(check))
    assert mark not in said
    for secret in (SECRET[:20], *(token[-20:] for token in bad), *(token[:40] for token in bad)):
        assert secret not in said
    assert "192.0.2.1" in caplog.text
