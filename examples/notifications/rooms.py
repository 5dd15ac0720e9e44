"""What there is to hear, and for whom: the server includes it, and whoever notifies imports it."""

from dataclasses import dataclass

from rtkit import Context, Grant, History, Reject, Router
from rtkit.features import Receipts


@dataclass
class Notice:
    text: str
    link: str = ""  # where on the site it leads


router = Router[None]()
inbox = router.rooms(
    "user:{user}",
    publishes=Notice,
    history=History(200, ttl=30 * 86_400),
    auto_join=lambda identity: [inbox.name(user=identity.user)],
    receipts=Receipts(shared=False),  # how far one has read is one's own business
)


@inbox.authorize
async def only_oneself(ctx: Context[None, Notice]) -> Grant:
    if ctx.room.params["user"] != ctx.user:
        raise Reject("these are somebody else's")
    return Grant("history")
