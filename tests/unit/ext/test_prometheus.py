"""What Prometheus is told: its own parsers read it, names follow its conventions, and counters never go back (M1)."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from rtkit import Identity, UsageError
from rtkit.ext._gauges import GAUGES
from rtkit.ext.prometheus import PrometheusExporter
from rtkit.metrics import OTHER, Counted, Measured, catalogue
from rtkit.testing import TestHub
from tests.unit.ext.talking import declared, talk

Value = Callable[..., float]


def registered(hubs: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(PrometheusExporter(hubs))
    return registry


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    value = registry.get_sample_value(name, labels)
    assert value is not None, f"no {name} with {labels}"
    return value


async def test_what_was_counted_is_told() -> None:
    hub = declared()
    registry = registered(hub)
    async with TestHub(hub) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join("r:1") as room:
            await room.send(1)
            await t.next(room)
            await t.clock.advance(5)
            assert sample(registry, "rtkit_running") == 1
            assert sample(registry, "rtkit_connections", transport="websocket") == 1
            assert sample(registry, "rtkit_connections", transport="sse") == 0
            assert sample(registry, "rtkit_sessions", state="connected") == 1
            assert sample(registry, "rtkit_members", state="live") == 1
            assert sample(registry, "rtkit_publications_total") == 1
            assert sample(registry, "rtkit_commands_total", method="publish") == 1
            assert sample(registry, "rtkit_closes_total", code="3012") == 0, "there before it happens"
            assert sample(registry, "rtkit_sent_bytes_total") > 50
            assert sample(registry, "rtkit_loop_lag_seconds_count") == 5
            assert sample(registry, "rtkit_broker_seconds_count", operation="append") == 1
            assert sample(registry, "rtkit_delivery_seconds_bucket", le="0.0001") == 1
            assert sample(registry, "rtkit_delivery_seconds_bucket", le="+Inf") == 1


async def test_prometheus_reads_it() -> None:
    """Both formats that it asks for, by the parsers of its own library."""
    hub = declared()
    registry = registered({"chat": hub, 'quoted "name"\\': declared()})
    async with TestHub(hub) as t:
        await talk(t)
        now = {family.name: family for family in registry.collect()}
        texts = [
            list(parse(generate_latest(registry).decode())),
            list(parse_openmetrics(generate_openmetrics(registry).decode())),
        ]
    for families in texts:
        assert {family.name for family in families} == set(now)
        for family in families:
            assert family.type == now[family.name].type
            assert {(s.name, *sorted(s.labels.items())): s.value for s in family.samples} == {
                (s.name, *sorted(s.labels.items())): s.value for s in now[family.name].samples
            }


async def test_histograms_are_cumulative() -> None:
    hub = declared()
    registry = registered(hub)
    async with TestHub(hub) as t:
        for seconds in (0.0002, 0.0002, 0.3, 99):
            hub.engine.timings.loop_lag.observe(seconds)
        (family,) = [each for each in registry.collect() if each.name == "rtkit_loop_lag_seconds"]
        buckets = [s for s in family.samples if s.name.endswith("_bucket")]
        values = [s.value for s in buckets]
        assert values == sorted(values)
        assert values[-1] == sample(registry, "rtkit_loop_lag_seconds_count") == 4
        assert sample(registry, "rtkit_loop_lag_seconds_bucket", le="0.0001") == 0
        assert sample(registry, "rtkit_loop_lag_seconds_bucket", le="0.00025") == 2
        assert sample(registry, "rtkit_loop_lag_seconds_bucket", le="0.5") == 3
        assert sample(registry, "rtkit_loop_lag_seconds_bucket", le="10.0") == 3
        assert sample(registry, "rtkit_loop_lag_seconds_sum") == pytest.approx(99.3004)
        assert t.hub is hub


def test_names_follow_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming: a prefix, base units as suffix, _total for counters alone."""
    families = list(PrometheusExporter(declared()).describe())
    for family in families:
        assert re.fullmatch(r"rtkit_[a-z]+(_[a-z]+)*", family.name), family.name
        assert family.type in ("counter", "gauge", "histogram")
        assert "total" not in family.name
        assert not re.search(r"_(ms|milliseconds|kb|count|sum|bucket|created|info)(_|$)", family.name)
        assert family.type != "histogram" or family.name.endswith("_seconds")
        assert ("bytes" in family.documentation) == family.name.endswith("_bytes"), family.name
        assert family.documentation
    names = [family.name for family in families]
    assert len(set(names)) == len(names) == len(GAUGES) + len(catalogue(Counted)) + len(catalogue(Measured))
    # A series of one must not look like a part of another.
    histograms = [family.name for family in families if family.type == "histogram"]
    assert not {f"{name}{end}" for name in histograms for end in ("_bucket", "_sum", "_count")} & set(names)


async def test_labels_are_bounded_whatever_users_do() -> None:
    """M1, A5: no room, user, event, token or message becomes a label."""
    hub = declared()
    registry = registered(hub)
    async with TestHub(hub) as t:
        before = {
            (s.name, *sorted(s.labels.items())) for family in registry.collect() for s in family.samples
        }
        for number in range(20):
            await talk(t, f"secret-user-{number}", f"r:secret-{number}")
            await hub.user(f"secret-user-{number}").close(code=3600 + number, reason="secret reason")
            hub.engine.counters.add("closes", str(3600 + number))
        text = generate_latest(registry).decode()
        after = {(s.name, *sorted(s.labels.items())) for family in registry.collect() for s in family.samples}
    assert "secret" not in text
    assert sample(registry, "rtkit_closes_total", code=OTHER) == 20
    assert {key for key in after - before if not key[0].startswith("rtkit_broker_seconds")} == set()


async def test_counters_never_go_back() -> None:
    """A hub that was closed and started again goes on counting, also what it did after the last scrape."""
    hub = declared()
    registry = registered(hub)
    assert sample(registry, "rtkit_running") == 0
    assert sample(registry, "rtkit_publications_total") == 0
    last: dict[Any, float] = {}
    for run in range(1, 4):
        async with TestHub(hub) as t:
            await talk(t)
            scraped = sample(registry, "rtkit_publications_total")
            await talk(t)  # nobody scrapes any more before the run is over
        assert (scraped, sample(registry, "rtkit_publications_total")) == (2 * run - 1, 2 * run)
        assert sample(registry, "rtkit_running") == 0
        assert sample(registry, "rtkit_connections", transport="websocket") == 0
        now = {
            (s.name, *s.labels.items()): s.value
            for family in registry.collect()
            if family.type in ("counter", "histogram")
            for s in family.samples
        }
        assert all(now[key] >= value for key, value in last.items())
        last = now


async def test_several_hubs_are_told_apart() -> None:
    chat, news = declared(), declared()
    registry = registered({"chat": chat, "news": news})
    async with TestHub(chat) as t:
        await talk(t)
        assert sample(registry, "rtkit_running", hub="chat") == 1
        assert sample(registry, "rtkit_running", hub="news") == 0
        assert sample(registry, "rtkit_publications_total", hub="chat") == 1
        assert sample(registry, "rtkit_publications_total", hub="news") == 0
        assert sample(registry, "rtkit_commands_total", hub="chat", method="publish") == 1
        assert sample(registry, "rtkit_delivery_seconds_count", hub="chat") == 1
    with pytest.raises(UsageError, match="empty"):
        PrometheusExporter({})


def test_a_second_exporter_is_refused() -> None:
    """Two would write the same names twice, which Prometheus takes for an error: one for all hubs."""
    registry = registered(declared())
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PrometheusExporter(declared()))


def test_it_may_be_registered_before_anything_runs() -> None:
    """At import time, without a loop: describing asks no hub."""
    exporter = PrometheusExporter(declared())
    assert all(not family.samples for family in exporter.describe())
    assert repr(exporter) == "<PrometheusExporter of 1 hubs>"


async def test_a_scrape_from_another_thread() -> None:
    hub = declared()
    registry = registered(hub)
    found: list[bytes] = []
    async with TestHub(hub) as t:
        await talk(t)
        thread = threading.Thread(target=lambda: found.append(generate_latest(registry)))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert found == [generate_latest(registry)]
