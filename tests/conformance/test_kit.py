"""The kit itself: it passes what is sound, finds what is broken, and works outside this repository."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from rtkit.brokers import MemoryBroker
from tests.conformance.broken import BROKEN, KitSuite


async def run(kind: type[MemoryBroker], name: str) -> None:
    """Run one test of the kit, by hand, because starting a pytest for each takes too long."""

    class Suite(KitSuite):
        pass

    Suite.kind = kind
    if kind is MemoryBroker:
        Suite.patience = 20.0  # what is sound must not fail on a machine that is busy
    suite = Suite()
    test = getattr(suite, name)
    async with suite.cluster() as make, suite.open(make) as first, suite.open(make) as second:
        known: dict[str, Any] = {"make": make, "nodes": (first, second), "topic": "t"}
        for mark in getattr(test, "pytestmark", []):
            if mark.name == "parametrize":
                known.update(zip(mark.args[0].split(", "), mark.args[1][0], strict=True))
        await test(**{wanted: known[wanted] for wanted in inspect.signature(test).parameters})


@pytest.mark.parametrize("broken, test", BROKEN.items(), ids=[broken.__name__ for broken in BROKEN])
async def test_it_finds_what_is_broken(broken: type[MemoryBroker], test: str) -> None:
    await run(MemoryBroker, test)
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError)):
        await run(broken, test)


# -- as a plug-in runs it, without any of our settings ----------------------------------------------

PLUG_IN = """
from contextlib import asynccontextmanager

import pytest
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.testing.conformance import BrokerSuite, StateBrokerSuite, StreamBrokerSuite

class Bare:
    def __init__(self, backend):
        broker = MemoryBroker(backend)
        for name in ("open", "aclose", "publish", "subscribe", "unsubscribe"):
            setattr(self, name, getattr(broker, name))

class Making:
    kind = MemoryBroker

    @asynccontextmanager
    async def cluster(self):
        backend = MemoryBackend()
        yield lambda: self.kind(backend)

"""


def run_plug_in(pytester: pytest.Pytester, source: str, *arguments: str) -> tuple[set[str], set[str]]:
    """The tests that passed and those that failed."""
    pytester.makepyfile(PLUG_IN + source)
    record = pytester.inline_run("-p", "no:cacheprovider", *arguments)
    passed, skipped, failed = record.listoutcomes()
    assert not skipped
    names = ({report.nodeid.partition("::")[2] for report in reports} for reports in (passed, failed))
    return next(names), next(names)


def test_ten_lines_are_enough(pytester: pytest.Pytester) -> None:
    passed, failed = run_plug_in(pytester, "class TestIt(Making, BrokerSuite): kind = Bare")
    assert failed == set()
    assert "TestIt::test_echo" in passed
    assert len(passed) > 20


def test_it_holds_a_broker_to_exactly_what_it_implements(pytester: pytest.Pytester) -> None:
    source = """
class TestLess(Making, BrokerSuite): pass
class TestLessState(Making, StreamBrokerSuite): pass
class TestLessStream(Making, StateBrokerSuite): pass
class TestMoreStream(Making, StreamBrokerSuite): kind = Bare
class TestMoreState(Making, StateBrokerSuite): kind = Bare
class TestRight(Making, StreamBrokerSuite, StateBrokerSuite): pass
class TestBare(Making, BrokerSuite): kind = Bare
"""
    passed, failed = run_plug_in(pytester, source, "-k", "is_held_to_all")
    assert {name.partition("::")[0] for name in passed} == {"TestRight", "TestBare"}
    assert len(failed) == 5


def test_it_notices_a_promise_that_was_taken_out(pytester: pytest.Pytester) -> None:
    source = """
class TestGone(Making, BrokerSuite):
    test_echo = None

class TestReplaced(Making, BrokerSuite):
    async def test_echo(self): pass

class TestExcused(Making, BrokerSuite):
    @pytest.mark.xfail(reason="it has no echo")
    async def test_echo(self, nodes, topic):
        await super().test_echo(nodes, topic)
"""
    passed, failed = run_plug_in(pytester, source, "-k", "no_promise")
    assert {name.partition("::")[0] for name in passed} == {"TestExcused"}
    assert len(failed) == 2
