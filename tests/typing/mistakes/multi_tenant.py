"""Mistakes in a program like ``programs/multi_tenant.py``; both checkers must refuse each marked line."""

# What is unknown because of a mistake would be reported a second time.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from rtkit import Context, Hub, Router
from tests.typing.programs.multi_tenant import (
    RIGHTS,
    Cursor,
    Documents,
    Edit,
    Notice,
    Seat,
    WhoAmI,
    You,
    documents,
    make_hub,
    news,
    tenants,
)


@dataclass
class OtherClaims:
    """Of another application."""

    admin: bool


@tenants.gate  # expect: mypy[arg-type] pyright[reportArgumentType]
async def gate_with_other_claims(ctx: Context[OtherClaims, Any]) -> None: ...


@tenants.gate  # expect: mypy[arg-type] pyright[reportArgumentType]
async def gate_that_answers(ctx: Context[Seat, Any]) -> bool:
    return True  # nobody looks at it: a gate refuses by raising


@documents.on(Edit)
async def edit(ctx: Documents, message: Edit) -> None:
    RIGHTS["admin"]  # expect: mypy[index] pyright[reportArgumentType]
    ctx.room.signal(Cursor(1), exclude=ctx.user)  # expect: mypy[arg-type] pyright[reportArgumentType]
    await ctx.room.publish(Notice(text="x"))  # expect: mypy[arg-type] pyright[reportArgumentType]
    ctx.room.remove("eve")  # expect: mypy[call-arg,unused-coroutine] pyright[reportCallIssue]
    ctx.session.state.greeted = True  # expect: mypy[attr-defined] pyright[reportAttributeAccessIssue]
    ctx.session.spawn(ctx.room.name)  # expect: mypy[arg-type] pyright[reportArgumentType]
    ctx.room = ctx.room  # expect: mypy[misc] pyright[reportAttributeAccessIssue]


@tenants.rpc(WhoAmI)  # expect: mypy[arg-type] pyright[reportArgumentType]
async def not_its_parameters(ctx: Context[Seat, Any], params: Edit) -> You:
    return You("", "")


@tenants.middleware  # expect: mypy[arg-type] pyright[reportArgumentType]
async def middleware_that_cannot_go_on(ctx: Context[Seat, Any]) -> Any: ...


@tenants.on_error  # expect: mypy[arg-type] pyright[reportArgumentType]
async def middleware_as_error_hook(
    ctx: Context[Seat, Any], call_next: Callable[[], Awaitable[Any]]
) -> None: ...


async def use(hub: Hub[Seat]) -> None:
    # expect: mypy[typeddict-item,typeddict-unknown-key] pyright[reportCallIssue]
    await news.room().publish(Notice(txt="x"))
    await hub.user("eve").revoke()  # expect: mypy[call-arg] pyright[reportCallIssue]
    hub.include(Router[OtherClaims]())  # expect: mypy[arg-type] pyright[reportArgumentType]
    other: Hub[OtherClaims] = make_hub()  # expect: mypy[assignment] pyright[reportAssignmentType]
    await other.aclose()
