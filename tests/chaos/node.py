"""A hub in a process of its own: ``python -m tests.chaos.node BROKER PORT ROOM=DURABILITY …``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

from rtkit.brokers import open_url
from rtkit.server import serve
from tests.chaos.world import Plan, make_hub


def main(broker: str, port: str, *rooms: str) -> None:
    pairs = tuple(cast("Any", room.split("=")) for room in rooms)
    hub = make_hub(open_url(broker), Plan(rooms=tuple((name, durability) for name, durability in pairs)))
    asyncio.run(serve(hub, port=int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
