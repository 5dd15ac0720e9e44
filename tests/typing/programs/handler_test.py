"""The test of a handler: the application's own hub, users without sockets, and a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Message, Reject, Router
from rtkit.errors import CallError
from rtkit.testing import TestHub

# -- the application ----------------------------------------------------------------------------------


@dataclass
class Bid:
    """An offer."""

    amount: int


@dataclass
class Accepted:
    """It stands."""

    leader: str


@dataclass
class Highest:
    """Everybody learns of it."""

    amount: int
    user: str


@dataclass
class Sold:
    """Nobody offered more for a while."""

    amount: int


Auction = Context[None, Highest | Sold]

router = Router[None]()
auctions = router.rooms(
    "auction:{lot}", publishes=(Highest, Sold), history=History(10, ttl=600), grant=Grant("publish")
)


@auctions.on(Bid)
async def bid(ctx: Auction, message: Bid) -> Accepted:
    page = await ctx.room.history(limit=1, reverse=True)
    last = page.messages[0].data if page.messages else Highest(0, "")
    if isinstance(last, Sold) or message.amount <= last.amount:
        raise Reject("too late or too little", code=409)
    await ctx.room.publish(Highest(message.amount, ctx.user))
    return Accepted(ctx.user)


async def authenticate(credentials: Credentials) -> Identity[None]:
    raise Reject("tests need no token")


def make_hub() -> Hub[None]:
    hub = Hub(authenticate=authenticate)
    hub.include(router)
    return hub


# -- its tests ----------------------------------------------------------------------------------------


async def test_a_bid_is_told_to_everybody() -> None:
    async with TestHub(make_hub()) as t:
        ann = await t.connect(Identity("ann"))
        bob = await t.connect(Identity("bob"))
        async with (
            ann.join("auction:1", receives=(Highest, Sold)) as hers,
            bob.join("auction:1", receives=(Highest, Sold)) as his,
        ):
            accepted = await hers.send(Bid(10), returns=Accepted)
            assert_type(accepted, Accepted)
            assert accepted.leader == "ann"
            message = await t.next(his)
            assert_type(message, Message[Highest | Sold])
            assert message.data == Highest(10, "ann")
            assert message.sender == "ann"


async def test_a_lower_bid_is_refused() -> None:
    async with TestHub(make_hub()) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join("auction:2", receives=(Highest, Sold)) as room:
            await room.send(Bid(10), returns=Accepted)
            with pytest.raises(CallError, match="too little") as refused:
                await room.send(Bid(10), returns=Accepted)
            assert refused.value.code == 409


async def test_an_hour_later_they_are_still_there() -> None:
    async with TestHub(make_hub()) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join("auction:3", receives=(Highest, Sold)) as room:
            await t.clock.advance(3600)
            accepted = await room.send(Bid(1), returns=Accepted)
            assert accepted.leader == "ann"
