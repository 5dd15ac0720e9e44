"""The commands of the server HTTP API: what they take, what they do to a hub, what they answer.

They are those of Centrifugo's server API, so that what talks to that can talk to a hub. Two rules:

- Whoever may call them is trusted as the application itself is: no grant is asked for, no handler runs.
- What a hub cannot do is refused with 108, never left out in silence. An option that only makes things faster is
  no such thing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct, UnsetType

from .. import codes
from ..errors import BadUnit, Reject
from ..hub import Hub, Room
from ..hub.feature import client_info
from ..identity import Identity
from ..position import Position
from ..schema import Schema
from ..wire import Empty, ErrorBody, HistoryResult, PublishResult, dumps, loads
from . import http_units as units
from .http_outcomes import ABREAST, abreast, outcome

__all__ = [
    "COMMANDS",
    "MAX_CHANNELS",
    "MAX_COMMANDS",
    "Command",
    "attempt",
    "batch",
    "decode_batch",
    "decode_drain",
]

R = TypeVar("R", bound=Struct)

#: Commands of one batch at the most.
MAX_COMMANDS: Final = 1_000
#: Channels of one broadcast, and of an answer to ``channels``, at the most.
MAX_CHANNELS: Final = 10_000
#: Bytes of answers in one batch, after which nothing more is read for it.
_ANSWERS: Final = 4 * 1024 * 1024
_REASON: Final = 123  # bytes that a close frame has room for
_KEY: Final = 128  # characters of an idempotency key, as in commands of clients

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


# -- what they do -----------------------------------------------------------------------------------------


def _room(hub: Hub[Any], channel: str | None) -> Room[Any]:
    if not channel:
        raise BadUnit("channel is missing")
    return hub.room(channel)


def _user(request: units.UserRequest) -> str:
    """Whom it is about; raises Reject for nobody, and for a session."""
    if not request.user:
        raise BadUnit("user is missing")
    if request.session:
        raise Reject(
            "session is not available: it is about all connections of a user, or that of one client",
            code=codes.NOT_AVAILABLE,
        )
    try:
        return Identity(request.user).user
    except ValueError as error:
        raise BadUnit(str(error)) from None


def _check_size(data: Raw, most: int) -> None:
    if memoryview(data).nbytes > most:
        raise Reject(f"a message has at most {most} bytes", code=codes.LIMIT_EXCEEDED)


class _Outgoing:
    """A message that is checked, and encoded once for all rooms that publish the same types."""

    def __init__(self, hub: Hub[Any], request: units.MessageRequest) -> None:
        if request.b64data:
            raise Reject("b64data is not available: messages are JSON", code=codes.NOT_AVAILABLE)
        if request.tags:
            raise Reject("tags are not available", code=codes.NOT_AVAILABLE)
        if request.version is not None and request.version > 0:
            raise Reject("version is not available", code=codes.NOT_AVAILABLE)
        if isinstance(request.data, UnsetType):
            raise BadUnit("data is missing")
        _check_size(request.data, hub.engine.max_publication)
        key = request.idempotency_key or ""
        if len(key) > _KEY or _CONTROL.search(key):
            raise BadUnit(f"an idempotency_key has at most {_KEY} characters, and no control characters")
        self._hub = hub
        self._data = request.data
        self._key = key or None
        self._skip_history = bool(request.skip_history)
        self._encoded: dict[Schema, bytes | BadUnit] = {}

    def _for(self, schema: Schema) -> bytes:
        """As the room's members will see it: what is not of the room's types is refused (api 4)."""
        found = self._encoded.get(schema)
        if found is None:
            try:
                found = schema.encode(schema.decode(self._data))
            except BadUnit as error:
                known = "" if schema.raw else f"; this channel has {', '.join(schema.names)}"
                found = BadUnit(f"data: {error.message}{known}")
            self._encoded[schema] = found
        if isinstance(found, BadUnit):
            raise found
        return found

    async def publish(self, channel: str | None) -> PublishResult:
        room = _room(self._hub, channel)
        family, _ = self._hub.engine.lookup(room.name)
        _check_size(self._data, family.max_publication or self._hub.limits.max_publication)
        data = self._for(family.schema)
        if self._skip_history and family.history is not None:
            raise Reject(
                "skip_history is not available: every message of this channel is in its history",
                code=codes.NOT_AVAILABLE,
            )
        published = await room.publish_raw(data, key=self._key)
        if published.position is None:
            return PublishResult()
        return PublishResult(epoch=published.position.epoch, offset=published.position.offset)


async def _publish(hub: Hub[Any], request: units.PublishRequest) -> PublishResult:
    return await _Outgoing(hub, request).publish(request.channel)


async def _broadcast(hub: Hub[Any], request: units.BroadcastRequest) -> units.BroadcastResult:
    outgoing = _Outgoing(hub, request)
    if not request.channels:
        raise BadUnit("channels are missing")
    if len(request.channels) > MAX_CHANNELS:
        raise Reject(f"a broadcast has at most {MAX_CHANNELS} channels", code=codes.LIMIT_EXCEEDED)

    async def publish(channel: str) -> Raw:
        found = await outcome(outgoing.publish(channel))
        return Raw(dumps({"error" if isinstance(found, ErrorBody) else "result": found}))

    return units.BroadcastResult(await abreast(hub, request.channels, publish))


async def _history(hub: Hub[Any], request: units.HistoryRequest) -> HistoryResult:
    room = _room(hub, request.channel)
    engine = hub.engine
    family, _ = engine.lookup(room.name)
    if family.history is None:
        raise Reject("this channel keeps no history", code=codes.NOT_AVAILABLE)
    most = engine.limits.history_page
    limit = request.limit or 0
    limit = most if limit < 0 else min(limit, most)
    since = Position(request.since.epoch, request.since.offset) if request.since is not None else None
    if since is not None and not since.epoch:
        # Of the present stream, whichever that is, as for clients.
        top, _ = await engine.read_history(room.name, family, since=None, limit=0, reverse=False, rt=False)
        since = Position(top.epoch, since.offset)
    reverse = bool(request.reverse)
    page, publications = await engine.read_history(
        room.name, family, since=since, limit=limit, reverse=reverse, rt=False
    )
    if page.lost is not None and not reverse:
        raise Reject("the position cannot be recovered", code=codes.UNRECOVERABLE)
    return HistoryResult(publications=publications, epoch=page.epoch, offset=page.top)


async def _history_remove(hub: Hub[Any], request: units.ChannelRequest) -> Empty:
    await _room(hub, request.channel).clear()
    return Empty()


async def _presence(hub: Hub[Any], request: units.ChannelRequest) -> units.PresenceResult:
    members = await _room(hub, request.channel).presence()
    return units.PresenceResult({each.client: client_info(each) for each in members})


async def _presence_stats(hub: Hub[Any], request: units.ChannelRequest) -> units.PresenceStatsResult:
    found = await _room(hub, request.channel).presence_stats()
    return units.PresenceStatsResult(found.clients, found.users)


async def _unsubscribe(hub: Hub[Any], request: units.UnsubscribeRequest) -> units.ActResult:
    user, room = _user(request), _room(hub, request.channel)
    reached = await room.remove(user, reason="unsubscribed by the server", client=request.client or "")
    return units.ActResult(reached.silent)


async def _disconnect(hub: Hub[Any], request: units.DisconnectRequest) -> units.ActResult:
    user, code, reason = _user(request), codes.CLOSED_FOR_GOOD, ""
    if request.whitelist:
        raise Reject("a whitelist is not available", code=codes.NOT_AVAILABLE)
    if request.disconnect is not None:
        code, reason = request.disconnect.code or 0, request.disconnect.reason or ""
    if len(reason.encode()) > _REASON:
        raise BadUnit(f"a reason has at most {_REASON} bytes")
    try:
        reached = await hub.user(user).close(code=code, reason=reason, client=request.client or "")
    except ValueError as error:
        raise BadUnit(str(error)) from None
    return units.ActResult(reached.silent)


async def _refresh(hub: Hub[Any], request: units.RefreshRequest) -> units.ActResult:
    user = _user(request)
    info = b"null" if isinstance(request.info, UnsetType) else bytes(request.info)
    if request.expire_at or info != b"null":
        raise Reject(
            "expire_at and info are not available: what holds, and until when, is for authenticate to say",
            code=codes.NOT_AVAILABLE,
        )
    client = request.client or ""
    if request.expired:
        reached = await hub.user(user).close(code=codes.EXPIRED_CLOSE, client=client)
    else:
        reached = await hub.user(user).refresh(client=client)
    return units.ActResult(reached.silent)


async def _subscribe(hub: Hub[Any], request: units.NoFields) -> Empty:
    raise Reject(
        "subscribe is not available: who is put into which channel is for the hub's auto_join to say",
        code=codes.NOT_AVAILABLE,
    )


async def _channels(hub: Hub[Any], request: units.ChannelsRequest) -> units.ChannelsResult:
    pattern = request.pattern or ""
    if len(pattern) > 255 or "{" in pattern or "\\" in pattern:
        raise BadUnit("a pattern has at most 255 characters: *, ?, […] and those that stand for themselves")
    found: dict[str, units.ChannelInfo] = {}
    for index, room in enumerate(list(hub.engine.rooms.values())):
        if index % 1_000 == 999:
            await asyncio.sleep(0)
        members = len(room.live) + len(room.outside)
        if not members or (pattern and not fnmatchcase(room.name, pattern)):
            continue
        if len(found) == MAX_CHANNELS:
            raise Reject(
                f"more than {MAX_CHANNELS} channels; ask for fewer with a pattern", code=codes.LIMIT_EXCEEDED
            )
        found[room.name] = units.ChannelInfo(members)
    return units.ChannelsResult(found)


async def _info(hub: Hub[Any], request: units.NoFields) -> units.InfoResult:
    found = await hub.nodes()
    nodes = [
        units.Node(
            uid=each.id,
            name=each.id,
            version=each.version,
            num_clients=each.sessions,
            num_users=each.users,
            num_subs=each.members,
            num_channels=each.rooms,
            uptime=int(each.uptime),
        )
        for each in found.nodes
    ]
    return units.InfoResult(nodes=nodes, silent=found.silent)


# -- one, and many ----------------------------------------------------------------------------------------


class Command(Generic[R]):
    """A command: how its request is decoded, and what it does.

    :ivar reads: its answer may be large, and it changes nothing.
    """

    __slots__ = ("_decoder", "func", "reads")

    def __init__(
        self, request: type[R], func: Callable[[Hub[Any], R], Awaitable[Struct]], *, reads: bool = False
    ) -> None:
        self._decoder = msgspec.json.Decoder(request)
        self.func = func
        self.reads = reads

    def decode(self, body: bytes) -> R:
        """The request; raises BadUnit for a body that is none."""
        return loads(body, self._decoder)


COMMANDS: Final[dict[str, Command[Any]]] = {
    "publish": Command(units.PublishRequest, _publish),
    "broadcast": Command(units.BroadcastRequest, _broadcast),
    "subscribe": Command(units.NoFields, _subscribe),
    "unsubscribe": Command(units.UnsubscribeRequest, _unsubscribe),
    "disconnect": Command(units.DisconnectRequest, _disconnect),
    "refresh": Command(units.RefreshRequest, _refresh),
    "history": Command(units.HistoryRequest, _history, reads=True),
    "history_remove": Command(units.ChannelRequest, _history_remove),
    "presence": Command(units.ChannelRequest, _presence, reads=True),
    "presence_stats": Command(units.ChannelRequest, _presence_stats),
    "channels": Command(units.ChannelsRequest, _channels, reads=True),
    "info": Command(units.NoFields, _info),
}


_batch: Final = msgspec.json.Decoder(units.BatchRequest)


_drain: Final = msgspec.json.Decoder(units.DrainRequest)


def decode_drain(body: bytes) -> units.DrainRequest:
    """How to drain; raises BadUnit for a body that does not say. None at all is as good as ``{}``."""
    return loads(body, _drain) if body.strip() else units.DrainRequest()


def decode_batch(body: bytes) -> units.BatchRequest:
    """A batch; raises BadUnit for a body that is none, or has too many commands."""
    request = loads(body, _batch)
    if len(request.commands or ()) > MAX_COMMANDS:
        raise BadUnit(f"a batch has at most {MAX_COMMANDS} commands")
    return request


async def attempt(hub: Hub[Any], name: str, request: Any) -> Struct | ErrorBody:
    """Run a command: its result, or the error that the caller is told. Never raises an error."""
    return await outcome(COMMANDS[name].func(hub, request))


async def batch(hub: Hub[Any], request: units.BatchRequest) -> list[Raw]:
    """Run several: what came of each, as it stands among the ``replies``.

    :raises PublishUnknown: when the hub closes meanwhile.
    """
    size = 0

    async def run(command: units.OneOfBatch | None) -> Raw:
        nonlocal size
        name, found = await _one_of_batch(hub, command, too_much=size > _ANSWERS)
        reply = Raw(dumps({"error" if isinstance(found, ErrorBody) else name: found}))
        size += len(reply)
        return reply

    return await abreast(hub, request.commands or (), run, width=ABREAST if request.parallel else 1)


async def _one_of_batch(
    hub: Hub[Any], command: units.OneOfBatch | None, *, too_much: bool
) -> tuple[str, Struct | ErrorBody]:
    if command is None:
        return "", ErrorBody(codes.BAD_REQUEST, "a command is null")
    for name, known in COMMANDS.items():
        request = getattr(command, name)
        if request is not None:
            if too_much and known.reads:
                return name, ErrorBody(codes.LIMIT_EXCEEDED, "the answer to this batch has become too large")
            return name, await attempt(hub, name, request)
    return "", ErrorBody(codes.UNKNOWN_METHOD, "unknown command")
