"""The units of the wire, as typed structures; see ``docs/reference/protocol.md`` for each.

Fields that are empty or zero are left out when encoding, as the base protocol does. Application data stays
:class:`msgspec.Raw`, undecoded, until somebody knows its type. A *room* is called *channel* here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, structs

#: No application data was given.
NO_DATA = UNSET

Data = Raw | UnsetType

# JavaScript's exact integers; anything above cannot be an offset or an id (W3).
Id = Annotated[int, Meta(ge=0, lt=2**53)]
Offset = Annotated[int, Meta(ge=0, lt=2**53)]
Limit = Annotated[int, Meta(ge=-1, lt=2**31)]
Epoch = Annotated[str, Meta(max_length=128)]
Key = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(max_length=255)]
LargeId = Annotated[int, Meta(ge=1, lt=2**53)]


#: Fields of units that are credentials.
_SECRET = frozenset({"token", "resume", "session"})


class Unit(Struct, omit_defaults=True):
    """Base of all units. The repr shows no token, no session id, and nothing of what applications say (A5)."""

    def __repr__(self) -> str:
        shown = (f"{name}={_shown(name, value)}" for name, value in structs.asdict(self).items())
        return f"{type(self).__name__}({', '.join(shown)})"


def _shown(name: str, value: object) -> str:
    if isinstance(value, bytes | Raw):
        return f"<{memoryview(value).nbytes} bytes>"
    return "…" if name in _SECRET and value else repr(value)


class Empty(Unit):
    """A command or result without fields."""


# -- commands: client to server -----------------------------------------------------------------


class SubRequest(Unit):
    """Where the client stands in a room it is subscribed to by the server."""

    recover: bool = False
    epoch: Epoch = ""
    offset: Offset = 0
    presence: bool = False
    marks: bool = False


class RtHello(Unit):
    """An rtkit client announces itself; without it nothing rtkit adds is ever sent.

    With *resume* it shows the token of the session that it wants to go on with (C4).
    """

    v: int = 0
    resume: str = ""


class Connect(Unit):
    """The first command of every connection."""

    token: str = ""
    data: Data = UNSET
    name: Name = ""
    version: Name = ""
    subs: dict[str, SubRequest] = {}
    rt: RtHello | None = None


class Subscribe(Unit):
    """Join a room; with *recover*, continue from (epoch, offset); with *rewind*, begin n messages back (H8).

    Bit 2 of *flag* asks to be refused when that is not possible. With *presence* an rtkit client asks who is there,
    and to be told of changes; with *join_leave* one of the base's asks for the changes alone (P2). With *marks* an
    rtkit client asks who has got and read how much (X2). With *type* and *tf* the base's clients ask for kinds of
    rooms, and for filters, that do not exist here.
    """

    channel: str
    token: str = ""
    recover: bool = False
    epoch: Epoch = ""
    offset: Offset = 0
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    data: Data = UNSET
    rewind: Offset = 0
    presence: bool = False
    marks: bool = False
    flag: Offset = 0
    type: Offset = 0
    tf: dict[str, Raw] | None = None


class Unsubscribe(Unit):
    """Leave a room."""

    channel: str


class Publish(Unit):
    """Send a message to a room: to its handler, or straight to its stream in a raw room.

    With *type* and *removed* the base's clients change a map, a kind of room that does not exist here.
    """

    channel: str
    data: Data = UNSET
    key: Key | None = None
    type: Offset = 0
    removed: bool = False


class PresenceCommand(Unit):
    """Ask who is in a room; also for the numbers alone."""

    channel: str


class PresenceUpdate(Unit):
    """Replace what the client says about itself in a room (P1)."""

    channel: str
    meta: Data = UNSET


class Since(Unit):
    """A position on the wire."""

    offset: Offset = 0
    epoch: Epoch = ""


class HistoryCommand(Unit):
    """Ask for a page of a room's history; limit 0 asks for the position alone, -1 for all."""

    channel: str
    limit: Limit = 0
    since: Since | None = None
    reverse: bool = False


class Rpc(Unit):
    """Call a procedure."""

    method: Name
    data: Data = UNSET
    key: Key | None = None


class Refresh(Unit):
    """Show a new token before the identity expires (A3)."""

    token: str = ""


class SubRefresh(Unit):
    """Show a new token for one room."""

    channel: str
    token: str = ""


class Send(Unit):
    """A message to the server outside any room; has no reply."""

    data: Data = UNSET


class SignalBody(Unit):
    """A room message without storage, in both directions (D5). *user* and *client* are set by the hub."""

    channel: str = ""
    event: Name = ""
    data: Data = UNSET
    user: str = ""
    client: str = ""


class Mark(Unit):
    """The user has got (*kind* ``delivered``) or read (``read``) everything up to here (X2)."""

    channel: str
    kind: Literal["delivered", "read"]
    epoch: Epoch = ""
    offset: Offset = 0


class MarksCommand(Unit):
    """Ask for a page of a room's marks: those of users behind *after*, in the order of their names."""

    channel: str
    after: str = ""


class Bye(Unit):
    """The client goes for good: its session is not kept (C3)."""


class Chunk(Unit):
    """A piece of a unit that is too large to go whole (T8), in both directions.

    :ivar of: the large unit's id, which its sender has chosen.
    :ivar n: 0, 1, 2, …
    :ivar data: the slice; base64 on the wire.
    :ivar error: instead of all but *of*: the large unit is refused by its receiver.
    """

    of: LargeId
    n: Offset = 0
    last: bool = False
    data: bytes = b""
    error: ErrorBody | None = None


class Command(Unit):
    """One unit from a client: an id, and one of the methods. ``{}`` is the answer to a ping."""

    id: Id = 0
    connect: Connect | None = None
    subscribe: Subscribe | None = None
    unsubscribe: Unsubscribe | None = None
    publish: Publish | None = None
    presence: PresenceCommand | None = None
    presence_stats: PresenceCommand | None = None
    presence_update: PresenceUpdate | None = None
    history: HistoryCommand | None = None
    rpc: Rpc | None = None
    refresh: Refresh | None = None
    sub_refresh: SubRefresh | None = None
    send: Send | None = None
    ping: Empty | None = None
    signal: SignalBody | None = None
    mark: Mark | None = None
    marks: MarksCommand | None = None
    bye: Bye | None = None
    chunk: Chunk | None = None


# -- replies and pushes: server to client ---------------------------------------------------------


class ErrorBody(Unit):
    """Why a command failed; *code* and *message* are always there."""

    code: int
    message: str
    temporary: bool = False
    retry_after: float = 0.0


class ClientInfo(Unit):
    """Who published, when a client did; who is in a room, and what it says about itself there (*chan_info*)."""

    user: str = ""
    client: str = ""
    chan_info: Data = UNSET


class Publication(Unit):
    """A message of a room; *time* only for rtkit clients."""

    data: Data = UNSET
    offset: Offset = 0
    info: ClientInfo | None = None
    time: float = 0.0


class GapBody(Unit, rename={"start": "from", "end": "to"}):
    """What is missing; see :class:`rtkit.position.Gap`."""

    channel: str = ""
    start: Offset = 0
    end: Offset = 0
    epoch: Epoch = ""
    reason: str = ""


class Limits(Unit):
    """What the client must keep to.

    :ivar unit: bytes of a unit; a larger one goes in chunks (T8).
    :ivar message: bytes of a publication.
    :ivar rate: commands a second; *burst* at once.
    :ivar large: bytes of a unit that goes in chunks.
    :ivar bytes: a second; *surge* at once.
    """

    unit: int = 0
    message: int = 0
    rate: float = 0.0
    burst: float = 0.0
    large: int = 0
    bytes: float = 0.0
    surge: float = 0.0


class RtWelcome(Unit):
    """The server's answer to :class:`RtHello`.

    *resume* is the token for the next connection, good for *grace* seconds after this one is lost; *resumed* says
    that this is the session whose token was shown (C3).
    """

    v: int = 0
    limits: Limits | None = None
    resume: str = ""
    grace: float = 0.0
    resumed: bool = False


class PresentBody(Unit):
    """A client in a room, with what it says about itself; *meta* is missing when that is nothing."""

    user: str
    client: str
    meta: Data = UNSET


class PresenceBody(Unit):
    """Who is in a room, or what has changed (P2).

    :ivar v: the number of this push among those about the room's presence; of a snapshot, that of the last one.
    :ivar members: all that are there. Without it *joins*, *leaves* and *updates* say what has changed.
    :ivar clients: how many are there, and *users*, where they are too many to be listed. Who is there is unknown
        then, until *members* comes.
    """

    v: int = 0
    members: list[PresentBody] | None = None
    joins: list[PresentBody] = []
    leaves: list[PresentBody] = []
    updates: list[PresentBody] = []
    clients: int | None = None
    users: int | None = None


class MarksBody(Unit):
    """How far users have got, and read, in a room: all of it, or what has changed (X2).

    :ivar epoch: of all offsets in here.
    :ivar delivered: by user, the offset up to which they have got everything; likewise *read*.
    :ivar whole: it replaces what was known.
    :ivar more: users behind the last one listed are to be asked for (:class:`MarksCommand`); one's own mark is there
        in any case.
    :ivar user: the client's own user, in the result of ``subscribe``. Its mark stands out of order when there are more.
    """

    epoch: Epoch = ""
    delivered: dict[str, Offset] = {}
    read: dict[str, Offset] = {}
    whole: bool = False
    more: bool = False
    user: str = ""


class SubscribeResult(Unit):
    """A room was joined.

    :ivar signals: how often a second a client may send signals of one event; 0 where that is not said.
    :ivar typing: seconds after which somebody who types, and says nothing more, has stopped; 0 in a room without.
    """

    recoverable: bool = False
    positioned: bool = False
    epoch: Epoch = ""
    offset: Offset = 0
    publications: list[Publication] = []
    recovered: bool = False
    was_recovering: bool = False
    expires: bool = False
    ttl: int = 0
    data: Data = UNSET
    gap: GapBody | None = None
    presence: PresenceBody | None = None
    marks: MarksBody | None = None
    signals: float = 0.0
    typing: float = 0.0


class ConnectResult(Unit):
    """The connection is authenticated."""

    client: str = ""
    version: str = ""
    data: Data = UNSET
    subs: dict[str, SubscribeResult] = {}
    expires: bool = False
    ttl: int = 0
    ping: int = 0
    pong: bool = False
    session: str = ""
    node: str = ""
    rt: RtWelcome | None = None


class PublishResult(Unit):
    """A message was taken; with the handler's acknowledgement, or the position of a plain publish."""

    data: Data = UNSET
    offset: Offset = 0
    epoch: Epoch = ""


class HistoryResult(Unit):
    """A page of history."""

    publications: list[Publication] = []
    epoch: Epoch = ""
    offset: Offset = 0


class PresenceResult(Unit):
    """Who is in a room, by client id."""

    presence: dict[str, ClientInfo] = {}


class PresenceStatsResult(Unit):
    """How many clients and users are in a room."""

    num_clients: int = 0
    num_users: int = 0


class RpcResult(Unit):
    """What the procedure returned."""

    data: Data = UNSET


class RefreshResult(Unit):
    """The identity was renewed."""

    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: int = 0


class SubRefreshResult(Unit):
    """The permission for a room was renewed."""

    expires: bool = False
    ttl: int = 0


class UnsubscribePush(Unit):
    """The server took the client out of a room; both fields are always there."""

    code: int
    reason: str


class SubscribePush(Unit):
    """The server put the client into a room."""

    recoverable: bool = False
    positioned: bool = False
    epoch: Epoch = ""
    offset: Offset = 0
    data: Data = UNSET


class MessagePush(Unit):
    """A message to this session alone."""

    data: Data = UNSET


class Window(Unit):
    """When to come back: a random moment between these, in seconds from now."""

    min: float = 0.0
    max: float = 0.0


class Disconnect(Unit):
    """The connection is about to be closed; *code* and *reason* are always there."""

    code: int
    reason: str
    rt: Window | None = None


class RefreshPush(Unit):
    """The identity's expiry has changed."""

    expires: bool = False
    ttl: int = 0


class PositionPush(Unit):
    """The stream of a room stands here now, in a new epoch (H10)."""

    channel: str = ""
    epoch: Epoch = ""
    offset: Offset = 0


class JoinPush(Unit):
    """A client has come into a room, or has left it: for clients of the base."""

    info: ClientInfo


class Push(Unit):
    """Something the client did not ask for; one field besides *channel* is set."""

    channel: str = ""
    pub: Publication | None = None
    unsubscribe: UnsubscribePush | None = None
    subscribe: SubscribePush | None = None
    message: MessagePush | None = None
    disconnect: Disconnect | None = None
    refresh: RefreshPush | None = None
    position: PositionPush | None = None
    gap: GapBody | None = None
    signal: SignalBody | None = None
    chunk: Chunk | None = None
    join: JoinPush | None = None
    leave: JoinPush | None = None
    presence: PresenceBody | None = None
    marks: MarksBody | None = None


class Reply(Unit):
    """One unit from the server: the reply to a command, a push, or ``{}``, a ping."""

    id: Id = 0
    error: ErrorBody | None = None
    push: Push | None = None
    connect: ConnectResult | None = None
    subscribe: SubscribeResult | None = None
    unsubscribe: Empty | None = None
    publish: PublishResult | None = None
    presence: PresenceResult | None = None
    presence_stats: PresenceStatsResult | None = None
    presence_update: Empty | None = None
    history: HistoryResult | None = None
    rpc: RpcResult | None = None
    refresh: RefreshResult | None = None
    sub_refresh: SubRefreshResult | None = None
    ping: Empty | None = None
    signal: Empty | None = None
    mark: Empty | None = None
    marks: MarksBody | None = None
