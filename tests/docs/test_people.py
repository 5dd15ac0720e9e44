"""The pages on presence and receipts, as the Python client sees it: their code runs, and does what they say."""

from __future__ import annotations

import types
from typing import Any

from rtkit import Identity
from rtkit.client.receiptstate import MAX_USERS
from rtkit.testing import TestHub
from tests.docs.blocks import blocks, prose

PRESENCE = "docs/how-to/presence.md"
RECEIPTS = "docs/how-to/receipts.md"


def load(page: str, word: str) -> tuple[Any, list[str]]:
    """The page's code, and what it prints."""
    module: Any = types.ModuleType("page")
    for block in blocks(page, "python", word):
        code: Any = block.code()
        exec(code, vars(module))
    printed: list[str] = []
    module.print = lambda *words: printed.append(" ".join(map(str, words)))
    return module, printed


async def test_who_is_there_is_watched() -> None:
    page, printed = load(PRESENCE, "presence")
    async with TestHub(page.hub) as t:
        ann, bob = await t.connect(Identity("ann")), await t.connect(Identity("bob"))
        t.spawn(page.watch, ann, "chat:lobby")
        await t.clock.advance(1)
        assert printed[-1] == "ann"
        async with bob.join("chat:lobby"):
            await t.clock.advance(1)
            assert printed[-2:] == ["bob is here", "ann, bob"]
            assert await page.names("chat:lobby") == ["Ann", "Bob"]
            assert [m.meta for m in await page.hub.room("chat:lobby").presence() if m.user == "ann"] == [
                {"name": "Ann", "away": True}
            ]
        await t.clock.advance(1)
        assert printed[-1] == "ann"


async def test_messages_get_their_ticks() -> None:
    page, printed = load(RECEIPTS, "receipts")
    async with TestHub(page.hub) as t:
        ann, bob = await t.connect(Identity("ann")), await t.connect(Identity("bob"))
        hers = await ann.join("chat:lobby", receipts=True)
        his = await bob.join("chat:lobby", receipts=True)
        await hers.send("hi")
        message = await t.next(hers)
        await t.clock.advance(1)
        assert page.ticks(hers, message) == "sent"
        await t.next(his)
        await t.clock.advance(1)
        assert page.ticks(hers, message) == "delivered"
        page.seen(his)
        await t.clock.advance(1)
        assert page.ticks(hers, message) == "read"
        await his.leave()
        t.spawn(page.follow, bob, "chat:lobby")
        await t.settle()
        await hers.send("again")
        await t.settle()
        assert len(printed) == 1
        assert printed[0].endswith(" 1 unread")
    assert f"up to {MAX_USERS:,}" in prose(RECEIPTS)
