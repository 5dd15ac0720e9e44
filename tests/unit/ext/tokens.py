"""Keys and tokens for the tests of :mod:`rtkit.ext.jwt`, and an issuer whose keys come and go."""

from __future__ import annotations

import base64
import functools
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rtkit.testing import ManualClock

__all__ = ["SECRET", "Issuer", "private_key", "public_jwk", "public_pem", "raw_token", "sign"]

SECRET = "a secret that only the application has, and its nodes"


def private_key(algorithm: str, name: str = "") -> Any:
    """A key to sign with; the same for the same name."""
    return _make(algorithm, name)


@functools.cache
def _make(algorithm: str, name: str) -> Any:
    if algorithm.startswith(("RS", "PS")):
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curve = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}[algorithm]
    return ec.generate_private_key(curve)


def public_pem(algorithm: str, name: str = "") -> bytes:
    key = private_key(algorithm, name).public_key()
    pem: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def public_jwk(algorithm: str, name: str, **more: Any) -> dict[str, Any]:
    """As an issuer publishes it."""
    found = jwt.get_algorithm_by_name(algorithm).to_jwk(
        private_key(algorithm, name).public_key(), as_dict=True
    )
    found.pop("key_ops", None)
    return {**found, "kid": name, **more}


def sign(
    claims: dict[str, Any],
    *,
    key: Any = SECRET,
    algorithm: str = "HS256",
    kid: str | None = None,
    **headers: Any,
) -> str:
    if kid is not None:
        headers["kid"] = kid
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)


def raw_token(header: Any, payload: Any, signature: bytes = b"") -> str:
    """Three parts of whatever is given; text is taken as it is."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, payload)]
    return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in (*parts, signature))


class Issuer:
    """Publishes keys, signs tokens, and can be away.

    :ivar asked: how often its keys were fetched.
    :ivar hold: a future that a fetch waits for, if there is one.
    """

    def __init__(self, clock: ManualClock, *names: str, algorithm: str = "ES256") -> None:
        self.clock = clock
        self.algorithm = algorithm
        self.names = list(names)
        self.asked = 0
        self.fail: BaseException | None = None
        self.hold: Any = None

    async def fetch(self) -> dict[str, Any]:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.fail is not None:
            raise self.fail
        return {"keys": [public_jwk(self.algorithm, name) for name in self.names]}

    def token(
        self, user: str = "ann", *, by: str, ttl: float = 300, named: bool = True, **claims: Any
    ) -> str:
        return sign(
            {"sub": user, "exp": self.clock.time() + ttl, **claims},
            key=private_key(self.algorithm, by),
            algorithm=self.algorithm,
            kid=by if named else None,
        )
