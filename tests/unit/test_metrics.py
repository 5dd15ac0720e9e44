"""Counters, histograms, and the catalogue of what a hub counts (M1)."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from rtkit import codes
from rtkit.hub import commands, roundtrips
from rtkit.metrics import (
    BOUNDS,
    OTHER,
    SAMPLES,
    Counted,
    Counters,
    Distribution,
    Histogram,
    Measured,
    Sampler,
    Timings,
    catalogue,
)
from rtkit.position import GapReason
from rtkit.primitives.outbox import Overflow

SOURCE = Path(__file__).parents[2] / "src/rtkit"

#: Labels that are no literals, by what they are made of; each was looked at, and can only be of a fixed set.
REVIEWED = {
    "closes": {"str(code)": "codes of ours, and those an application closes with: other"},
    "errors": {
        "str(code)": "codes of ours; below APPLICATION",
        "str(error.code)": "codes of ours, of bad chunks",
    },
    "gaps": {"gap.reason": "GapReason", "self._gap.reason": "GapReason"},
    "drops": {
        "self.family.rooms.overflow": "Overflow",
        "policy": "Overflow",
        "self.kind": "the kind of a feature",
    },
    "commands": {"method": "a method that has a handler"},
    "broker_errors": {"operation": "a key of roundtrips._OPERATIONS"},
    "refusals": {"reason": "literals, given to Hub._refused"},
    "turned_away": {"why": "statuses, and three words of Acceptor.turned_away"},
}


class Added(NamedTuple):
    where: str
    name: str
    label: str | None  #: None for one that is no literal
    expression: str


def added() -> Iterator[Added]:
    """Every ``counters.add(…)`` in the source: each name and label that it can be called with."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("counters.add"):
                where = f"{path.relative_to(SOURCE)}:{node.lineno}"
                labels = node.args[1:2] or [each.value for each in node.keywords if each.arg == "label"]
                for name in branches(node.args[0]):
                    assert isinstance(name, ast.Constant), f"{where}: a name is a literal"
                    for label in [part for each in labels for part in branches(each)] or [ast.Constant("")]:
                        literal = label.value if isinstance(label, ast.Constant) else None
                        yield Added(where, str(name.value), literal, ast.unparse(label))


def branches(node: ast.expr) -> list[ast.expr]:
    return [*branches(node.body), *branches(node.orelse)] if isinstance(node, ast.IfExp) else [node]


ADDED = list(added())
TOTALS = catalogue(Counted)


# -- the catalogue ------------------------------------------------------------------------------------


def test_all_that_is_counted_is_typed() -> None:
    """Counted here and nowhere typed: add a field to rtkit.metrics.Counted, and a row to the page of metrics."""
    assert {each.name for each in ADDED} == set(TOTALS)


@pytest.mark.parametrize("one", ADDED, ids=lambda one: f"{one.where}-{one.name}")
def test_labels_are_of_fixed_sets(one: Added) -> None:
    """M1: no label value of a user's making. A label that is computed was looked at, and stands in REVIEWED."""
    if one.label is None:
        assert one.expression in REVIEWED.get(one.name, {}), f"{one.where}: where does this label come from?"
    elif one.label:
        assert one.label in TOTALS[one.name].values
    else:
        assert not TOTALS[one.name].label, f"{one.where}: {one.name} has a label"


def test_nothing_is_reviewed_in_vain() -> None:
    computed = {(each.name, each.expression) for each in ADDED if each.label is None}
    assert computed == {(name, text) for name, reviewed in REVIEWED.items() for text in reviewed}


def test_the_sets_are_those_of_the_rest() -> None:
    """Where the values of a label are declared elsewhere, too, on floors that this one cannot see."""
    assert set(get_args(Overflow)) <= TOTALS["drops"].values
    assert set(get_args(GapReason)) | {OTHER} == TOTALS["gaps"].values
    assert set(commands._HANDLERS) | {"refresh", OTHER} == TOTALS["commands"].values
    operations = set(roundtrips._OPERATIONS) | {OTHER}
    assert operations == TOTALS["broker_errors"].values == catalogue(Measured)["broker"].values
    assert set(Timings().broker) == set(roundtrips._OPERATIONS)
    closes = {str(code) for code in codes._CLOSE_WORDS if codes.is_valid_close(code)}
    violations = set(map(str, codes.VIOLATIONS))
    assert closes | violations | {"lost", "peer", OTHER} == TOTALS["closes"].values


def test_a_label_has_a_type_of_its_own() -> None:
    for each in dataclasses.fields(Counted):
        assert each.type == ("Labelled" if TOTALS[each.name].label else "int"), each.name
        assert TOTALS[each.name].meaning
        assert OTHER in TOTALS[each.name].values or not TOTALS[each.name].label


def test_exported_names_are_told_apart() -> None:
    names = [metric.exported or name for name, metric in TOTALS.items()]
    assert len(set(names)) == len(names)


# -- counters -----------------------------------------------------------------------------------------


def test_counters_grow() -> None:
    counters = Counters()
    counters.add("joins")
    counters.add("joins", amount=2)
    counters.add("closes", "3012")
    assert (counters.get("joins"), counters.get("closes", "3012"), counters.get("holes")) == (3, 1, 0)
    before = counters.snapshot()
    counters.add("joins")
    assert before == {"joins": 3, "closes{3012}": 1}
    with pytest.raises(TypeError):
        before["joins"] = 0  # type: ignore[index]
    assert repr(counters) == "<Counters 2 totals>"


def test_counters_absorb_others() -> None:
    one, other = Counters(), Counters()
    one.add("joins", amount=2)
    other.add("joins")
    other.add("closes", "3012")
    one.absorb(other)
    assert one.snapshot() == {"joins": 3, "closes{3012}": 1}
    assert other.snapshot() == {"joins": 1, "closes{3012}": 1}


def test_totals_are_typed() -> None:
    counters = Counters()
    counters.add("joins", amount=3)
    counters.add("closes", "3012", 2)
    counters.add("closes", "lost")
    counted = Counted.of(counters.snapshot())
    assert counted.joins == 3
    assert counted.closes == {"3012": 2, "lost": 1}
    assert (counted.recoveries, counted.gaps) == (0, {})
    with pytest.raises(TypeError):
        counted.closes["3012"] = 0  # type: ignore[index]


def test_what_is_in_no_set_is_other() -> None:
    """However many codes an application thinks of, or somebody makes us count: one more value, and no more."""
    counters = Counters()
    for code in range(3600, 3700):
        counters.add("closes", str(code))
    counters.add("closes", "")
    counters.add("nonsense", "x")
    counters.add("nonsense")
    counted = Counted.of(counters.snapshot())
    assert counted.closes == {OTHER: 101}


# -- histograms ---------------------------------------------------------------------------------------


def test_a_bound_belongs_to_its_bucket() -> None:
    """As Prometheus has it: le is lower or equal."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1, math.inf):
        histogram.observe(value)
    assert histogram.snapshot().counts == (2, 2, 2)
    assert histogram.snapshot().count == 6
    assert repr(histogram) == "<Histogram of 6 values>"


def test_a_snapshot_stays_as_it_is() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(0.5)
    before = histogram.snapshot()
    histogram.observe(4)
    assert before == Distribution((1.0,), (1, 0), 0.5)
    assert histogram.snapshot() == Distribution((1.0,), (1, 1), 4.5)


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan,)])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Histogram(bounds)


def test_histograms_absorb_others_of_their_kind() -> None:
    one, other = Histogram((1.0,)), Histogram((1.0,))
    one.observe(0.5)
    other.observe(2)
    one.absorb(other)
    assert one.snapshot() == Distribution((1.0,), (1, 1), 2.5)
    with pytest.raises(ValueError, match="buckets"):
        one.absorb(Histogram())


def test_quantiles_are_bounds() -> None:
    histogram = Histogram((1.0, 2.0, 3.0))
    assert (histogram.snapshot().quantile(0.5), histogram.snapshot().mean) == (0.0, 0.0)
    for value in [0.5] * 98 + [1.5, 9.0]:
        histogram.observe(value)
    found = histogram.snapshot()
    assert [found.quantile(q) for q in (0, 0.5, 0.98, 0.99, 1)] == [1.0, 1.0, 1.0, 2.0, math.inf]
    assert found.mean == pytest.approx(0.595)
    with pytest.raises(ValueError, match="share"):
        found.quantile(99)


def test_timings_absorb_and_show_what_was_measured() -> None:
    one, other = Timings(), Timings()
    one.fanout.observe(0.1)
    for each in (other.fanout, other.delivery, other.loop_lag, other.broker["read"]):
        each.observe(0.1)
    one.absorb(other)
    measured = one.snapshot()
    assert (measured.fanout.count, measured.delivery.count, measured.loop_lag.count) == (2, 1, 1)
    assert {name: each.count for name, each in measured.broker.items()} == {"read": 1}
    assert Measured().fanout == Distribution() == Timings().snapshot().fanout
    assert Distribution().bounds == BOUNDS


# -- samples ------------------------------------------------------------------------------------------


def test_all_are_measured_while_there_are_few() -> None:
    sampler = Sampler()
    for _ in range(3):
        assert all(sampler.due() for _ in range(2 * SAMPLES - 1))
        sampler.second()


def test_of_many_every_nth_is_measured() -> None:
    """Spread over the second, about a hundred of them, and all again when it has become quiet."""
    sampler = Sampler()
    assert sum(sampler.due() for _ in range(10_000)) == 10_000, "the first second tells how many there are"
    for many in (10_000, 10_000, 5_000):
        sampler.second()
        found = [sampler.due() for _ in range(many)]
        assert sum(found) == many // 100
        assert sum(found[: many // 2]) == many // 200
    assert repr(sampler) == "<Sampler of 1 in 100>"
    sampler.second()
    assert repr(sampler) == "<Sampler of 1 in 50>"
    sampler.second()
    assert all(sampler.due() for _ in range(10))


def test_a_second_is_over_for_all_of_them() -> None:
    timings = Timings()
    samplers = [timings.calls, timings.publications, timings.fanouts]
    for sampler in samplers:
        for _ in range(1000):
            sampler.due()
    timings.second()
    assert [repr(sampler) for sampler in samplers] == ["<Sampler of 1 in 10>"] * 3
