"""What hubs count and measure, for Prometheus (M1).

::

    from prometheus_client import REGISTRY

    REGISTRY.register(PrometheusExporter(hub))

How to have it scraped is in ``docs/how-to/monitor.md``; the names are in ``docs/reference/metrics.md``. Needs the
``prometheus_client`` library: ``pip install 'rtkit[prometheus]'``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, final

from ..errors import UsageError
from ..hub import Hub, HubStatistics
from ..metrics import Counted, Distribution, Measured, Metric, catalogue
from ._gauges import GAUGES, gauges_of

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.metrics_core import Metric as Family
except ModuleNotFoundError as error:  # pragma: no cover - the tests have it
    raise ModuleNotFoundError(
        f"{error}: rtkit.ext.prometheus needs prometheus_client; pip install 'rtkit[prometheus]' brings it",
        name=error.name,
    ) from error

__all__ = ["PrometheusExporter"]

_PREFIX: Final = "rtkit_"


@final
class PrometheusExporter:
    """A collector for a registry of ``prometheus_client``: reads hubs when it is scraped, and costs nothing else.

    Register it once, and before or after the hub starts as you like. Counters include earlier runs of a hub in this
    process, so that they never go back while the process lives; a hub that does not run shows no connections.
    A registry may be scraped from another thread, as ``prometheus_client.start_http_server`` does.

    :param hubs: one hub; or several, by name: each sample then says whose it is, in the label ``hub``.
    :raises UsageError: for a mapping without any.
    """

    def __init__(self, hubs: Hub[Any] | Mapping[str, Hub[Any]]) -> None:
        self._whose: tuple[str, ...] = ("hub",) if isinstance(hubs, Mapping) else ()
        self._hubs: dict[str, Hub[Any]] = dict(hubs) if isinstance(hubs, Mapping) else {"": hubs}
        if not self._hubs:
            raise UsageError("PrometheusExporter(…) takes a hub, or hubs by name; this mapping is empty")

    def describe(self) -> Iterable[Family]:
        """The metrics without their samples: what a registry tells clashing collectors by."""
        return self._families([])

    def collect(self) -> Iterable[Family]:
        """The metrics as they are now."""
        found = [
            ((name,) if self._whose else (), hub.statistics(all_runs=True))
            for name, hub in self._hubs.items()
        ]
        return self._families(found)

    def _families(self, hubs: Sequence[tuple[tuple[str, ...], HubStatistics]]) -> Iterator[Family]:
        gauges = [(whose, gauges_of(now)) for whose, now in hubs]
        for name, (meaning, label) in GAUGES.items():
            gauge = GaugeMetricFamily(_PREFIX + name, meaning, labels=self._labels(label))
            for whose, values in gauges:
                for value, amount in values[name].items():
                    gauge.add_metric((*whose, value) if label else whose, amount)
            yield gauge
        for name, metric in catalogue(Counted).items():
            counter = CounterMetricFamily(
                _PREFIX + (metric.exported or name), metric.meaning, labels=self._labels(metric.label)
            )
            for whose, now in hubs:
                _count(counter, metric, whose, getattr(now.counted, name))
            yield counter
        for name, metric in catalogue(Measured).items():
            histogram = HistogramMetricFamily(
                f"{_PREFIX}{name}_seconds", metric.meaning, labels=self._labels(metric.label)
            )
            for whose, now in hubs:
                found = getattr(now.measured, name)
                if not metric.label:
                    found = {"": found}
                for value, distribution in found.items():
                    histogram.add_metric(
                        (*whose, value) if metric.label else whose, _buckets(distribution), distribution.sum
                    )
            yield histogram

    def _labels(self, label: str) -> tuple[str, ...]:
        return (*self._whose, label) if label else self._whose

    def __repr__(self) -> str:
        return f"<PrometheusExporter of {len(self._hubs)} hubs>"


def _count(
    counter: CounterMetricFamily, metric: Metric, whose: tuple[str, ...], amount: int | Mapping[str, int]
) -> None:
    if isinstance(amount, int):
        counter.add_metric(whose, amount)
        return
    for value in sorted(metric.values):  # zeros too: the first of its kind must be seen to happen
        counter.add_metric((*whose, value), amount.get(value, 0))


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """As Prometheus has it: each bucket includes those below, and the last one everything."""
    found: list[tuple[str, float]] = []
    so_far = 0
    for bound, count in zip((*distribution.bounds, math.inf), distribution.counts, strict=True):
        so_far += count
        found.append(("+Inf" if math.isinf(bound) else repr(bound), so_far))
    return found
