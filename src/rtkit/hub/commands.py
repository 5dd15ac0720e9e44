"""Which command of the wire does what; see ``docs/reference/protocol.md``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from .. import codes
from ..wire import (
    Command,
    Empty,
    Reply,
)
from . import calls, greeting, joins
from .answers import answer

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["handle", "methods_of"]

_METHODS = (
    "connect",
    "subscribe",
    "unsubscribe",
    "publish",
    "history",
    "rpc",
    "send",
    "signal",
    "mark",
    "marks",
    "sub_refresh",
    "ping",
    "bye",
    "presence",
    "presence_stats",
    "presence_update",
    "refresh",
)


def methods_of(command: Command) -> list[str]:
    """The methods a command names: one, if it is well-formed."""
    return [name for name in _METHODS if getattr(command, name) is not None]


async def handle(connection: Connection, command: Command) -> None:
    """Do what a command says, and answer it."""
    methods = methods_of(command)
    if len(methods) != 1:
        problem = "unknown method" if not methods else f"one method a command, not {' and '.join(methods)}"
        connection.error(command.id, codes.BAD_REQUEST if methods else codes.UNKNOWN_METHOD, problem)
        return
    (method,) = methods
    if connection.session is None and method != "connect":
        return  # connect failed before it; the connection is closing
    if method == "refresh":
        connection.refresh(command)  # it came while connect was under way
        return
    connection.engine.counters.add("commands", method)
    await answer(connection, command.id, _HANDLERS[method], connection, command)


async def _bye(connection: Connection, command: Command) -> None:
    connection.close(codes.WS_NORMAL, "bye")


async def _ping(connection: Connection, command: Command) -> None:
    connection.reply(Reply(id=command.id, ping=Empty()))


_HANDLERS: dict[str, Callable[[Connection, Command], Awaitable[None]]] = {
    "connect": greeting.connect,
    "subscribe": joins.subscribe,
    "unsubscribe": joins.unsubscribe,
    "publish": calls.publish,
    "history": calls.history,
    "rpc": calls.rpc,
    "send": calls.send,
    "signal": calls.signal,
    "mark": calls.mark,
    "marks": calls.marks,
    "presence": calls.presence,
    "presence_stats": calls.presence_stats,
    "presence_update": calls.presence_update,
    "sub_refresh": joins.sub_refresh,
    "ping": _ping,
    "bye": _bye,
}
