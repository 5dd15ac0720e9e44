"""The page on monitoring runs as it stands, and names nothing that there is not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import types
from typing import Any

import httpx2
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families as parse

from rtkit import Hub, Limits, anonymous
from rtkit.client import connect
from rtkit.ext.prometheus import PrometheusExporter
from tests.docs.blocks import ROOT, blocks
from tests.support.servers import serve_asgi

PAGE = "docs/how-to/monitor.md"


def run(kind: str) -> Any:
    (block,) = blocks(PAGE, "python", kind)
    module = types.ModuleType("page")
    exec(block.code(), vars(module))
    return module


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def value(text: str, name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in parse(text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found


async def test_fastapi_on_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("METRICS_PORT", str(port))
    page = run("fastapi")
    try:
        async with serve_asgi(page.app, lifespan="on") as public, httpx2.AsyncClient() as http:
            async with connect(f"http://127.0.0.1:{public}/rt"):
                text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
            for path in ("/metrics", "/rt/metrics"):
                assert (await http.get(f"http://127.0.0.1:{public}{path}")).status_code == 404
    finally:
        REGISTRY.unregister(page.exporter)
    assert value(text, "rtkit_connections", transport="websocket") == 1
    assert value(text, "process_open_fds") > 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_our_own_server() -> None:
    (block,) = blocks(PAGE, "python", "own")
    ports = {"PORT": str(free_port()), "METRICS_PORT": str(free_port())}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", block.text, env={**os.environ, **ports}
    )
    try:
        async with (
            asyncio.timeout(30),
            connect(f"http://127.0.0.1:{ports['PORT']}/rt") as client,
            client.join("lobby") as room,
            httpx2.AsyncClient() as http,
        ):
            await room.send("hello")
            text = (await http.get(f"http://127.0.0.1:{ports['METRICS_PORT']}/metrics")).text
        assert value(text, "rtkit_publications_total") == 1
        assert value(text, "rtkit_members", state="live") == 1
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_opentelemetry() -> None:
    """The SDK reads once more as the process ends, and so prints what there was."""
    (block,) = blocks(PAGE, "python", "opentelemetry")
    port = str(free_port())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", block.text, env={**os.environ, "PORT": port}, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with (
            asyncio.timeout(30),
            connect(f"http://127.0.0.1:{port}/rt") as client,
            client.join("lobby") as room,
        ):
            await room.send("hello")
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = await process.communicate()
    assert process.returncode == 0
    (scope,) = json.loads(said)["resource_metrics"][0]["scope_metrics"]
    told = {metric["name"]: metric["data"]["data_points"] for metric in scope["metrics"]}
    assert told["rtkit.publications"][0]["value"] == 1
    assert told["rtkit.delivery"][0]["count"] == 1


async def test_an_internal_application() -> None:
    page = run("asgi")
    async with (
        serve_asgi(page.internal, lifespan="on") as port,
        httpx2.AsyncClient(follow_redirects=True) as http,
    ):
        answer = await http.get(f"http://127.0.0.1:{port}/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        assert value(answer.text, "rtkit_running") == 1


def test_what_is_asked_can_be_answered() -> None:
    """Every name in a query is exported, with the labels that it is asked by."""
    exported: dict[str, set[str]] = {}
    for family in PrometheusExporter(Hub(authenticate=anonymous)).collect():
        for sample in family.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
    exported.setdefault("rtkit_broker_seconds_bucket", {"le", "operation"})  # of what was measured alone
    text = (ROOT / PAGE).read_text()
    for name, labels in re.findall(r"\b(rtkit_[a-z_]+)(?:{(\w+)=)?", text):
        assert name in exported
        assert not labels or labels in exported[name]
    for label, name in re.findall(r"sum by \((?:le, )?(\w+)\) \((?:rate\()?(\w+)", text):
        assert label in exported[name]


def test_a_quarter_of_a_second() -> None:
    assert Limits().blocked == 0.25
