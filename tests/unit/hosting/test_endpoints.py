"""What is answered to plain HTTP, whoever serves it."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from rtkit.hosting import endpoints
from rtkit.hosting.endpoints import Crowded, Endpoints, Request, Response, etag_matches, plain, refusal


def answer(request: Request, ready: Any = None) -> tuple[int, dict[str, str], bytes]:
    response = Endpoints(ready).answer(request)
    headers = dict(response.headers)
    assert len(headers) == len(response.headers)
    assert all(name == name.lower() for name in headers)
    if request.method != "HEAD" and response.status not in (204, 304):
        assert headers["content-length"] == str(len(response.body))
    return response.status, headers, response.body


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The browser SDK of an installation; gone until it is written."""
    (tmp_path / "browser").mkdir()
    monkeypatch.setattr(resources, "files", lambda package: {"rtkit": tmp_path}[package])
    return tmp_path / "browser" / "client.js"


def test_the_browser_sdk(script: Path) -> None:
    script.write_bytes("export const é = 1;\n".encode())
    status, headers, body = answer(Request("GET", "client.js"))
    assert (status, body) == (200, script.read_bytes())
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    assert headers == {
        "content-type": "text/javascript; charset=utf-8",
        "content-length": str(len(body)),
        "cache-control": "no-cache",
        "etag": tag,
        "access-control-allow-origin": "*",
        "x-content-type-options": "nosniff",
    }
    assert answer(Request("HEAD", "client.js")) == (200, headers, b"")
    status, again, body = answer(Request("GET", "client.js", {"if-none-match": f'"x", {tag}'}))
    assert (status, body) == (304, b"")
    assert again.items() <= headers.items()
    assert "content-length" not in again
    assert answer(Request("GET", "client.js", {"if-none-match": '"x"'}))[0] == 200
    assert answer(Request("POST", "client.js"))[0] == 405
    assert answer(Request("OPTIONS", "client.js"))[0] == 204


def test_an_installation_without_it(script: Path) -> None:
    ends = Endpoints()
    response = ends.answer(Request("GET", "client.js"))
    assert response.status == 404
    assert b"browser SDK" in response.body
    script.write_text("now")
    assert ends.answer(Request("GET", "client.js")).status == 200
    script.unlink()
    assert ends.answer(Request("GET", "client.js")).status == 200, "read once"


def test_its_types(script: Path) -> None:
    (script.parent / "client.d.ts").write_text("export type X = 1;")
    status, headers, _ = answer(Request("GET", "client.d.ts"))
    assert status == 200
    assert headers["content-type"].startswith("text/")


@pytest.mark.parametrize("endpoint", ["", "x", "client.ts", "Ready", "WS", "__init__.py", "..", "ready/"])
def test_nothing_else(endpoint: str) -> None:
    status, headers, body = answer(Request("GET", endpoint))
    assert status == 404
    assert body.decode() == endpoints.NOT_FOUND
    assert headers["cache-control"] == "no-store"
    assert not Endpoints().knows(endpoint)


def test_what_is_known() -> None:
    assert all(Endpoints().knows(name) for name in ("ready", "ws", "websocket", "client.js", "client.d.ts"))


def test_readiness() -> None:
    assert answer(Request("GET", "ready"))[0] == 204
    status, headers, body = answer(Request("GET", "ready"), lambda: 2.5)
    assert (status, headers["retry-after"], body) == (503, "2", b"not ready\n")
    assert headers["access-control-allow-origin"] == "*"
    assert answer(Request("HEAD", "ready"), lambda: 2.5)[2] == b""
    # A balancer looks at the status: a hub with a crowd is well (T7).
    status, headers, body = answer(Request("GET", "ready"), lambda: Crowded(1.0))
    assert (status, headers["retry-after"], body) == (204, "1", b"")
    assert headers["access-control-expose-headers"] == "retry-after"


def test_a_websocket_without_an_upgrade() -> None:
    status, headers, body = answer(Request("GET", "ws"))
    assert (status, headers["upgrade"], headers["connection"]) == (426, "websocket", "Upgrade")
    assert b"proxy" in body
    status, headers, body = answer(Request("GET", "ws", {"upgrade": "websocket"}, "2"))
    assert "connection" not in headers
    assert b"pip install websockets" in body


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        (None, False),
        ("", False),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ('"b","a" ', True),
        ("*", True),
        ('"b"', False),
        ("a", False),
        ('"A"', False),
    ],
)
def test_tags(header: str | None, matches: bool) -> None:
    assert etag_matches(header, '"a"') is matches


def test_refusals() -> None:
    assert refusal(403, "no").body == b"no\n"
    assert refusal(403, "no\n").body == b"no\n"
    assert "retry-after" not in dict(refusal(403, "no").headers)
    assert dict(refusal(503, "later", 7).headers)["retry-after"] == "7"
    assert plain(404, "é", head=True) == Response(404, plain(404, "é").headers)
    assert repr(Endpoints()) == "<Endpoints>"
