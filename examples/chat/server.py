"""The chat of ./dev demo: rooms that anybody opens, names without passwords, history, who is here, who types, who has
read what.

A demonstration: whoever says "I am ann" is ann, in as many tabs as they like. `examples/fastapi_chat.py` has tokens
and a room for staff; `page/` is what the browser gets.
"""

import unicodedata
from dataclasses import dataclass

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Position, Reject
from rtkit.features import Presence, Receipts, Typing

LONGEST_NAME = 32  # characters, of people and of rooms
LONGEST_TEXT = 4000


@dataclass
class Say:  # what clients send
    text: str


@dataclass
class Said:  # what rooms publish
    text: str
    key: str | None = None  # the sender's own, so that a page knows its message again


@dataclass
class Opened:  # somebody opened a room
    room: str


def is_name(text: str) -> bool:
    """Whether it can be shown as it is: one line, nothing invisible, spelt in one way only."""
    return (
        0 < len(text) <= LONGEST_NAME
        and text == " ".join(unicodedata.normalize("NFC", text).split())
        and not any(unicodedata.category(character).startswith("C") for character in text)
    )


async def authenticate(credentials: Credentials) -> Identity[None]:
    name = credentials.token or ""
    if not is_name(name):
        raise Reject(f"a name has 1 to {LONGEST_NAME} characters that can be seen", code=101)
    return Identity(name)


hub = Hub(authenticate=authenticate)
chat = hub.rooms(
    "chat:{room}",
    publishes=Said,
    history=History(1000, ttl=86_400),
    presence=Presence(),
    receipts=Receipts(),
    typing=Typing(),
)
directory = hub.rooms("rooms", publishes=Opened, history=History(100, ttl=86_400), grant=Grant())


@chat.authorize
async def may_join(ctx: Context[None, Said]) -> Grant:
    if not is_name(ctx.room.params["room"]):
        raise Reject(f"the name of a room has 1 to {LONGEST_NAME} characters that can be seen")
    return Grant("publish", "history", "signal", "presence")


@chat.on(Say)
async def say(ctx: Context[None, Said], message: Say) -> Position | None:
    text = message.text.strip()
    if not 0 < len(text) <= LONGEST_TEXT:
        raise Reject(f"a message has 1 to {LONGEST_TEXT} characters", code=400)
    # A resent command has the key it had before, and what is published under it is published once.
    return (await ctx.room.publish(Said(text, ctx.key))).position


@chat.on_join
async def came(ctx: Context[None, Said]) -> None:
    if not (await ctx.room.presence_stats()).clients:
        # Two who open it at the same moment may both say so; the page lists it once.
        await directory.room().publish(Opened(ctx.room.params["room"]))
