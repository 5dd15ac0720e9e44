"""Taking away what dead nodes have left behind (P3).

A life of a node is dead when it has entries somewhere, and its node holds no lease, or holds it under another life.
The list of lives is read before the leases: a node takes its lease before it stands in the list, so that one which is
in the list and has no lease afterwards has lost it. And nothing is concluded before the broker was within reach for
a full lease (:attr:`rtkit.hub.lease.NodeLease.may_reap`).

One node claims a dead life for itself, so that not all do the same work; should it die over it, the claim runs out.
That it is done twice all the same would do no harm: a revision takes away only what the dead life still has, and who
comes second finds nothing. So everybody sees each of its clients leave, once.

A failover may bring back entries that were taken away already, and the index may lose its rooms behind them. So the
life is over only when the list of lives is in the epoch then that it was in before; else it is put down again, whole.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import TYPE_CHECKING, Final

from ...brokers import StateBroker
from ...errors import BadUnit
from .entries import (
    LIVES,
    LIVES_TOPIC,
    REAPING,
    decode_entry,
    encode_notice,
    index_of,
    key_of,
    life_of,
    topic_of,
)
from .ledger import KEPT

if TYPE_CHECKING:
    from ...hub.engine import Engine

__all__ = ["reap"]

logger = logging.getLogger("rtkit.presence")

_AT_ONCE: Final = 256
#: Revisions of one room that find something else than what was read, before it is left to the next check.
_TRIES: Final = 8
#: Rooms at one time; after them the claim is renewed.
_ROOMS: Final = 32


async def reap(engine: Engine, broker: StateBroker) -> None:
    """Look for dead lives, and take away their entries.

    :raises Unavailable: when the broker cannot be reached. What is left is found the next time.
    """
    if not engine.lease.may_reap:
        return
    lives = await broker.entries(LIVES)
    holders = await engine.lease.incarnations(fresh=True)
    if holders is None or not engine.lease.may_reap:
        return
    alive = {life_of(node, incarnation) for node, incarnation in holders.items()}
    # Our own earlier lives are dead like any other. That this one is not in the list does not make it so.
    for life in sorted(lives.keys() - alive - {life_of(engine.node_id, engine.lease.incarnation)}):
        if await broker.put(REAPING, life, engine.node_id.encode(), ttl=engine.lease.seconds, expected=None):
            await _reap_life(engine, broker, life)


async def _reap_life(engine: Engine, broker: StateBroker, life: str) -> None:
    (before,) = await broker.positions([LIVES])
    rooms = await broker.entries(index_of(life))
    logger.info("life %s is over; it had clients in %d rooms", life, len(rooms))
    names = iter(rooms)
    while some := list(islice(names, _ROOMS)):
        each = (_reap_room(engine, broker, life, name) for name in some)
        results = await asyncio.gather(*each, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if not all(results):
            return
        await broker.renew(REAPING, [life], ttl=engine.lease.seconds)
    (after,) = await broker.positions([LIVES])
    if after.epoch == before.epoch:
        await broker.remove(LIVES, life)
    else:
        for name in rooms:
            await broker.put(index_of(life), name, b"", ttl=KEPT)
        await broker.revise(LIVES, {life: b""}, ttl=KEPT, expected={}, topic=LIVES_TOPIC, payload=b"{}")
    await broker.remove(REAPING, life)


async def _reap_room(engine: Engine, broker: StateBroker, life: str, name: str) -> bool:
    """Take a dead life's entries out of one room; whether none is left."""
    key = key_of(name)
    for _ in range(_TRIES):
        left: dict[str, bytes] = {}
        for client, value in (await broker.entries(key)).items():
            try:
                found = decode_entry(client, value, engine.versions.formats)
            except BadUnit as error:
                engine.versions.unreadable(f"room {name!r}: presence of {client!r}", error)
                continue
            if life_of(found.node, found.incarnation) == life:
                left[client] = value
        if not left:
            await broker.remove(index_of(life), name)
            return True
        clients = iter(left)
        while some := list(islice(clients, _AT_ONCE)):
            gone: dict[str, bytes | None] = dict.fromkeys(some)
            done = await broker.revise(
                key,
                gone,
                ttl=KEPT,
                expected={client: left[client] for client in some},
                topic=topic_of(name),
                payload=encode_notice(gone, engine.versions.writes),
            )
            if done is None:
                break  # somebody was faster with some of them
            engine.counters.add("reaped", amount=len(some))
    return False
