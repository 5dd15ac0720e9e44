"""Mistakes in a program like ``programs/handler_test.py``; both checkers must refuse each marked line."""

# What is unknown because of a mistake would be reported a second time.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from rtkit import Identity
from rtkit.testing import TestHub
from tests.typing.programs.handler_test import Accepted, Bid, Highest, Sold, make_hub, router


async def test_mistakes() -> None:
    TestHub(router)  # expect: mypy[arg-type] pyright[reportArgumentType]
    async with TestHub(make_hub()) as t:
        await t.connect("ann")  # expect: mypy[arg-type] pyright[reportArgumentType]
        await t.clock.advance("90")  # expect: mypy[arg-type] pyright[reportArgumentType]
        ann = await t.connect(Identity("ann"))
        async with ann.join("auction:1", receives=(Highest, Sold)) as room:
            accepted = await room.send(Bid(1), returns=Accepted)
            _ = accepted.amount  # expect: mypy[attr-defined] pyright[reportAttributeAccessIssue]
            await room.send(Bid("1"), returns=Accepted)  # expect: mypy[arg-type] pyright[reportArgumentType]
            item = await anext(aiter(room))
            _ = item.sender  # expect: mypy[union-attr] pyright[reportAttributeAccessIssue]
