"""A hub with presence in a process of its own: ``python -m tests.integration.presence_node REDIS PORT LEASE``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from rtkit import Grant, Hub, Identity, Limits, Presence
from rtkit.server import serve


async def authenticate(credentials: Any) -> Identity[None]:
    """Everybody is who they say."""
    return Identity(credentials.token)


def main(broker: str, port: str, lease: str) -> None:
    hub: Hub[None] = Hub(broker=broker, authenticate=authenticate, limits=Limits(lease=float(lease)))
    hub.rooms("team:{x}", publishes=object, grant=Grant("presence"), presence=Presence())
    asyncio.run(serve(hub, port=int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
