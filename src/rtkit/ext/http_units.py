"""What the commands of the server HTTP API take and answer; see ``docs/reference/http-api.md``.

Every field of a request may be missing, or ``null``, which is the same: that is how many languages write what
they leave out. What has to be there is asked for when the command runs, so that it is error 107.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ..wire import ClientInfo, Since

__all__ = [
    "ActResult",
    "BatchRequest",
    "BroadcastRequest",
    "BroadcastResult",
    "ChannelInfo",
    "ChannelRequest",
    "ChannelsRequest",
    "ChannelsResult",
    "DisconnectRequest",
    "DrainRequest",
    "Goodbye",
    "HistoryRequest",
    "InfoResult",
    "MessageRequest",
    "NoFields",
    "Node",
    "OneOfBatch",
    "PresenceResult",
    "PresenceStatsResult",
    "PublishRequest",
    "RefreshRequest",
    "UnsubscribeRequest",
    "UserRequest",
]

Int32 = Annotated[int, Meta(ge=-(2**31), lt=2**31)]


# -- what they take ---------------------------------------------------------------------------------------


class MessageRequest(Struct):
    """What is published, and how; *data* has to be there."""

    data: Raw | UnsetType = UNSET
    b64data: str | None = None
    tags: dict[str, str] | None = None
    skip_history: bool | None = None
    idempotency_key: str | None = None
    version: int | None = None


class PublishRequest(MessageRequest):
    """One message to one room."""

    channel: str | None = None


class BroadcastRequest(MessageRequest):
    """The same message to many rooms."""

    channels: list[str] | None = None


class HistoryRequest(Struct):
    """A page of a room's history."""

    channel: str | None = None
    limit: Int32 | None = None
    since: Since | None = None
    reverse: bool | None = None


class ChannelRequest(Struct):
    """Something about one room."""

    channel: str | None = None


class UserRequest(Struct):
    """Whom it is about; *user* has to be there, with *client* or without."""

    user: str | None = None
    client: str | None = None
    session: str | None = None


class UnsubscribeRequest(UserRequest):
    """Take a user, or one client of theirs, out of a room."""

    channel: str | None = None


class Goodbye(Struct):
    """What a connection is closed with."""

    code: int | None = None
    reason: str | None = None


class DisconnectRequest(UserRequest):
    """Close the connections of a user, or of one client of theirs."""

    whitelist: list[str] | None = None
    disconnect: Goodbye | None = None


class RefreshRequest(UserRequest):
    """Have a user's clients, or one of them, show new tokens."""

    expired: bool | None = None
    expire_at: int | None = None
    info: Raw | UnsetType = UNSET


class ChannelsRequest(Struct):
    """Which rooms are in use."""

    pattern: str | None = None


class DrainRequest(Struct):
    """How this node shall drain."""

    spread: Annotated[float, Meta(ge=0, le=86400)] | None = None
    timeout: Annotated[float, Meta(ge=0, le=86400)] | None = None


class NoFields(Struct):
    """A request whose fields mean nothing."""


# -- what they answer -------------------------------------------------------------------------------------


class BroadcastResult(Struct):
    """What came of each publication, in the order of the channels."""

    responses: list[Raw]


class PresenceResult(Struct):
    """Who is there, by client id."""

    presence: dict[str, ClientInfo]


class PresenceStatsResult(Struct):
    """How many are there."""

    num_clients: int
    num_users: int


class ChannelInfo(Struct):
    """A room in use."""

    num_clients: int


class ChannelsResult(Struct):
    """The rooms of this node."""

    channels: dict[str, ChannelInfo]


class ActResult(Struct, omit_defaults=True):
    """What became of something that is done on all nodes.

    :ivar silent: the ids of nodes that have not answered.
    """

    silent: Sequence[str] = ()


class Node(Struct):
    """One node."""

    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int
    uptime: int


class InfoResult(ActResult, kw_only=True):
    """All nodes that have answered."""

    nodes: list[Node]


# -- several at once ------------------------------------------------------------------------------------


class OneOfBatch(Struct):
    """A command of a batch: the one field that is set, in this order if there are several."""

    publish: PublishRequest | None = None
    broadcast: BroadcastRequest | None = None
    subscribe: NoFields | None = None
    unsubscribe: UnsubscribeRequest | None = None
    disconnect: DisconnectRequest | None = None
    refresh: RefreshRequest | None = None
    history: HistoryRequest | None = None
    history_remove: ChannelRequest | None = None
    presence: ChannelRequest | None = None
    presence_stats: ChannelRequest | None = None
    channels: ChannelsRequest | None = None
    info: NoFields | None = None


class BatchRequest(Struct):
    """Several commands, one after another unless they may run side by side."""

    commands: list[OneOfBatch | None] | None = None
    parallel: bool | None = None
