"""What hubs count and measure, for OpenTelemetry (M1).

::

    OpenTelemetryMetrics(hub)  # with the meter provider of the process, as opentelemetry.metrics has it

The names are in ``docs/reference/metrics.md``. Needs the ``opentelemetry-api`` library, ``pip install
'rtkit[opentelemetry]'``; and for anything to come of it an SDK with an exporter, which the application sets up.

What there is and what was counted is read when a metric reader asks, by observable instruments. What is measured goes
into histograms as it happens: OpenTelemetry has no observable ones. That costs little, since of what happens often
only about a hundred are measured in a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final

from ..errors import UsageError
from ..hub import Hub, HubStatistics
from ..metrics import BOUNDS, Counted, Measured, Metric, catalogue
from ._gauges import GAUGES, gauges_of

try:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation, get_meter
except ModuleNotFoundError as error:  # pragma: no cover - the tests have it
    raise ModuleNotFoundError(
        f"{error}: rtkit.ext.opentelemetry needs opentelemetry-api; pip install 'rtkit[opentelemetry]' brings it",
        name=error.name,
    ) from error

__all__ = ["OpenTelemetryMetrics"]

_PREFIX: Final = "rtkit."
_BYTES: Final = "_bytes"
#: Of these the sum over several nodes means nothing.
_NOT_ADDITIVE: Final = ("queued_max_bytes", "users")

_Observe = Callable[[HubStatistics], Iterable[tuple[str, float]]]


class _Reading(threading.local):
    """What a thread is reading, instrument by instrument."""

    def __init__(self) -> None:
        self.now: Mapping[str, HubStatistics] = {}
        self.told: set[str] = set()  # the instruments that have it already


@final
class OpenTelemetryMetrics:
    """The instruments of a meter provider that tell of hubs.

    Make it once for each provider, and before the hubs start: what was measured earlier is not told. It lasts as long
    as the provider, which has no way to remove an instrument. Counters include earlier runs of a hub in this process,
    so that they never go back while the process lives; a hub that does not run shows no connections.

    Readers may ask from any threads. All that one of them reads at a time is of one moment.

    :param hubs: one hub; or several, by name: each data point then says whose it is, in the attribute ``hub``.
    :param meter_provider: the one of the process unless given, and that may be set later.
    :raises UsageError: for a mapping without any hub.
    """

    def __init__(
        self, hubs: Hub[Any] | Mapping[str, Hub[Any]], *, meter_provider: MeterProvider | None = None
    ) -> None:
        named = isinstance(hubs, Mapping)
        self._hubs: dict[str, Hub[Any]] = dict(hubs) if isinstance(hubs, Mapping) else {"": hubs}
        if not self._hubs:
            raise UsageError("OpenTelemetryMetrics(…) takes a hub, or hubs by name; this mapping is empty")
        self._whose = {name: {"hub": name} if named else {} for name in self._hubs}
        self._reading = _Reading()
        version = next(iter(self._hubs.values())).version
        self._make(get_meter("rtkit", version, meter_provider))

    def _make(self, meter: Meter) -> None:
        for name, (meaning, label) in GAUGES.items():
            kind = (
                meter.create_observable_gauge
                if name in _NOT_ADDITIVE
                else meter.create_observable_up_down_counter
            )
            kind(**self._options(name, meaning, label, _gauge(name)))
        for name, metric in catalogue(Counted).items():
            exported = metric.exported or name
            meter.create_observable_counter(
                **self._options(exported, metric.meaning, metric.label, _count(name, metric))
            )
        measured = {
            name: (
                meter.create_histogram(
                    _PREFIX + name, "s", metric.meaning, explicit_bucket_boundaries_advisory=BOUNDS
                ),
                metric.label,
            )
            for name, metric in catalogue(Measured).items()
        }
        for name, hub in self._hubs.items():
            hub._tell(_recorder(measured, self._whose[name]))

    def _options(self, name: str, meaning: str, label: str, observe: _Observe) -> dict[str, Any]:
        """What an observable instrument is made with. The unit stands beside the name, and not in it."""

        def observations(options: CallbackOptions) -> Iterable[Observation]:
            for whose, now in self._statistics(name).items():
                for value, amount in observe(now):
                    attributes = self._whose[whose]
                    yield Observation(amount, {**attributes, label: value} if label else attributes)

        return {
            "name": _PREFIX + name.removesuffix(_BYTES),
            "callbacks": [observations],
            "unit": "By" if name.endswith(_BYTES) else "",
            "description": meaning,
        }

    def _statistics(self, instrument: str) -> Mapping[str, HubStatistics]:
        """How things are. They cost a look at every connection, so that they are made once for all instruments.

        An instrument that asks again begins to read anew.
        """
        reading = self._reading
        if not reading.now or instrument in reading.told:
            reading.told.clear()
            reading.now = {name: hub.statistics(all_runs=True) for name, hub in self._hubs.items()}
        reading.told.add(instrument)
        return reading.now

    def __repr__(self) -> str:
        return f"<OpenTelemetryMetrics of {len(self._hubs)} hubs>"


def _gauge(name: str) -> _Observe:
    return lambda now: gauges_of(now)[name].items()


def _count(name: str, metric: Metric) -> _Observe:
    def observe(now: HubStatistics) -> Iterable[tuple[str, float]]:
        found = getattr(now.counted, name)
        if not metric.label:
            return [("", found)]
        # Zeros too: the first of its kind must be seen to happen.
        return [(value, found.get(value, 0)) for value in sorted(metric.values)]

    return observe


def _recorder(
    measured: Mapping[str, tuple[Histogram, str]], whose: Mapping[str, str]
) -> Callable[[str, str, float], None]:
    def record(name: str, value: str, seconds: float) -> None:
        histogram, label = measured[name]
        histogram.record(seconds, {**whose, label: value} if label else whose)

    return record
