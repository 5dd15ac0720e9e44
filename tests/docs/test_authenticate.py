"""The page about authentication: its code runs, and its table is what clients see."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path
from typing import Any

import httpx
import httpx2
import jwt
import pytest

from rtkit import Limits, Reject
from rtkit.client import connect
from rtkit.errors import CallError, ConnectionClosed
from rtkit.testing import ManualClock
from rtkit.transports import Handshake
from tests.docs.blocks import ROOT, blocks, prose
from tests.support.rawclient import RawClient
from tests.support.servers import serve_asgi
from tests.unit.ext.tokens import private_key, public_jwk, sign

PAGE = "docs/how-to/authenticate.md"
SECRET = "a secret for the tests of this page"


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CHAT_SECRET", SECRET)
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    (block,) = blocks(PAGE, "python", name)
    exec(block.code(), vars(page))
    return page


async def test_tokens_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    page = run("tokens", monkeypatch)
    async with serve_asgi(page.app, lifespan="on") as port, httpx2.AsyncClient() as http:

        async def token() -> str:
            found: str = (await http.post(f"http://127.0.0.1:{port}/token?user=ann")).json()
            return found

        async with connect(f"http://127.0.0.1:{port}/rt", token=token) as client:
            room = await client.join("chat:a").joined()
            with pytest.raises(CallError):
                await room.send("only staff may")
            (session,) = page.hub.engine.sessions.values()
            assert session.identity.claims == page.Claims("ann")


async def test_an_identity_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    page = run("issuer", monkeypatch)
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"keys": [public_jwk("ES256", "k")]})

    plain = httpx.AsyncClient
    monkeypatch.setattr(httpx, "AsyncClient", lambda: plain(transport=httpx.MockTransport(answer)))
    claims = {"sub": "ann", "iss": page.ISSUER, "aud": "chat", "exp": time.time() + 60}
    made = sign(claims, key=private_key("ES256", "k"), algorithm="ES256", kid="k")
    assert (await page.auth.verify(made))["sub"] == "ann"
    assert asked == ["https://login.example.org/.well-known/jwks.json"]


async def test_a_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    page = run("cookie", monkeypatch)
    async with serve_asgi(page.app, lifespan="on") as port, httpx2.AsyncClient() as http:
        answer = await http.post(f"http://127.0.0.1:{port}/login?user=ann")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "Secure" in cookie
        headers = {"cookie": cookie.partition(";")[0]}
        async with connect(f"http://127.0.0.1:{port}/rt", headers=headers) as client:
            await client.join("lobby").joined()
        with pytest.raises(ConnectionClosed):
            async with connect(f"http://127.0.0.1:{port}/rt"):
                pass


def test_djangos_session(tmp_path: Path) -> None:
    """In a process of its own, since Django is configured once."""
    (block,) = blocks(PAGE, "python", "django")
    code = f"""
        import asyncio, django
        from django.conf import settings
        settings.configure(
            SECRET_KEY="x" * 50, SESSION_ENGINE="django.contrib.sessions.backends.db",
            INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
            DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {str(tmp_path / "db")!r}}}}},
            USE_TZ=True,
        )
        django.setup()
        exec({block.text!r})
        from django.contrib.auth import alogin
        from django.contrib.auth.models import User
        from django.contrib.sessions.models import Session
        from django.db import connection
        with connection.schema_editor() as editor:
            editor.create_model(User)
            editor.create_model(Session)
        User.objects.create(username="ann")

        async def main():
            user = await User.objects.aget(username="ann")
            request = HttpRequest()
            request.session = import_module(settings.SESSION_ENGINE).SessionStore()
            await alogin(request, user)
            await request.session.asave()
            shown = {{settings.SESSION_COOKIE_NAME: request.session.session_key}}
            identity = await authenticate(Credentials(cookies=shown))
            assert identity.user == str(user.pk) and identity.expires_at > 1e9, identity
            for cookies in ({{}}, {{settings.SESSION_COOKIE_NAME: "forged"}}):
                try:
                    await authenticate(Credentials(cookies=cookies))
                except Reject as error:
                    assert error.code == 101
                else:
                    raise AssertionError
            print("fine")
        asyncio.run(main())
    """
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert found.stdout.strip() == "fine", found.stderr


async def test_a_token_for_a_room(monkeypatch: pytest.MonkeyPatch) -> None:
    page = run("rooms", monkeypatch)
    clock = ManualClock(wall=time.time())
    page.hub.clock = clock

    def made(**claims: Any) -> str:
        return jwt.encode({"sub": "ann", "exp": clock.time() + 60, **claims}, SECRET, algorithm="HS256")

    async with page.hub:
        raw = RawClient(page.hub, clock, handshake=Handshake())
        await raw.connect(made())
        assert (await raw.refused("subscribe", channel="lesson:1", token=made()))["code"] == 103
        joined = await raw.call("subscribe", channel="lesson:1", token=made(channel="lesson:1"))
        assert joined["ttl"] == 60
        other = RawClient(page.hub, clock)
        other.ask("connect", token=made(channel="lesson:1"))
        await other.settle()
        assert other.close_code == 3500
        await raw.leave()


async def test_single_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    page = run("revoked", monkeypatch)
    token = jwt.encode({"sub": "ann", "exp": time.time() + 60, "jti": "1"}, SECRET, algorithm="HS256")
    assert (await page.auth.verify(token))["jti"] == "1"
    page.stolen.add("1")
    with pytest.raises(Reject):
        await page.auth.verify(token)


def test_the_numbers_are_the_defaults() -> None:
    text = prose(PAGE)
    assert f"nothing within {Limits().auth_timeout:g} s" in text
    assert f"(3005) {Limits().refresh_leeway:g} s after the end" in text
    import inspect

    from rtkit.ext.jwt import KeySet

    told = inspect.signature(KeySet).parameters
    assert (told["ttl"].default, told["every"].default) == (3600, 10)
    assert "every hour" in text and "twice within 10 s" in text
