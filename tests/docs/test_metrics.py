"""The page of what a hub counts lists what it counts, with the labels, and under the names that are exported."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from rtkit import Hub, anonymous
from rtkit.client import connect
from rtkit.ext.prometheus import PrometheusExporter
from rtkit.hub import HubStatistics
from rtkit.metrics import OTHER, Counted, Measured, Metric, catalogue
from tests.docs.blocks import ROOT, blocks, table
from tests.support.servers import serve_asgi

PAGE = "docs/reference/metrics.md"
NOW = table(PAGE, "now", "for Prometheus", "meaning")
TOTALS = table(PAGE, "total", "label", "for Prometheus", "meaning")
MEASURED = table(PAGE, "measured", "label", "for Prometheus", "meaning")


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_everything_is_listed() -> None:
    assert [words(row["total"]) for row in TOTALS] == [[name] for name in catalogue(Counted)]
    assert [words(row["measured"]) for row in MEASURED] == [[name] for name in catalogue(Measured)]
    fields = [field.name for field in dataclasses.fields(HubStatistics)]
    assert [words(row["now"]) for row in NOW] == [
        [name] for name in fields if name not in ("totals", "counted", "measured")
    ]


def test_labels_are_those_that_there_are() -> None:
    """Codes, policies and methods, which are listed elsewhere, are told in a word instead."""
    told = {
        "the code": lambda value: value.isdigit(),
        "the status": lambda value: value.isdigit(),
        "the policy": lambda value: value in ("recover", "close", "latest_per_key") or value[:5] == "drop_",
        "the method": lambda value: True,
    }
    for row, metrics in [(row, Counted) for row in TOTALS] + [(row, Measured) for row in MEASURED]:
        (name,) = words(row.get("total") or row["measured"])
        metric: Metric = catalogue(metrics)[name]
        left = metric.values - {OTHER} - set(words(row["label"]))
        for word, covers in told.items():
            if word in row["label"]:
                left = {value for value in left if not covers(value)}
        assert not left, name
        assert set(words(row["label"])) <= metric.values, name


def test_names_for_prometheus_are_those_that_are_exported() -> None:
    exporter = PrometheusExporter(Hub(authenticate=anonymous))
    exported = {
        f"{family.name}{{{family._labelnames[0]}}}" if family._labelnames else family.name  # type: ignore[attr-defined]
        for family in exporter.describe()
    }
    listed = [name for row in (*NOW, *TOTALS, *MEASURED) for name in words(row["for Prometheus"])]
    assert {f"rtkit_{name}" for name in listed} == exported
    assert len(listed) == len(exported)


async def test_the_route_answers() -> None:
    import httpx2

    (block,) = blocks(PAGE, "python", "metrics")
    page: dict[str, Any] = {"__name__": "page"}
    exec(block.code(), page)
    async with serve_asgi(page["app"], lifespan="on") as port:
        base = f"http://127.0.0.1:{port}"
        async with connect(f"{base}/rt"), httpx2.AsyncClient() as http:
            answer = (await http.get(f"{base}/stats")).json()
            assert (answer["websockets"], answer["no pong"]) == (1, 0)
            assert answer["totals"]["commands{connect}"] == answer["totals"]["sessions"] == 1


def test_the_page_stands_in_the_list() -> None:
    assert "reference/metrics.md" in (ROOT / "docs/README.md").read_text()
