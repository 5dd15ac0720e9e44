"""The page on receipts: its code runs, and does what the page says."""

from __future__ import annotations

import types
from typing import Any

from rtkit import Identity, Position
from rtkit.messages import Marks
from rtkit.testing import TestHub
from tests.docs.blocks import blocks
from tests.support.rawclient import RawClient

PAGE = "docs/how-to/receipts.md"


async def test_it_is_known_who_has_read_what() -> None:
    page: Any = types.ModuleType("page")
    for block in blocks(PAGE, "python", "receipts"):
        code: Any = block.code()
        exec(code, vars(page))
    async with TestHub(page.hub) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join("chat:lobby"):
            place = [(await page.hub.publish("chat:lobby", n)).position for n in range(3)][-1]
            foreign = RawClient(page.hub, t.clock)
            connected = await foreign.connect()
            (user,) = [name.partition(":")[2] for name in connected["subs"]]
            await foreign.call("subscribe", channel="chat:lobby")
            body = {"channel": "chat:lobby", "kind": "read", "epoch": place.epoch, "offset": 2}
            await foreign.call("rpc", method="rt.mark", data=body)
            await t.settle()
            assert await page.who_has_read("chat:lobby", 2) == [user]
            assert await page.who_has_read("chat:lobby", 3) == []
            two = Position(place.epoch, 2)
            assert (await page.hub.room("chat:lobby").marks())[user] == Marks(two, two)
            answer = await foreign.call("rpc", method="rt.marks", data={"channel": "chat:lobby"})
            assert answer["data"]["read"] == {user: 2}
