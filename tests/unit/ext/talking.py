"""What exporters of metrics have to tell of: a hub, and somebody who says something."""

from __future__ import annotations

from typing import Any

from rtkit import Grant, History, Hub, Identity, anonymous
from rtkit.testing import TestHub


def declared() -> Hub[Any]:
    """A hub that is not started, with rooms ``r:…``."""
    hub = Hub(authenticate=anonymous)
    hub.rooms("r:{x}", publishes=object, grant=Grant("publish"), history=History(10, ttl=60))
    return hub


async def talk(t: TestHub[Any], user: str = "ann", room: str = "r:1") -> None:
    """*user* comes, says what nobody is to read in a metric, hears it, and goes."""
    client = await t.connect(Identity(user))
    async with client.join(room) as joined:
        await joined.send({"text": "secret words"})
        await t.next(joined)
    await client.aclose()
