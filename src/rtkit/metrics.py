"""What a hub counts and measures: totals and histograms that cost an addition; exporters plug in above (M1).

:class:`Counted` and :class:`Measured` are the catalogue: a field is a metric, with its meaning, its label and the
values that the label may have. These come from fixed sets of our own, never from users: room names, user ids, names
of events and messages of errors never become labels. Whatever is counted under another value appears as ``other``.

To count something new: ``counters.add(…)`` where it happens, a field in :class:`Counted`, a row in
``docs/reference/metrics.md``. A test says which of the three is missing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeAlias, final

from . import codes

__all__ = [
    "BOUNDS",
    "OTHER",
    "SAMPLES",
    "Counted",
    "Counters",
    "Distribution",
    "Histogram",
    "Measured",
    "Metric",
    "Observer",
    "Sampler",
    "Timings",
    "catalogue",
]

#: Stands for label values that are not in the set.
OTHER: Final = "other"

#: Upper bounds of the buckets of all histograms, in seconds: from a fan-out that nobody notices to what breaks off.
BOUNDS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)


# -- what counts --------------------------------------------------------------------------------------


@final
class Counters:
    """Named totals that only grow, with at most one label each.

    >>> c = Counters()
    >>> c.add("closes", "3012")
    >>> c.snapshot()
    mappingproxy({'closes{3012}': 1})
    """

    __slots__ = ("_totals",)

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}

    def add(self, name: str, label: str = "", amount: int = 1) -> None:
        """Add *amount* to the total *name*, told apart by *label*."""
        key = f"{name}{{{label}}}" if label else name
        self._totals[key] = self._totals.get(key, 0) + amount

    def get(self, name: str, label: str = "") -> int:
        """The total so far; 0 for one that was never added to."""
        return self._totals.get(f"{name}{{{label}}}" if label else name, 0)

    def snapshot(self) -> Mapping[str, int]:
        """All totals as they are now, read-only. May be called from another thread."""
        return MappingProxyType(dict(self._totals))

    def absorb(self, other: Counters) -> None:
        """Add all of the *other* totals to these."""
        for key, amount in other.snapshot().items():
            self._totals[key] = self._totals.get(key, 0) + amount

    def __repr__(self) -> str:
        return f"<Counters {len(self._totals)} totals>"


@final
class Histogram:
    """How values are distributed: one counter for each bucket, and their sum. Observing costs one search and two
    additions.

    :param bounds: upper bounds of the buckets, ascending; above the last one there is one more.
    :raises ValueError: for bounds that do not ascend, or are not finite.
    """

    __slots__ = ("_bounds", "_counts", "_observers", "_sum")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        if not bounds or not all(map(math.isfinite, bounds)) or list(bounds) != sorted(set(bounds)):
            raise ValueError(f"the bounds of a histogram ascend and are finite, not {bounds!r}")
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._observers: tuple[Callable[[float], object], ...] = ()

    def observe(self, value: float) -> None:
        """Count *value*: in the first bucket whose bound it does not exceed."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value
        for observer in self._observers:
            observer(value)

    def tell(self, observer: Callable[[float], object]) -> None:
        """Have *observer* called with each value from now on. It must not raise, and takes no time worth mentioning."""
        self._observers += (observer,)

    def snapshot(self) -> Distribution:
        """All values so far. May be called from another thread."""
        return Distribution(self._bounds, tuple(self._counts), self._sum)

    def absorb(self, other: Histogram) -> None:
        """Add all values of the *other*, which has the same bounds, to these.

        :raises ValueError: when it has not.
        """
        if other._bounds != self._bounds:
            raise ValueError("these histograms have different buckets")
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self._sum += other._sum

    def __repr__(self) -> str:
        return f"<Histogram of {sum(self._counts)} values>"


#: So many of a kind are measured in a second, or twice that; it is all of them while there are fewer.
SAMPLES: Final = 100


@final
class Sampler:
    """Says which of many are measured: every one, or every n-th when there were many in the second before."""

    __slots__ = ("_left", "_seen", "_stride")

    def __init__(self) -> None:
        self._stride = 1
        self._left = 1
        self._seen = 0

    def due(self) -> bool:
        """Whether this one is to be measured."""
        self._left -= 1
        if self._left:
            return False
        self._left = self._stride
        self._seen += self._stride
        return True

    def second(self) -> None:
        """A second is over: look at how many there were."""
        stride = max(1, self._seen // SAMPLES)
        self._seen = 0
        if stride != self._stride:
            self._stride = self._left = stride

    def restart(self) -> None:
        """A second begins, after some of which nobody has told."""
        self._seen = 0

    def __repr__(self) -> str:
        return f"<Sampler of 1 in {self._stride}>"


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a :class:`Histogram` has seen.

    :param bounds: upper bounds of the buckets, each belonging to its bucket.
    :param counts: values in each bucket, not cumulative; the last is of those above all bounds.
    :param sum: of all values.
    """

    bounds: tuple[float, ...] = BOUNDS
    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    sum: float = 0.0

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; 0 of none."""
        return self.sum / count if (count := self.count) else 0.0

    def quantile(self, q: float) -> float:
        """The bound that a share *q* of the values, 0 to 1, does not exceed: p99 is ``quantile(0.99)``.

        As coarse as the buckets: infinite when it is above the last bound; 0 without any value.

        :raises ValueError: for a share that is none.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is a share from 0 to 1, not {q!r}")
        wanted, seen = q * self.count, 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return 0.0


# -- the catalogue ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of one metric before anything is counted.

    :param meaning: in one line.
    :param label: the name of its label; empty without one.
    :param values: what the label may be.
    :param exported: its name outside of here, where another one is clearer; without prefix and suffix.
    """

    meaning: str
    label: str = ""
    values: frozenset[str] = frozenset()
    exported: str = ""


#: Totals by the value of their label.
Labelled: TypeAlias = Mapping[str, int]
_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


def _nothing() -> Mapping[str, Any]:
    return _EMPTY


def _one(meaning: str, *, exported: str = "") -> Mapping[str, Metric]:
    return {"metric": Metric(meaning, exported=exported)}


def _by(label: str, values: Iterable[str], meaning: str) -> Mapping[str, Metric]:
    return {"metric": Metric(meaning, label, frozenset({*values, OTHER}))}


_CODES: Final = [code for name, code in vars(codes).items() if name.isupper() and isinstance(code, int)]
_CLOSES: Final = [str(code) for code in (*filter(codes.is_valid_close, _CODES), *sorted(codes.VIOLATIONS))]
_ERRORS: Final = [str(code) for code in _CODES if codes.INTERNAL <= code < codes.APPLICATION]
_DROPS: Final = [
    *("recover", "drop_oldest", "drop_newest", "latest_per_key", "close"),  # the policies
    *("signal", "joining", "presence", "receipts"),
]
_METHODS: Final = [
    *("connect", "refresh", "ping", "bye", "rpc", "send"),
    *("subscribe", "unsubscribe", "sub_refresh", "publish", "history", "signal"),
    *("presence", "presence_stats", "presence_update", "mark", "marks"),
]
_LIMITS: Final = [
    *("assembling", "bytes", "commands", "large", "pending", "publication", "rooms", "signals", "user")
]
_REFUSALS: Final = ["address", "draining", "handshakes", "origin", "rate", "user"]
#: Statuses, and what became of those who did not get one.
_TURNED_AWAY: Final = [
    *("400", "403", "404", "408", "410", "413", "426", "429", "431", "503"),
    *("dropped", "silent", "unread"),
]
_OPERATIONS: Final = ["append", "publish", "read", "state", "subscribe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Totals of a hub, typed: ``hub.statistics().counted.closes.get("3012", 0)``.

    A total without a label is an ``int``; one with a label is a mapping of what was counted by now.
    """

    connections: int = field(default=0, metadata=_one("transports opened", exported="connections_opened"))
    sessions: int = field(default=0, metadata=_one("connections authenticated", exported="sessions_started"))
    refusals: Labelled = field(
        default_factory=_nothing,
        metadata=_by("reason", _REFUSALS, "newcomers that were not let in"),
    )
    turned_away: Labelled = field(
        default_factory=_nothing,
        metadata=_by(
            "status", _TURNED_AWAY, "requests refused, by status, and connections that never had an answer"
        ),
    )
    closes: Labelled = field(
        default_factory=_nothing,
        metadata=_by("code", ("peer", "lost", *_CLOSES), "connections that ended, by close code"),
    )
    heartbeats_lost: int = field(default=0, metadata=_one("pings that nobody answered"))
    commands: Labelled = field(
        default_factory=_nothing,
        metadata=_by("method", _METHODS, "commands of clients that were carried out"),
    )
    units_received: int = field(default=0, metadata=_one("units that came from clients"))
    received_bytes: int = field(default=0, metadata=_one("bytes of units from clients"))
    units_sent: int = field(default=0, metadata=_one("units handed to transports"))
    sent_bytes: int = field(default=0, metadata=_one("bytes of units handed to transports"))
    publications: int = field(default=0, metadata=_one("messages published by this hub"))
    duplicates: int = field(default=0, metadata=_one("publications that a key proved to be repeats"))
    deliveries: int = field(default=0, metadata=_one("pushes of messages, one for each member"))
    joins: int = field(default=0, metadata=_one("members that came in, other than by a successful recovery"))
    recoveries: int = field(default=0, metadata=_one("members that came in and recovered"))
    parked: int = field(
        default=0,
        metadata=_one("sessions that were kept for their clients to come back", exported="sessions_parked"),
    )
    resumes: Labelled = field(
        default_factory=_nothing,
        metadata=_by("outcome", ("taken up", "stale", "too late"), "resume tokens that were shown"),
    )
    gaps: Labelled = field(
        default_factory=_nothing,
        metadata=_by("reason", ("trimmed", "epoch", "rollback", "dropped"), "times a member was told a gap"),
    )
    lagging: int = field(
        default=0,
        metadata=_one("members that fell behind, to read on from history", exported="fallen_behind"),
    )
    holes: int = field(
        default=0, metadata=_one("hints that were not the next entry, so that the room was read")
    )
    drops: Labelled = field(
        default_factory=_nothing,
        metadata=_by("reason", _DROPS, "messages dropped, by policy or kind"),
    )
    reaped: int = field(default=0, metadata=_one("clients of dead nodes that were taken out of rooms"))
    errors: Labelled = field(
        default_factory=_nothing,
        metadata=_by("code", ("application", *_ERRORS), "commands answered with an error, by code"),
    )
    handler_errors: int = field(default=0, metadata=_one("exceptions in handlers"))
    bad_units: int = field(default=0, metadata=_one("units that were none"))
    limits: Labelled = field(
        default_factory=_nothing,
        metadata=_by("limit", _LIMITS, "times a limit was reached"),
    )
    unavailable: int = field(default=0, metadata=_one("commands that failed because the broker was away"))
    broker_errors: Labelled = field(
        default_factory=_nothing, metadata=_by("operation", _OPERATIONS, "calls of the broker that failed")
    )
    silent: int = field(default=0, metadata=_one("nodes that did not do what was asked of all"))
    unknown_versions: int = field(
        default=0, metadata=_one("payloads of a version that this release cannot read")
    )
    foreign_entries: int = field(default=0, metadata=_one("stored entries that no rtkit has written"))
    foreign_payloads: int = field(default=0, metadata=_one("payloads that no rtkit has written"))
    blocked: int = field(
        default=0,
        metadata=_one("times a handler or hook kept the event loop from all others", exported="loop_blocked"),
    )
    stalls: int = field(default=0, metadata=_one("times the event loop stood still", exported="loop_stalls"))

    @classmethod
    def of(cls, totals: Mapping[str, int]) -> Counted:
        """From a snapshot of :class:`Counters`; what the catalogue does not know is left out."""
        found: dict[str, Any] = {}
        known = catalogue(cls)
        for key, amount in totals.items():
            name, _, label = key.partition("{")
            metric = known.get(name)
            if metric is None:
                continue
            if not metric.label:
                found[name] = found.get(name, 0) + amount
                continue
            value = label[:-1] if label[:-1] in metric.values else OTHER
            labelled = found.setdefault(name, {})
            labelled[value] = labelled.get(value, 0) + amount
        for name, each in found.items():
            if known[name].label:
                found[name] = MappingProxyType(each)
        return cls(**found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How long things take in a hub, in seconds: ``hub.statistics().measured.loop_lag.quantile(0.99)``."""

    delivery: Distribution = field(
        default=Distribution(),
        metadata=_one("from publishing on this node to the members here, the broker between"),
    )
    fanout: Distribution = field(
        default=Distribution(),
        metadata=_one("from the broker's delivery on this node to the last member here"),
    )
    broker: Mapping[str, Distribution] = field(
        default_factory=_nothing, metadata=_by("operation", _OPERATIONS, "calls of the broker that succeeded")
    )
    loop_lag: Distribution = field(
        default=Distribution(), metadata=_one("how late a timer of the event loop was")
    )


def catalogue(of: type[Any]) -> Mapping[str, Metric]:
    """The metrics of :class:`Counted`, of :class:`Measured`, or of any dataclass that says what its fields are."""
    found = {each.name: each.metadata.get("metric") for each in fields(of)}
    return MappingProxyType({name: metric for name, metric in found.items() if metric is not None})


#: Gets the name of a histogram, the value of its label or nothing, and what was measured in seconds.
Observer: TypeAlias = Callable[[str, str, float], object]


@final
class Timings:
    """The histograms of a hub, and which of what happens often is measured."""

    __slots__ = ("broker", "calls", "delivery", "fanout", "fanouts", "loop_lag", "publications")

    def __init__(self) -> None:
        self.calls = Sampler()
        self.publications = Sampler()
        self.fanouts = Sampler()
        self.delivery = Histogram()
        self.fanout = Histogram()
        self.broker = {operation: Histogram() for operation in _OPERATIONS}
        self.loop_lag = Histogram()

    def tell(self, observer: Observer) -> None:
        """Have *observer* called with whatever is measured from now on; see :meth:`Histogram.tell`."""
        for name in ("delivery", "fanout", "loop_lag"):
            getattr(self, name).tell(partial(observer, name, ""))
        for operation, each in self.broker.items():
            each.tell(partial(observer, "broker", operation))

    def second(self) -> None:
        """A second is over."""
        self.calls.second()
        self.publications.second()
        self.fanouts.second()

    def restart(self) -> None:
        """A second begins, after some of which nobody has told."""
        for each in (self.calls, self.publications, self.fanouts):
            each.restart()

    def snapshot(self) -> Measured:
        """All of them as they are now; of the broker's those that have a value. May be called from another thread."""
        broker = {operation: each.snapshot() for operation, each in self.broker.items()}
        return Measured(
            delivery=self.delivery.snapshot(),
            fanout=self.fanout.snapshot(),
            broker=MappingProxyType({name: each for name, each in broker.items() if each.count}),
            loop_lag=self.loop_lag.snapshot(),
        )

    def absorb(self, other: Timings) -> None:
        """Add what the *other* histograms have seen to these."""
        self.delivery.absorb(other.delivery)
        self.fanout.absorb(other.fanout)
        for operation, each in self.broker.items():
            each.absorb(other.broker[operation])
        self.loop_lag.absorb(other.loop_lag)

    def __repr__(self) -> str:
        return f"<Timings of {self.fanout!r}>"
