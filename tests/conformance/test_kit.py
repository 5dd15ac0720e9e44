"""The kit itself: it passes what is sound, finds what is broken, and works outside this repository."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from rtkit.brokers import MemoryBroker
from rtkit.errors import RtkitError
from rtkit.testing.conformance import Suite, promises
from tests.conformance.broken import BROKEN, EmptyIsNotThere, KitSuite
from tests.conformance.broken_outdoors import BROKEN_OUTDOORS
from tests.conformance.weather import OutdoorBroker


async def run(kind: type[MemoryBroker], name: str) -> None:
    """Run one test of the kit, by hand, because starting a pytest for each takes too long."""

    class Tried(KitSuite):
        pass

    Tried.kind = kind
    if kind in (MemoryBroker, OutdoorBroker):
        Tried.stories = 50
        Tried.patience = Tried.bounded = Tried.recovery = (
            20.0  # what is sound must not fail on a machine that is busy
        )
    test = getattr(Tried, name)
    if not inspect.iscoroutinefunction(test):
        await asyncio.to_thread(test, Tried())
        return
    parametrized = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    names, sets = parametrized[0].args[:2] if parametrized else ("", [()])
    for values in sets:
        suite = Tried()
        wanted = list(inspect.signature(test).parameters)[1:]
        async with AsyncExitStack() as stack:
            make = await stack.enter_async_context(suite.cluster())
            known: dict[str, Any] = {"make": make, "topic": "conformance:t"}
            if "nodes" in wanted:
                known["nodes"] = [await stack.enter_async_context(suite.open(make)) for _ in range(2)]
            if parametrized:
                known.update(zip(names.split(", "), values if "," in names else [values], strict=True))
            await test(suite, **{each: known[each] for each in wanted})


PAIRS = [(broken, test) for broken, tests in (BROKEN | BROKEN_OUTDOORS).items() for test in tests.split()]
#: What is not said of a broker, but of those who test it; see below.
ABOUT_SUITES = {
    "test_no_promise_was_taken_out",
    "test_is_held_to_all_it_implements",
    "test_what_cannot_be_tried_is_said",
}


@pytest.mark.parametrize("name", sorted({test for _, test in PAIRS}))
async def test_what_is_sound_passes(name: str) -> None:
    await run(
        OutdoorBroker if "self.needs(" in inspect.getsource(getattr(KitSuite, name)) else MemoryBroker, name
    )


@pytest.fixture(scope="module")
async def forgiving() -> AsyncIterator[None]:
    """What is broken may leave failed tasks behind, at which anyio would take offence in whatever test comes next."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)
    yield
    gc.collect()
    loop.set_exception_handler(before)


@pytest.mark.usefixtures("forgiving")
@pytest.mark.parametrize("broken, test", PAIRS, ids=[f"{broken.__name__}-{test}" for broken, test in PAIRS])
async def test_it_finds_what_is_broken(broken: type[MemoryBroker], test: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError, LookupError, RtkitError)):
        await run(broken, test)


async def test_stories_can_be_told_where_time_cannot_be_moved() -> None:
    class Still(KitSuite):
        advance = Suite.advance
        stories = 40
        shortened = True

    await asyncio.to_thread(Still().test_it_is_like_the_memory_broker)
    Still.stories, Still.kind = 800, EmptyIsNotThere
    with pytest.raises(AssertionError, match="to remove .* said False, and the memory broker True"):
        await asyncio.to_thread(Still().test_it_is_like_the_memory_broker)


def test_each_promise_can_be_broken() -> None:
    assert {name for name, _ in promises(KitSuite)} - {test for _, test in PAIRS} == ABOUT_SUITES


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
    left_out = dict.fromkeys(("outage", "restart", "lose"), "it lives in this process")

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
    assert all(getattr(report, "wasxfail", "").endswith("it lives in this process") for report in skipped)
    names = ({report.nodeid.partition("::")[2] for report in reports} for reports in (passed, failed))
    return next(names), next(names)


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


def test_it_notices_a_hook_that_nobody_speaks_of(pytester: pytest.Pytester) -> None:
    source = """
class TestSaid(Making, BrokerSuite): kind = Bare
class TestSilent(Making, BrokerSuite): left_out = {"outage": "so", "restart": "so"}
class TestBoth(Making, BrokerSuite):
    async def restart(self): pass
class TestProvides(Making, BrokerSuite):
    left_out = {"outage": "so", "lose": "so"}
    async def restart(self): pass
"""
    passed, failed = run_plug_in(pytester, source, "-k", "cannot_be_tried")
    assert {name.partition("::")[0] for name in passed} == {"TestSaid", "TestProvides"}
    assert {name.partition("::")[0] for name in failed} == {"TestSilent", "TestBoth"}


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
