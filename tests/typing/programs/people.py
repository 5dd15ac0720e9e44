"""A chat window: who is here, who types, who has read what, and cursors; the hub and the client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rtkit import Grant, History, Hub, Member, Message, Position, anonymous
from rtkit.client import Client, Feed, Marks, MarksChange, PresenceChange, RoomClient
from rtkit.features import Presence, Receipts, Signals, Typing


@dataclass
class Said:
    text: str


@dataclass
class Cursor:
    x: float
    y: float


def make_hub() -> Hub[None]:
    hub = Hub(authenticate=anonymous)
    hub.rooms(
        "chat:{room}",
        publishes=Said,
        history=History(100, ttl=3600),
        grant=Grant("publish", "signal", "presence"),
        presence=Presence(),
        receipts=Receipts(),
        typing=Typing(expires=4.0),
        signals=Signals(rate=20),
    )
    return hub


@dataclass
class Window:
    """What is on the screen."""

    here: dict[str, Member] = field(default_factory=dict[str, Member])
    typists: tuple[str, ...] = ()
    unread: int = 0
    cursors: dict[str, Cursor] = field(default_factory=dict[str, Cursor])

    def show(self, change: PresenceChange) -> None:
        if change.whole:
            self.here.clear()
        for member in change.leaves:
            del self.here[member.client]
        for member in (*change.joins, *change.updates):
            self.here[member.client] = member


async def watch(client: Client, window: Window) -> None:
    async with client.join("chat:lobby", receives=Said, presence=True, receipts=True) as room:
        await room.presence.update({"away": False})
        changes = room.presence.changes()
        window.here = {member.client: member for member in room.presence.members}
        async for change in changes:
            window.show(change)


async def follow(room: RoomClient[Said], window: Window) -> None:
    typing: Feed[tuple[str, ...]] = room.typing_changes()
    async for users in typing:
        window.typists = users
    async for signal in room.signals(Cursor):
        if signal.client is not None:
            window.cursors[signal.client] = signal.data


async def read(room: RoomClient[Said], window: Window) -> None:
    async for item in room:
        if isinstance(item, Message):
            room.receipts.read(item)
        window.unread = room.receipts.unread


def devices(room: RoomClient[Said]) -> dict[str, int]:
    users: Mapping[str, tuple[Member, ...]] = room.presence.users
    return {user: len(members) for user, members in users.items()}


def last_read(room: RoomClient[Said], user: str) -> Position | None:
    marks: Marks | None = room.receipts.marks.get(user)
    return marks.read if marks is not None else None


def moved(change: MarksChange) -> list[str]:
    return sorted(change.marks)


def key_pressed(room: RoomClient[Said], x: float) -> bool:
    room.typing()
    return room.signal(Cursor(x, 0.0))
