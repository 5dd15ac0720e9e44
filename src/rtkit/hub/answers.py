"""Every command is answered exactly once, with its result or with an error (W3, L3).

The text of an error is the application's own (``Reject``) or names the client's fault. Anything else is ``internal``,
with a reference that stands in the log beside the trace.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import codes
from ..errors import Reject, Unavailable, UnknownRoom

if TYPE_CHECKING:
    from .connection import Connection
    from .engine import Engine
    from .table import Family

__all__ = ["answer", "asked_for"]

logger = logging.getLogger("rtkit.handlers")


async def answer(connection: Connection, id: int, func: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run *func*; answer the command with the error it ends in, if it does."""
    try:
        await func(*args)
    except Reject as error:
        connection.error(id, error.code, error.message, retry_after=error.retry_after)
    except Unavailable as error:
        connection.engine.counters.add("unavailable")
        logger.warning("%s", error)
        connection.error(id, codes.INTERNAL, "the broker is not available", retry_after=1.0)
    except Exception as error:
        reference = secrets.token_hex(4)
        session = connection.session
        user = session.identity.user if session is not None else "-"
        logger.exception(
            "unexpected error %s while handling a command of %r", reference, user, exc_info=error
        )
        connection.error(id, codes.INTERNAL, f"internal error (reference {reference})")


def asked_for(engine: Engine, name: str) -> tuple[Family, Mapping[str, str]]:
    """The family and parameters of a room that a client named.

    :raises Reject: when there is none. Its text says how a declared room is spelled that was probably meant, which
        is no news to somebody who named it; it does not say what else is declared.
    """
    try:
        return engine.lookup(name)
    except UnknownRoom as error:
        hint = f"; did you mean {error.meant!r}?" if error.meant is not None else ""
        raise Reject(f"unknown room{hint}", code=codes.UNKNOWN_ROOM) from None
