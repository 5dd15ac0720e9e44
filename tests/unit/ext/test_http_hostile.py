"""The HTTP API attacked by Hypothesis: whatever is sent, the answer is one of those that are documented."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rtkit import Hub, anonymous
from rtkit.ext.http_api import HttpApi
from rtkit.ext.http_commands import COMMANDS
from rtkit.hosting.endpoints import Request, Response
from rtkit.testing import TestHub
from tests.unit.ext.conftest import KEY, declare

FIELDS = [
    "channel", "channels", "data", "b64data", "tags", "skip_history", "idempotency_key", "version", "limit",
    "since", "reverse", "user", "client", "disconnect", "code", "reason", "offset", "epoch", "pattern",
    "expired", "expire_at", "info", "commands", "parallel", *COMMANDS,
]  # fmt: skip

text = st.text(max_size=20) | st.sampled_from(["kept:a", "chat:a", "live:a", "nowhere", "ann", "\ud800"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | text, inner, max_size=4)
    ),
    max_leaves=12,
)
bodies = (
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=6).map(lambda value: json.dumps(value).encode())
    | values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=60)
)
endpoints = st.sampled_from([*COMMANDS, "batch"])


def ask(request: Request, body: bytes) -> Response:
    async def main() -> Response:
        hub: Hub[Any] = declare(Hub(authenticate=anonymous))
        async with TestHub(hub):
            return await HttpApi(hub, key=KEY).handle(request, body)

    return asyncio.run(main())


@given(endpoint=endpoints, body=bodies)
@settings(max_examples=250, deadline=None)
def test_whatever_the_body(endpoint: str, body: bytes) -> None:
    response = ask(Request("POST", endpoint, {"x-api-key": KEY}), body)
    assert response.status in (200, 400)
    if response.status == 200:
        answer = json.loads(response.body)
        (kind,) = answer
        assert kind in ("result", "error", "replies")
        for each in [answer, *answer.get("replies", []), *answer.get("result", {}).get("responses", [])]:
            if "error" in each:
                assert each["error"]["code"] in (102, 104, 106, 107, 108, 112)
                assert "internal" not in each["error"]["message"]


@given(
    method=st.text(max_size=8) | st.just("POST"),
    endpoint=st.text(max_size=12) | endpoints,
    headers=st.dictionaries(
        st.sampled_from(["x-api-key", "authorization", "content-length", "x-centrifugo-error-mode"]),
        st.text(max_size=40) | st.text(max_size=40).map(lambda key: f"apikey {key}"),
    ),
    body=st.binary(max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_whatever_the_head(method: str, endpoint: str, headers: dict[str, str], body: bytes) -> None:
    response = ask(Request(method, endpoint, headers), body)
    assert response.status == (401 if method == "POST" else 405)
