"""The chat of ./dev demo: rooms that anybody opens, names without passwords, history, who is here.

A demonstration: whoever says "I am ann" is ann, in as many tabs as they like. `examples/fastapi_chat.py` has tokens
and a room for staff; `page/` is what the browser gets.
"""

import itertools
import unicodedata
from dataclasses import dataclass

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Position, Reject

LONGEST_NAME = 32  # characters, of people and of rooms
LONGEST_TEXT = 4000
SHOWN = 100  # people that a list names; the rest is a number


@dataclass
class Say:  # what clients send
    text: str


@dataclass
class Said:  # what rooms publish
    text: str
    key: str | None = None  # the sender's own, so that a page knows its message again


@dataclass
class Here:  # who is in a room: what joining returns, and a signal when it changed
    people: list[str]
    count: int
    turn: int  # a signal may be older than the list that joining returned


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
chat = hub.rooms("chat:{room}", publishes=Said, history=History(1000, ttl=86_400))
directory = hub.rooms("rooms", publishes=Opened, history=History(100, ttl=86_400), grant=Grant())

# Who is here, by room and session. This knows one process, and hears of a connection that died without a word
# only when the heartbeat missed it.
here: dict[str, dict[str, str]] = {}
turns = itertools.count(1)


@chat.authorize
async def may_join(ctx: Context[None, Said]) -> Grant:
    if not is_name(ctx.room.params["room"]):
        raise Reject(f"the name of a room has 1 to {LONGEST_NAME} characters that can be seen")
    return Grant("publish", "history")


@chat.on(Say)
async def say(ctx: Context[None, Said], message: Say) -> Position | None:
    text = message.text.strip()
    if not 0 < len(text) <= LONGEST_TEXT:
        raise Reject(f"a message has 1 to {LONGEST_TEXT} characters", code=400)
    # A resent command has the key it had before, and what is published under it is published once.
    return (await ctx.room.publish(Said(text, ctx.key))).position


@chat.on_join
async def came(ctx: Context[None, Said]) -> Here:
    if ctx.room.name not in here:
        await directory.room().publish(Opened(ctx.room.params["room"]))
    # Nothing is awaited from here on: who is in the list is in the room, and `left` will be called for them.
    here.setdefault(ctx.room.name, {})[ctx.session.id] = ctx.user
    return tell(ctx)


@chat.on_leave
async def left(ctx: Context[None, Said]) -> None:
    here[ctx.room.name].pop(ctx.session.id)
    tell(ctx)
    if not here[ctx.room.name]:
        del here[ctx.room.name]


def tell(ctx: Context[None, Said]) -> Here:
    """Tell everybody else in the room who is here now. A signal may get lost; the next one has it all again."""
    people = sorted(set(here[ctx.room.name].values()))
    now = Here(people[:SHOWN], len(people), next(turns))
    # Not `ctx.room.signal`: from one sender, the server, only the newest list has to reach who is behind.
    ctx.hub.room(ctx.room.name).signal(now, exclude=ctx.session)
    return now
