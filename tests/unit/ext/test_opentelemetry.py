"""What OpenTelemetry is told: the same as Prometheus, in its own words, read by its own SDK (M1)."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Metric, Sum

from rtkit import Identity, UsageError
from rtkit.ext.opentelemetry import OpenTelemetryMetrics
from rtkit.ext.prometheus import PrometheusExporter
from rtkit.metrics import BOUNDS, OTHER
from rtkit.testing import TestHub
from tests.unit.ext.talking import declared, talk


class Read:
    """A reader of what is told of hubs."""

    def __init__(self, hubs: Any) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)
        self.exporter = OpenTelemetryMetrics(hubs, meter_provider=self.provider)
        self.metrics: dict[str, Metric] = {}

    def again(self) -> Read:
        found = self.reader.get_metrics_data()
        assert found is not None
        ((scope,),) = [each.scope_metrics for each in found.resource_metrics]
        assert scope.scope.name == "rtkit"
        self.metrics = {metric.name: metric for metric in scope.metrics}
        return self

    def point(self, name: str, **attributes: str) -> Any:
        found = [p for p in self.metrics[name].data.data_points if dict(p.attributes or {}) == attributes]
        assert len(found) == 1, f"{len(found)} of {name} with {attributes}"
        return found[0]

    def value(self, name: str, **attributes: str) -> float:
        return float(self.point(name, **attributes).value)


@pytest.fixture
def read() -> Iterator[Any]:
    made: list[Read] = []

    def make(hubs: Any) -> Read:
        made.append(Read(hubs))
        return made[-1]

    yield make
    for each in made:
        each.provider.shutdown()


async def test_what_was_counted_and_measured_is_told(read: Any) -> None:
    hub = declared()
    found = read(hub)
    async with TestHub(hub) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join("r:1") as room:
            await room.send(1)
            await t.next(room)
            await t.clock.advance(5)
            found.again()
    assert found.value("rtkit.running") == 1
    assert found.value("rtkit.connections", transport="websocket") == 1
    assert found.value("rtkit.connections", transport="sse") == 0
    assert found.value("rtkit.publications") == 1
    assert found.value("rtkit.commands", method="publish") == 1
    assert found.value("rtkit.closes", code="3012") == 0, "there before it happens"
    assert found.value("rtkit.sent") > 50
    assert found.point("rtkit.loop_lag").count == 5
    assert found.point("rtkit.broker", operation="append").count == 1
    delivery = found.point("rtkit.delivery")
    assert (delivery.explicit_bounds, delivery.bucket_counts[0], delivery.count) == (BOUNDS, 1, 1)


async def test_all_that_prometheus_is_told(read: Any) -> None:
    """What writes it for Prometheus appends the unit, and ``_total``; then the names are those of our own exporter."""
    hub = declared()
    found = read(hub)
    async with TestHub(hub) as t:
        await talk(t)
        await t.clock.advance(5)
        found.again()
        families = {family.name: family for family in PrometheusExporter(hub).collect()}
    names = {}
    for metric in found.metrics.values():
        unit = {"By": "_bytes", "s": "_seconds", "": ""}[metric.unit]
        names[metric.name.replace(".", "_") + unit] = metric
        assert re.fullmatch(r"rtkit(\.[a-z]+(_[a-z]+)*)", metric.name)
    assert set(names) == set(families)
    for name, metric in names.items():
        family = families[name]
        assert metric.description == family.documentation
        kind = {"counter": Sum, "histogram": Histogram, "gauge": (Sum, Gauge)}[family.type]
        assert isinstance(metric.data, kind)
        if isinstance(metric.data, Sum):
            assert metric.data.is_monotonic == (family.type == "counter")
        if not isinstance(metric.data, Histogram):
            told = {tuple((p.attributes or {}).items()): p.value for p in metric.data.data_points}
            assert told == {tuple(s.labels.items()): s.value for s in family.samples}, name
        else:
            counts = {tuple((p.attributes or {}).items()): p.count for p in metric.data.data_points}
            assert counts == {
                tuple(s.labels.items()): s.value
                for s in family.samples
                if s.name == f"{name}_count" and s.value
            }, name


async def test_counters_never_go_back(read: Any) -> None:
    """A hub that was closed and started again goes on counting, also what it did after the last look."""
    hub = declared()
    found = read(hub)
    assert found.again().value("rtkit.running") == 0
    for run in range(1, 4):
        async with TestHub(hub) as t:
            await talk(t)
            assert found.again().value("rtkit.publications") == 2 * run - 1
            await talk(t)
        assert found.again().value("rtkit.publications") == 2 * run
        assert found.point("rtkit.broker", operation="append").count == 2 * run
        assert (found.value("rtkit.running"), found.value("rtkit.rooms")) == (0, 0)


async def test_several_hubs_are_told_apart(read: Any) -> None:
    chat, news = declared(), declared()
    found = read({"chat": chat, "news": news})
    async with TestHub(chat) as t:
        await talk(t)
        found.again()
    assert (found.value("rtkit.running", hub="chat"), found.value("rtkit.running", hub="news")) == (1, 0)
    assert found.value("rtkit.commands", hub="chat", method="publish") == 1
    assert found.point("rtkit.broker", hub="chat", operation="append").count == 1
    assert [dict(p.attributes) for p in found.metrics["rtkit.delivery"].data.data_points] == [{"hub": "chat"}]
    with pytest.raises(UsageError, match="empty"):
        OpenTelemetryMetrics({})


async def test_a_hub_that_runs_already_is_told_of_from_now_on(read: Any) -> None:
    hub = declared()
    async with TestHub(hub) as t:
        await talk(t)
        found = read(hub)
        await talk(t)
        found.again()
    assert found.value("rtkit.publications") == 2
    assert found.point("rtkit.delivery").count == 1


async def test_one_look_at_the_hub_serves_all_instruments(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a look at every connection; and what is read together is of one moment."""
    hub, looks = declared(), []
    look = hub.statistics
    monkeypatch.setattr(hub, "statistics", lambda **options: looks.append(1) or look(**options))
    found = read(hub)
    for n in range(1, 4):
        found.again()
        assert len(looks) == n


async def test_labels_are_bounded_whatever_users_do(read: Any) -> None:
    """M1, A5: no room, user, event, token or message becomes an attribute."""
    hub = declared()
    found = read(hub)
    async with TestHub(hub) as t:
        for number in range(5):
            await talk(t, f"secret-user-{number}", f"r:secret-{number}")
            hub.engine.counters.add("closes", str(3600 + number))
        found.again()
    assert "secret" not in repr(found.metrics)
    assert found.value("rtkit.closes", code=OTHER) == 5


async def test_readers_in_threads(read: Any) -> None:
    hub = declared()
    found = read(hub)
    async with TestHub(hub) as t:
        await talk(t)
        thread = threading.Thread(target=found.again)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert found.value("rtkit.publications") == 1
    assert repr(found.exporter) == "<OpenTelemetryMetrics of 1 hubs>"


async def test_without_an_sdk_nothing_comes_of_it() -> None:
    """And it costs nothing to speak of: the API's own provider makes instruments that do nothing."""
    hub = declared()
    OpenTelemetryMetrics(hub, meter_provider=metrics.NoOpMeterProvider())
    async with TestHub(hub) as t:
        await talk(t)
        assert hub.statistics().counted.publications == 1
