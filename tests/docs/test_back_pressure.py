"""The page about back-pressure: its numbers are the defaults, its policies are all, and its tests are there."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from rtkit import Limits
from rtkit.hub.prepared import HIGH_WATER
from rtkit.primitives import Overflow
from tests.docs.blocks import ROOT, prose, table

PAGE = "docs/explanation/back-pressure.md"


def test_all_policies_are_there() -> None:
    rows = table(PAGE, "policy", "for", "what the slow member gets", "counted as")
    assert {row["policy"].strip("`") for row in rows} == set(get_args(Overflow))


def test_the_numbers_are_the_defaults() -> None:
    text, limits = " ".join(prose(PAGE).split()), Limits()
    assert f"{limits.outbox // 2**20} MiB (`Limits(outbox=…)`)" in text
    assert f"{HIGH_WATER // 1024} KiB ahead at the most" in text
    assert f"{limits.reserve // 1024} KiB more (`reserve`)" in text
    assert f"the next {limits.recovery_page} messages" in text
    assert f"{limits.max_pending} commands of it wait (`max_pending`)" in text
    assert limits.heartbeat is not None
    assert f"a peer has {limits.heartbeat.timeout:g} s to answer" in text


@pytest.mark.parametrize("row", table(PAGE, "what", "shown by"), ids=lambda row: str(row["what"])[:60])
def test_every_row_names_a_test_that_exists(row: dict[str, str]) -> None:
    tests = re.findall(r"`(tests/[^`]+)`", row["shown by"])
    assert tests
    for each in tests:
        path, _, name = each.partition("::")
        source = (ROOT / path).read_text()
        assert not name or re.search(rf"^(async )?def {name}\b", source, flags=re.M), f"no {each}"
