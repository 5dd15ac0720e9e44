"""A chat in FastAPI: signed tokens, rooms with history, a guard, and publishing from an HTTP route."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, assert_type

import fastapi
import jwt
import msgspec

from rtkit import Context, Credentials, Gap, Grant, History, Hub, Identity, Message, Reject, Router
from rtkit.client import connect

SECRET = "at least 32 bytes, from the settings of a real application"


@dataclass(frozen=True)
class Claims:
    """What the token says about a user."""

    name: str
    staff: bool = False


class Say(msgspec.Struct):
    """What a client sends."""

    text: str


class Saved(msgspec.Struct):
    """What it gets back."""

    offset: int


class Said(msgspec.Struct):
    """What everybody gets."""

    text: str
    by: str


class TopicChanged(msgspec.Struct):
    """Likewise, when the staff changes the topic."""

    topic: str


class Welcome(msgspec.Struct):
    """What one gets on joining."""

    topic: str


class Topic(msgspec.Struct):
    """The topic is to be changed."""

    topic: str


Chat = Context[Claims, Said | TopicChanged]


async def authenticate(credentials: Credentials) -> Identity[Claims]:
    try:
        # The types of PyJWT are incomplete where cryptography is not installed.
        token: dict[str, Any] = jwt.decode(  # pyright: ignore[reportUnknownMemberType]
            credentials.token or "", SECRET, algorithms=["HS256"]
        )
    except jwt.InvalidTokenError as error:
        raise Reject("sign in first", code=101) from error
    return Identity(token["sub"], Claims(token["name"], token["staff"]), expires_at=token["exp"])


def sign(user: str, *, staff: bool = False, seconds: float = 3600) -> str:
    claims = {"sub": user, "name": user.title(), "staff": staff, "exp": int(time.time() + seconds)}
    return jwt.encode(claims, SECRET)  # pyright: ignore[reportUnknownMemberType]


# -- the rooms: no hub is needed to declare them ------------------------------------------------------

router = Router[Claims]()
chat = router.rooms("chat:{room}", publishes=(Said, TopicChanged), history=History(100, ttl=3600))
topics: dict[str, str] = {}


@chat.authorize
async def may_join(ctx: Chat) -> Grant:
    if ctx.room.params["room"] == "staff" and not ctx.claims.staff:
        raise Reject("for the staff only")
    return Grant("publish", "history", ttl=300)


@chat.on_join
async def welcome(ctx: Chat) -> Welcome:
    return Welcome(topics.get(ctx.room.name, "anything"))


@chat.on(Say)
async def say(ctx: Chat, message: Say) -> Saved:
    published = await ctx.room.publish(Said(message.text, by=ctx.claims.name))
    assert published.position is not None  # the room has history
    return Saved(published.position.offset)


@chat.on(Topic)
async def change_topic(ctx: Chat, message: Topic) -> None:
    if not ctx.claims.staff:
        raise Reject("only the staff changes the topic", code=403)
    topics[ctx.room.name] = message.topic
    await ctx.room.publish(TopicChanged(message.topic))


hub = Hub(authenticate=authenticate)
hub.include(router)
assert_type(hub, Hub[Claims])

# -- the application ----------------------------------------------------------------------------------

app = fastapi.FastAPI(lifespan=hub.lifespan)
app.mount("/rt", hub)


@app.post("/login")
async def login(user: str) -> dict[str, str]:
    return {"token": sign(user, staff=user == "root")}


@app.post("/announce/{room}")
async def announce(room: str, text: str) -> dict[str, int]:
    published = await chat.room(room=room).publish(Said(text, by="the server"))
    return {"offset": published.position.offset if published.position else 0}


@app.get("/log/{room}")
async def log(room: str) -> list[str]:
    page = await chat.room(room=room).history(limit=20, reverse=True)
    return [message.data.text for message in page.messages if isinstance(message.data, Said)]


# -- a client in Python -------------------------------------------------------------------------------


async def visit(url: str, token: str, *, until: str) -> list[str]:
    """Say hello in the lobby, and listen until somebody says *until*."""
    lines: list[str] = []
    async with (
        connect(f"{url}/rt", token=token) as client,
        client.join("chat:lobby", receives=(Said, TopicChanged)) as room,
    ):
        saved = await room.send(Say("hello"), returns=Saved)
        assert_type(saved, Saved)
        async for item in room:
            assert_type(item, Message[Said | TopicChanged] | Gap)
            if isinstance(item, Gap):
                lines.append("(something is missing)")
                continue
            match item.data:
                case TopicChanged(topic=topic):
                    lines.append(f"topic: {topic}")
                case Said(text=text, by=by):
                    lines.append(f"{by}: {text}")
                    if text == until:
                        break
    return lines
