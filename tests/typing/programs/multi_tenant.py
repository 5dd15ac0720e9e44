"""One hub for many tenants: a gate keeps them apart, roles give rights, everybody is put into the rooms of theirs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, assert_type

import pydantic

from rtkit import Context, Credentials, Gap, Grant, History, Hub, Identity, Reject, Router
from rtkit.client import connect

Role = Literal["reader", "editor", "owner"]
log = logging.getLogger("example.tenants")


@dataclass(frozen=True)
class Seat:
    """A user's place in a tenant."""

    tenant: str
    role: Role


SEATS = {
    "token-ann": ("ann", Seat("acme", "owner")),
    "token-eve": ("eve", Seat("evil", "owner")),
    "token-rob": ("rob", Seat("acme", "reader")),
}


class Edited(pydantic.BaseModel):
    """A document has new text."""

    text: str = pydantic.Field(max_length=100)
    by: str


class Edit(pydantic.BaseModel):
    """A client's wish for that."""

    text: str = pydantic.Field(max_length=100)


class Notice(TypedDict):
    """For everybody in a tenant."""

    text: str


@dataclass
class Cursor:
    """Where somebody's cursor is."""

    line: int


@dataclass
class WhoAmI:
    """A question."""


@dataclass
class You:
    """Its answer."""

    user: str
    tenant: str
    rooms: list[str] = field(default_factory=list[str])


Documents = Context[Seat, Edited]


async def authenticate(credentials: Credentials) -> Identity[Seat]:
    found = SEATS.get(credentials.token or "")
    if found is None:
        raise Reject("no such seat", code=101)
    user, seat = found
    return Identity(user, seat)


# -- below tenant:{tenant}: everything goes through the gate --------------------------------------------

tenants = Router[Seat]("tenant:{tenant}:")


@tenants.gate
async def same_tenant(ctx: Context[Seat, Any]) -> None:
    if ctx.room.params["tenant"] != ctx.claims.tenant:
        raise Reject("that is another tenant's")


def tenant_news(identity: Identity[Seat]) -> list[str]:
    return [f"tenant:{identity.claims.tenant}:news"]


news = tenants.rooms(
    "news", publishes=Notice, history=History(20, ttl=86400), grant=Grant(), auto_join=tenant_news
)
documents = tenants.rooms("doc:{doc}", publishes=Edited, history=History(1000, ttl=86400))

RIGHTS: dict[Role, Grant] = {
    "reader": Grant("history"),
    "editor": Grant("history", "publish", "signal"),
    "owner": Grant("history", "publish", "signal", "presence"),
}


@documents.authorize
async def by_role(ctx: Documents) -> Grant:
    return RIGHTS[ctx.claims.role]


@documents.on(Edit)
async def edit(ctx: Documents, message: Edit) -> int:
    published = await ctx.room.publish(Edited(text=message.text, by=ctx.user))
    return published.position.offset if published.position else 0


@documents.on(Cursor, ordered=False)
async def cursor(ctx: Documents, message: Cursor) -> None:
    ctx.room.signal(message, exclude=ctx.session)


# -- around handlers ------------------------------------------------------------------------------------

main_router = Router[Seat]()
main_router.include(tenants)
calls: list[str] = []


@main_router.middleware
async def trace(ctx: Context[Seat, Any], call_next: Callable[[], Awaitable[Any]]) -> Any:
    calls.append(f"{ctx.claims.tenant}/{ctx.user}")
    return await call_next()


@main_router.on_error
async def report(ctx: Context[Seat, Any], error: Exception) -> None:
    log.error("%s of %s: %r", ctx.user, ctx.claims.tenant, error)


@main_router.rpc(WhoAmI)
async def who_am_i(ctx: Context[Seat, Any], params: WhoAmI) -> You:
    return You(ctx.user, ctx.claims.tenant)


@dataclass
class Settings:
    """What the host has at hand in handlers, as ``ctx.hub.state``."""

    greeting: str = "welcome"


def make_hub() -> Hub[Seat]:
    hub = Hub(authenticate=authenticate, state=Settings())
    hub.include(main_router)

    @hub.on_session_start
    async def greet(ctx: Context[Seat, Any]) -> None:
        ctx.session.state["greeted"] = True
        ctx.session.spawn(say_hello, ctx)

    return hub


async def say_hello(ctx: Context[Seat, Any]) -> None:
    settings: Settings = ctx.hub.state
    ctx.session.send(Notice(text=f"{settings.greeting}, {ctx.user}"))


async def announce(hub: Hub[Seat], tenant: str, text: str) -> None:
    """From an HTTP route, a cron job, the console."""
    await hub.publish(f"tenant:{tenant}:news", Notice(text=text))


async def remove_user(hub: Hub[Seat], tenant: str, doc: str, user: str) -> None:
    await hub.room(f"tenant:{tenant}:doc:{doc}").remove(user, reason="no longer shared", ban=60)


# -- a client -----------------------------------------------------------------------------------------


async def write_document(url: str, token: str, tenant: str, text: str) -> list[str]:
    """Edit a document and read it back."""
    async with connect(url, token=token) as client:
        you = await client.call(WhoAmI(), returns=You)
        assert_type(you, You)
        async with client.join(f"tenant:{tenant}:doc:1", receives=Edited) as room:
            offset = await room.send(Edit(text=text), returns=int)
            assert_type(offset, int)
            lines: list[str] = []
            async for item in room:
                if isinstance(item, Gap):
                    lines.clear()
                    continue
                lines.append(f"{item.data.by}@{you.tenant}: {item.data.text}")
                if item.data.text == text:
                    break
            return lines
