"""The pages of attacks and of limits: tests they name exist, defaults are those of the code, nothing is left out."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from rtkit import Limits
from rtkit.hosting.frames import MAX_FRAGMENTS
from rtkit.primitives import Heartbeat, Rate
from rtkit.server import ServerLimits
from tests.docs.blocks import ROOT, prose, table

SECURITY = "docs/explanation/security.md"
LIMITS = "docs/reference/limits.md"
#: Limits that are bytes; other whole numbers are counts.
BYTES = {
    "max_frame",
    "max_connect",
    "max_publication",
    "large",
    "assembling",
    "outbox",
    "reserve",
    "inbound",
    "head",
    "body",
}

HUB_ROWS = table(LIMITS, "limit of a hub", "default", "beyond it", "shown by")
SERVER_ROWS = table(LIMITS, "limit of the server", "default", "beyond it", "shown by")
FIXED_ROWS = table(LIMITS, "fixed", "value", "beyond it", "shown by")
ATTACKS = table(SECURITY, "attack", "what happens", "shown by")
ELSEWHERE = table(SECURITY, "attack", "under uvicorn", "shown by")
MEMORY = table(SECURITY, "what is done", "at once", "memory", "shown by")


def amount(name: str, value: float) -> str:
    """A number as the page has it."""
    if name in BYTES:
        return f"{value / 2**20:g} MiB" if value >= 2**20 else f"{value / 1024:g} KiB"
    return f"{value:,}" if isinstance(value, int) else f"{value:g} s"


def shown(name: str, value: Any) -> str:
    if value is None:
        return "off"
    if isinstance(value, Rate):
        unit = name if name in BYTES else ""
        rate, burst = (amount(unit, each) if unit else f"{each:g}" for each in (value.rate, value.burst))
        return f"{rate} a second, {burst} at once"
    if isinstance(value, Heartbeat):
        return f"{value.interval:g} s, {value.timeout:g} s to answer"
    return amount(name, value)


@pytest.mark.parametrize(
    ("rows", "limits"), [(HUB_ROWS, Limits()), (SERVER_ROWS, ServerLimits())], ids=["hub", "server"]
)
def test_every_limit_is_there_with_its_default(rows: list[dict[str, str]], limits: Any) -> None:
    said = {next(iter(row.values())).strip("`"): row["default"] for row in rows}
    assert said == {each.name: shown(each.name, getattr(limits, each.name)) for each in fields(limits)}


def test_what_cannot_be_set() -> None:
    values = {row["fixed"]: row["value"] for row in FIXED_ROWS}
    assert values["fragments of a message"] == f"{MAX_FRAGMENTS:,}"
    from rtkit.hosting.raw import _CONTROL

    rate = values["pings and pongs of the WebSocket"]
    assert rate == f"{_CONTROL.rate:g} a second, {_CONTROL.burst:g} at once"


def named(cell: str) -> list[str]:
    return re.findall(r"`(tests/[^`]+)`", cell)


@pytest.mark.parametrize(
    "row",
    [*ATTACKS, *ELSEWHERE, *MEMORY, *HUB_ROWS, *SERVER_ROWS, *FIXED_ROWS],
    ids=lambda row: str(row)[:60],
)
def test_every_row_names_a_test_that_exists(row: dict[str, str]) -> None:
    tests = named(row["shown by"])
    assert tests, "a row that nothing shows"
    for each in tests:
        path, _, name = each.partition("::")
        source = (ROOT / path).read_text()
        assert name, f"{each} is no test, but a file of them"
        assert re.search(rf"^(async )?def {name}\b", source, flags=re.M), f"no {each}"


def test_every_attack_of_the_abuse_suite_is_on_the_page() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "tests/abuse").glob("test_*.py"))
    tests = set(re.findall(r"^(?:async )?def (test_\w+)", source, flags=re.M))
    on_pages = {
        each.partition("::")[2]
        for page in (SECURITY, LIMITS)
        for each in re.findall(r"`(tests/abuse/[^`]+)`", prose(page))
    }
    assert tests == on_pages


def test_every_abuse_has_a_bound_of_memory() -> None:
    """What is done to a victim has a row that says what it may cost; the test reads its bound there."""
    source = (ROOT / "tests/abuse/test_abuse.py").read_text()
    tests = re.findall(r"^async def (test_\w+)\((.*?)\) -> None:", source, flags=re.M | re.S)
    assert [name for name, parameters in tests if "bound: int" not in parameters] == []
    assert sorted(name for row in MEMORY for name in named(row["shown by"])) == sorted(
        f"tests/abuse/test_abuse.py::{name}" for name, _ in tests
    )


def test_the_tables_are_read() -> None:
    """A table whose heading changed would be skipped without a word."""
    assert len(ATTACKS) > 35 and len(ELSEWHERE) == 7 and len(FIXED_ROWS) == 9 and len(MEMORY) > 20
