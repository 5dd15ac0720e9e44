"""Mistakes in a program like ``programs/fastapi_chat.py``; both checkers must refuse each marked line."""

# What is unknown because of a mistake would be reported a second time.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

from rtkit import Credentials, Grant, History, Hub, Identity, Router
from rtkit.client import connect
from tests.typing.programs.fastapi_chat import Chat, Claims, Said, Saved, Say, Topic, TopicChanged, chat


@dataclass
class Shouted:
    """Declared nowhere."""

    text: str


@chat.on(Say)
async def wrong_event(ctx: Chat, message: Say) -> None:
    # A client's message is not what the room publishes.
    await ctx.room.publish(message)  # expect: mypy[arg-type] pyright[reportArgumentType]
    await ctx.room.publish(Shouted("hey"))  # expect: mypy[arg-type] pyright[reportArgumentType]
    await ctx.room.publish("hey")  # expect: mypy[arg-type] pyright[reportArgumentType]
    await ctx.room.publish(Said("hey", by=1))  # expect: mypy[arg-type] pyright[reportArgumentType]


@chat.on(Topic)
async def wrong_claims(ctx: Chat, message: Topic) -> None:
    if ctx.claims.admin:  # expect: mypy[attr-defined] pyright[reportAttributeAccessIssue]
        await ctx.room.publish(TopicChanged(message.topic))
    # expect: mypy[attr-defined] pyright[reportAttributeAccessIssue]
    ctx.session.identity.claims.staff.upper()


@chat.on(Say)  # expect: mypy[arg-type] pyright[reportArgumentType]
async def handler_of_another_message(ctx: Chat, message: Topic) -> None: ...


@chat.on(Say)  # expect: mypy[arg-type] pyright[reportArgumentType]
def handler_that_is_not_async(ctx: Chat, message: Say) -> Saved:
    return Saved(1)


@chat.on(Say)  # expect: mypy[arg-type] pyright[reportArgumentType]
async def handler_without_the_message(ctx: Chat) -> None: ...


@chat.authorize  # expect: mypy[arg-type] pyright[reportArgumentType]
async def a_bool_is_no_grant(ctx: Chat) -> bool:
    return ctx.claims.staff


@chat.authorize
async def a_right_that_is_none(ctx: Chat) -> Grant:
    return Grant("write")  # expect: mypy[arg-type] pyright[reportArgumentType]


@chat.on(Say)
async def position_may_be_none(ctx: Chat, message: Say) -> Saved:
    published = await ctx.room.publish(Said(message.text, by=ctx.user))
    # Without history there is none.
    return Saved(published.position.offset)  # expect: mypy[union-attr] pyright[reportOptionalMemberAccess]


def plain_authenticate(credentials: Credentials) -> Identity[Claims]:
    raise NotImplementedError


async def authenticate_without_identity(credentials: Credentials) -> str | None:
    return credentials.token


Hub(authenticate=plain_authenticate)  # expect: mypy[arg-type] pyright[reportArgumentType]
Hub(authenticate=authenticate_without_identity)  # expect: mypy[arg-type] pyright[reportArgumentType]
History(100)  # expect: mypy[call-arg] pyright[reportCallIssue]


async def other_claims(credentials: Credentials) -> Identity[int]:
    return Identity("ann", 1)


hub = Hub(authenticate=other_claims)
hub.include(Router[Claims]())  # expect: mypy[arg-type] pyright[reportArgumentType]


async def visit(url: str) -> None:
    await chat.room(room=1).publish(Said("x", by="y"))  # expect: mypy[arg-type] pyright[reportArgumentType]
    async with connect(url) as client, client.join("chat:lobby", receives=(Said, TopicChanged)) as room:
        saved = await room.send(Say("hello"), returns=Saved)
        _ = saved.position  # expect: mypy[attr-defined] pyright[reportAttributeAccessIssue]
        text: str = saved  # expect: mypy[assignment] pyright[reportAssignmentType]
        async for item in room:
            # It may be a gap.
            text += item.data.text  # expect: mypy[union-attr] pyright[reportAttributeAccessIssue]
        for item in room:  # expect: mypy[attr-defined] pyright[reportGeneralTypeIssues]
            text = str(item)
        # expect: mypy[call-overload] pyright[reportArgumentType]
        await room.send(Say("hello"), returns="Saved")
        # expect: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
        client.join("chat:other", receives=Said("x", by="y"))
        # expect: mypy[unused-coroutine] pyright[reportUnusedCoroutine]
        room.send(Say("hello"))
    connect(url, token=7)  # expect: mypy[arg-type] pyright[reportArgumentType]
