"""Autobahn's test suite against our server and our client, and what came of it (`summary.json`).

The summary is what is known: the number of cases that are fine, and every other one by name. A run that differs
fails; one that failed is a decision, and `docs/decisions/0033-autobahn.md` says why. To write it anew:
`RTKIT_AUTOBAHN=write ./dev test tests/autobahn`, and the same with `soak`.

Running it is for `./dev soak`: the protocol itself takes ten seconds, large messages and compression take minutes. What
is known is held against the record in every run.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.autobahn.echo import echoing_client, free_port, serve_echo, serve_echo_on_uvicorn
from tests.autobahn.suite import CASES, Suite, find_suite, verdicts
from tests.docs.blocks import ROOT

SUMMARY: Final = Path(__file__).with_name("summary.json")
RECORD: Final = ROOT / "docs/decisions/0033-autobahn.md"

#: Cases that wait for seconds, apart from the rest: two processes take half the time of one.
_WAITING: Final = ("6.4.*",)
#: What takes longest by far, in parts that take about as long.
_COMPRESSION: Final = (("12.1.*", "12.2.*", "12.3.*"), ("12.4.*", "12.5.*"), ("13.*",))


@pytest.fixture(scope="module")
def suite() -> Suite:
    """Installed, which takes half a minute for the first time."""
    return find_suite()


async def tried(
    suite: Suite, name: str, url: str, parts: Iterable[Iterable[str]], *, seconds: float
) -> dict[str, str]:
    """The verdicts of the suite on what is at a URL, its cases in several processes at once.

    :param name: what the summary calls this run.
    """

    async def run(cases: Iterable[str]) -> dict[str, str]:
        return (await suite.try_servers([("it", url)], cases, seconds=seconds))["it"]

    found: dict[str, str] = {}
    for done in await asyncio.gather(*(run(part) for part in parts)):
        found |= done
    return await confirmed(name, found, run)


async def tried_client(suite: Suite, name: str, cases: Iterable[str], *, at_once: int = 4) -> dict[str, str]:
    """The same of our client."""

    async def run(cases: Iterable[str], at_once: int = 1) -> dict[str, str]:
        port = free_port()
        async with suite.server(port, cases) as report:
            await echoing_client(port, "it", at_once=at_once)
            return verdicts(report)["it"]

    return await confirmed(name, await run(cases, at_once), run)


async def confirmed(
    name: str, found: dict[str, str], run: Callable[[list[str]], Awaitable[dict[str, str]]]
) -> dict[str, str]:
    """Verdicts of which those that nobody expected are confirmed by trying these cases again, by themselves.

    The suite judges by a clock that is its own: what is not there after a second was not said, and on a machine with
    other work that is sometimes wrong. What is wrong with us is so each time.
    """
    others = known().get(name, {}).get("others", {})
    for _ in range(3):
        said = summed_up(name, found)["others"]
        doubtful = [case for case in found if said.get(case, "OK") != others.get(case, "OK")]
        if not doubtful:
            break
        found |= await run(doubtful)
    return found


def protocol_parts() -> tuple[tuple[str, ...], ...]:
    """The cases of the protocol, those that wait apart from those that do not."""
    others = tuple(f"6.{n}.*" for n in range(1, 24) if f"6.{n}.*" not in _WAITING)
    return _WAITING, (*(each for each in CASES["protocol"] if each != "6.*"), *others)


def summed_up(name: str, cases: Mapping[str, str]) -> dict[str, Any]:
    """The number of cases that are fine, and the others, in their order.

    To be strict is for our own server: whether websockets closes before or behind an echo is a matter of moments.
    """
    if not name.startswith("server"):
        cases = {case: "OK" if verdict == "NON-STRICT" else verdict for case, verdict in cases.items()}
    order = sorted(cases, key=lambda case: [int(part) for part in case.split(".")])
    others = {case: cases[case] for case in order if cases[case] != "OK"}
    return {"cases": len(cases), "OK": Counter(cases.values())["OK"], "others": others}


def known() -> dict[str, Any]:
    """What the last run that was written down said."""
    return json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}


def check(name: str, cases: Mapping[str, str]) -> None:
    """Compare a run with what is known of it; or write down that it is so now."""
    now = summed_up(name, cases)
    if os.environ.get("RTKIT_AUTOBAHN") == "write":
        SUMMARY.write_text(json.dumps(dict(sorted({**known(), name: now}.items())), indent=2) + "\n")
    else:
        assert now == known().get(name), "or not written down yet"


# -- the protocol ---------------------------------------------------------------------------------------


@pytest.mark.soak  # it installs the suite, and the suite judges by its own clock; ten seconds by itself
@pytest.mark.timeout(180)  # the first run installs the suite
async def test_our_server_and_our_client_keep_the_protocol(suite: Suite) -> None:
    async with serve_echo() as url:
        server, client = await asyncio.gather(
            tried(suite, "server, protocol", url, protocol_parts(), seconds=120),
            tried_client(suite, "client, protocol", CASES["protocol"]),
        )
    check("server, protocol", server)
    check("client, protocol", client)


def test_every_failure_is_a_decision() -> None:
    """What the summary says has failed stands in the record, by its number or that of its group."""
    record = RECORD.read_text()
    for name, run in json.loads(SUMMARY.read_text()).items():
        for case, verdict in run["others"].items():
            if "FAILED" in verdict or "WRONG" in verdict:
                group = case.rpartition(".")[0]
                assert f"{case} " in record or f"{group}.* " in record, f"{name}: {case} is not explained"


def test_our_server_fails_nothing_of_the_protocol() -> None:
    """What is forgiven others is not forgiven it."""
    others = json.loads(SUMMARY.read_text())["server, protocol"]["others"]
    assert not [case for case, verdict in others.items() if verdict not in ("NON-STRICT", "INFORMATIONAL")]


# -- the long form -------------------------------------------------------------------------------------


@pytest.mark.soak
async def test_uvicorn_keeps_the_protocol(suite: Suite) -> None:
    async with serve_echo_on_uvicorn() as url:
        check(
            "uvicorn, protocol", await tried(suite, "uvicorn, protocol", url, protocol_parts(), seconds=300)
        )


@pytest.mark.soak
async def test_large_messages_to_our_server(suite: Suite) -> None:
    async with serve_echo() as url:
        check("server, limits", await tried(suite, "server, limits", url, [CASES["limits"]], seconds=1200))


@pytest.mark.soak
async def test_large_messages_to_our_client(suite: Suite) -> None:
    check("client, limits", await tried_client(suite, "client, limits", CASES["limits"], at_once=1))


@pytest.mark.soak
async def test_compression(suite: Suite) -> None:
    """Of our server (T9); our client does not offer it. Offers of small windows are declined, and nothing fails."""
    async with serve_echo(deflate=True) as url:
        found = await tried(suite, "server, compression", url, _COMPRESSION, seconds=1800)
    declined = {case for case, verdict in found.items() if verdict == "UNIMPLEMENTED"}
    assert {case.rpartition(".")[0] for case in declined} == {"13.3", "13.5"}
    assert {verdict for case, verdict in found.items() if case not in declined} == {"OK"}


@pytest.mark.soak
async def test_compression_is_declined_unless_switched_on(suite: Suite) -> None:
    async with serve_echo() as url:
        found = await suite.try_servers([("it", url)], ["12.1.1", "13.1.1"], seconds=300)
    assert set(found["it"].values()) == {"UNIMPLEMENTED"}
