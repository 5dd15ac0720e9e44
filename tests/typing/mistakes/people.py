"""Mistakes in a program like ``programs/people.py``; both checkers must refuse each marked line."""

# What is unknown because of a mistake would be reported a second time.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from rtkit import Hub, anonymous
from rtkit.client import Client, RoomClient
from rtkit.features import Receipts
from tests.typing.programs.people import Said


async def mistakes(client: Client, room: RoomClient[Said]) -> None:
    client.join("chat:a", presence="yes")  # expect: mypy[call-overload] pyright[reportArgumentType]
    room.typing("ann")  # expect: mypy[arg-type] pyright[reportArgumentType]
    room.receipts.read(7)  # expect: mypy[arg-type] pyright[reportArgumentType]
    room.receipts.reached(room.position)  # expect: mypy[arg-type] pyright[reportArgumentType]
    async for change in room.presence.changes():
        _ = change.members  # expect: mypy[attr-defined] pyright[reportAttributeAccessIssue]
    async for users in room.typing_changes():
        _ = users.add  # expect: mypy[attr-defined] pyright[reportAttributeAccessIssue]


def wrong_kind(hub: Hub[None]) -> None:
    hub = Hub(authenticate=anonymous)
    # expect: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
    hub.rooms("chat:{r}", publishes=Said, presence=Receipts())
