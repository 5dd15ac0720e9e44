"""How the commands of the server HTTP API are run: what becomes of an exception, and many at a time."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from .. import codes
from ..errors import (
    InvalidMessage,
    NotEnabled,
    NotRunning,
    NotSupported,
    PublishUnknown,
    Reject,
    Unavailable,
    UnknownRoom,
)
from ..hub import Hub
from ..wire import ErrorBody

__all__ = ["ABREAST", "abreast", "outcome"]

_log: Final = logging.getLogger("rtkit.ext.http_api")

T = TypeVar("T")
V = TypeVar("V")

#: Commands that wait for the broker at the same time.
ABREAST: Final = 32
#: Commands in one loop turn, where none of them has to wait for anything.
_A_TURN: Final = 64


async def outcome(running: Awaitable[V]) -> V | ErrorBody:
    """What it returns, or else what the caller is told, as in an answer to a client (L3)."""
    try:
        return await running
    except Reject as error:
        return ErrorBody(error.code, error.message)
    except UnknownRoom as error:
        return ErrorBody(codes.UNKNOWN_ROOM, f"unknown channel: {error}")
    except (NotEnabled, NotSupported) as error:
        return ErrorBody(codes.NOT_AVAILABLE, str(error))
    except InvalidMessage as error:
        return ErrorBody(codes.LIMIT_EXCEEDED, str(error))
    except PublishUnknown as error:
        _log.warning("%s", error)
        return ErrorBody(
            codes.INTERNAL, "it may have been published: repeat it, with the same idempotency_key"
        )
    except Unavailable as error:
        _log.warning("%s", error)
        return ErrorBody(codes.INTERNAL, "the broker is not available")
    except NotRunning:
        return ErrorBody(codes.INTERNAL, "the hub is closing")
    except Exception as error:
        reference = secrets.token_hex(4)
        _log.exception("unexpected error %s in the HTTP API", reference, exc_info=error)
        return ErrorBody(codes.INTERNAL, f"internal error (reference {reference})")


async def abreast(
    hub: Hub[Any], items: Sequence[T], func: Callable[[T], Awaitable[V]], *, width: int = ABREAST
) -> list[V]:
    """``func`` of each, in their order, a few of them at a time: a broker that is far away is waited for once.

    :raises PublishUnknown: when the hub closes meanwhile.
    """
    results: list[Any] = [None] * len(items)
    left = iter(enumerate(items))
    width = min(width, len(items))
    stride = _A_TURN // max(1, width)

    async def work() -> None:
        for index, item in left:
            results[index] = await func(item)
            if index % stride == stride - 1:
                await asyncio.sleep(0)

    if width <= 1:
        await work()
        return results
    workers = [hub.engine.task(work) for _ in range(width)]
    try:
        await asyncio.wait(workers)
    finally:
        for worker in workers:
            worker.cancel()
    if any(worker.cancelled() for worker in workers):
        raise PublishUnknown("the hub has closed in the middle of a command")
    return results
