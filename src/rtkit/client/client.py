"""A connection to a hub that comes back by itself: the way in, and what the application holds."""

from __future__ import annotations

import logging
import random as _random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, TypedDict, TypeVar, Unpack, cast, overload
from weakref import WeakKeyDictionary

from msgspec import UNSET, Raw, UnsetType

from .. import codes
from ..clock import Clock
from ..errors import BadUnit, ConnectionClosed, NotRunning, UsageError
from ..position import Position
from ..primitives.backoff import Backoff
from ..primitives.clocks import timeout
from ..primitives.tasks import Tasks
from ..schema import encode_value
from ..wire import MessagePush, Rpc, check_room_name
from .bell import Bell
from .core import Core
from .engine import Engine
from .feeds import Feed
from .options import Policy, is_loopback, without_secrets
from .payloads import IGNORED, Reader, is_utf8, pack_call, unpack_answer
from .room import RoomClient, checked_key
from .roomstate import RoomState
from .supervisor import Supervisor
from .tokens import TokenSource
from .transport import Dialer, Opener
from .values import ClientStatistics, State
from .websocket import version

__all__ = ["Client", "JoinOptions"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
R = TypeVar("R")

logger: Final = logging.getLogger("rtkit.client")


class JoinOptions(TypedDict, total=False):
    """The options of :meth:`Client.join`, which tells their meaning."""

    joined: type[Any]
    data: Any
    since: Position | None
    rewind: int
    echo: bool
    max_queue: int
    presence: bool
    receipts: bool


class Client:
    """A client of a hub. Made by :func:`connect`; works inside ``async with``, once.

    It reconnects after every loss, joins its rooms again, recovers what was missed and sends again what was not
    answered (K2). It gives up only when the server says that coming back is pointless; then :attr:`state` is
    ``closed`` and everything raises :exc:`~rtkit.errors.ConnectionClosed`.
    """

    def __init__(
        self,
        url: str,
        *,
        source: TokenSource,
        data: Raw | UnsetType,
        headers: Mapping[str, str],
        wait: bool,
        connect_timeout: float | None,
        max_offline: int,
        policy: Policy,
        dialer: Dialer | Opener,
        clock: Clock,
        random: _random.Random,
    ) -> None:
        self.url: Final = url
        self._wait = wait
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._state_bell = Bell()
        self._callbacks: dict[object, Callable[[State], object]] = {}
        self._messages: WeakKeyDictionary[Feed[Any], Reader] = WeakKeyDictionary()
        self._tasks = Tasks(name="rtkit client", clock=clock)

        def new_backoff() -> Backoff:
            return Backoff(minimum=policy.min_delay, maximum=policy.max_delay, random=random)

        bell = Bell()
        engine = Engine(
            wake=bell.ring,
            new_backoff=new_backoff,
            max_offline=max_offline,
            max_offline_bytes=policy.max_offline_bytes,
            resend_within=policy.resend_within,
        )
        engine.on_message = self._message
        self._engine = engine
        self._core = Core(engine, bell, clock, random)
        self._core.refuse = self._refuse
        self._supervisor = Supervisor(
            url=url,
            source=source,
            data=data,
            headers=headers,
            version=version(),
            dialer=dialer,
            engine=engine,
            bell=bell,
            policy=policy,
            clock=clock,
            tasks=self._tasks,
            new_backoff=new_backoff,
            changed=self._changed,
        )
        if source and url.startswith("ws://") and not is_loopback(url):
            logger.warning("%s: the token travels unencrypted; use wss://", without_secrets(url))

    # -- life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Client:
        """Start; unless ``wait=False``, wait for the first connection.

        :raises ConnectionClosed: the server will not have us, or is not there for good.
        :raises TimeoutError: not connected within ``connect_timeout``.
        :raises NotRunning: it was entered before.
        """
        if self.state is not State.IDLE or self._core.entered:
            raise NotRunning("a client can be entered once; call connect() again")
        self._core.enter()
        self._supervisor.start()
        _ = self._tasks.spawn(self._supervisor.run, name="rtkit client: connect")
        if self._wait:
            try:
                await self.wait_state(State.CONNECTED, timeout=self._connect_timeout)
            except BaseException:
                await self.aclose()
                raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Say goodbye and close. Idempotent, and bounded in time.

        Commands without an answer fail: with ``PublishUnknown`` if they were sent, else with ``ConnectionClosed``.
        Iterating rooms ends. Cancellation: safe; the connection is closed without a goodbye.
        """
        self._supervisor.finish(codes.WS_NORMAL, "closed by this client", by_us=True)
        if not self._core.entered:
            return
        try:
            await self._supervisor.goodbye()
        finally:
            await self._tasks.aclose()

    @property
    def state(self) -> State:
        """Where the client stands."""
        return self._supervisor.state

    @property
    def client_id(self) -> str | None:
        """How the server calls the latest connection's session; None before the first."""
        return self._supervisor.client_id or None

    @property
    def transport(self) -> str | None:
        """What carries the connection: ``websocket``, ``sse`` or ``poll``; None while there is none."""
        return self._supervisor.transport

    @property
    def resumed(self) -> bool:
        """Whether the latest connection went on with the session of the one before: nobody saw it leave or join."""
        return self._supervisor.resumed

    @property
    def close_code(self) -> int | None:
        """Why it is closed for good (see :mod:`rtkit.codes`); None while it is not."""
        return self._supervisor.closed.code if self._supervisor.closed is not None else None

    @property
    def close_reason(self) -> str | None:
        """Likewise, in plain words."""
        return self._supervisor.closed.reason if self._supervisor.closed is not None else None

    def on_state(self, callback: Callable[[State], object]) -> Callable[[], None]:
        """Have ``callback(state)`` called after each change, on the loop; it should return soon.

        What it raises is logged.

        :return: a function that takes the callback away again.
        """
        key = object()
        self._callbacks[key] = callback
        return lambda: self._callbacks.pop(key, None) and None

    async def wait_state(self, *states: State | str, timeout: float | None = None) -> State:
        """Wait until the client is in one of these states. Cancellation: safe.

        :param timeout: seconds; None waits for ever.
        :return: the state it is in.
        :raises ConnectionClosed: when it is closed and that is not one of *states*.
        :raises TimeoutError: after *timeout*.
        """
        wanted = {State(state) for state in states}
        if not wanted:
            raise ValueError("wait_state() needs at least one state")
        try:
            async with _timeout(self._clock, timeout):
                while self.state not in wanted:
                    self._refuse()
                    await self._state_bell.wait()
        except TimeoutError:
            last = self._supervisor.last_failure
            names = " or ".join(sorted(wanted))
            raise TimeoutError(
                f"{without_secrets(self.url)}: not {names} within {timeout:g} s{'; ' if last else ''}{last}"
            ) from None
        return self.state

    def _changed(self) -> None:
        self._state_bell.ring()
        state = self.state
        if state is State.CLOSED:
            for feed in list(self._messages):
                self._end(feed)
        for callback in list(self._callbacks.values()):
            try:
                callback(state)
            except Exception:
                logger.exception("a callback of on_state() failed")

    def _refuse(self) -> None:
        closed = self._supervisor.closed
        if closed is not None:
            error = ConnectionClosed(closed.code, closed.reason)
            error.__cause__ = closed.__cause__
            raise error

    # -- rooms -------------------------------------------------------------------------------------------

    @overload
    def join(self, name: str, *, receives: None = ..., **options: Unpack[JoinOptions]) -> RoomClient[Any]: ...
    @overload
    def join(
        self, name: str, *, receives: type[A] | tuple[type[A]], **options: Unpack[JoinOptions]
    ) -> RoomClient[A]: ...
    @overload
    def join(
        self, name: str, *, receives: tuple[type[A], type[B]], **options: Unpack[JoinOptions]
    ) -> RoomClient[A | B]: ...
    @overload
    def join(
        self, name: str, *, receives: tuple[type[A], type[B], type[C]], **options: Unpack[JoinOptions]
    ) -> RoomClient[A | B | C]: ...
    @overload
    def join(
        self,
        name: str,
        *,
        receives: tuple[type[A], type[B], type[C], type[D]],
        **options: Unpack[JoinOptions],
    ) -> RoomClient[A | B | C | D]: ...
    @overload
    def join(
        self,
        name: str,
        *,
        receives: tuple[type[A], type[B], type[C], type[D], type[E]],
        **options: Unpack[JoinOptions],
    ) -> RoomClient[A | B | C | D | E]: ...
    @overload
    def join(
        self,
        name: str,
        *,
        receives: tuple[type[A], type[B], type[C], type[D], type[E], type[F]],
        **options: Unpack[JoinOptions],
    ) -> RoomClient[A | B | C | D | E | F]: ...
    def join(
        self,
        name: str,
        *,
        receives: Any = None,
        joined: type[Any] = object,
        data: Any = None,
        since: Position | None = None,
        rewind: int = 0,
        echo: bool = True,
        max_queue: int = 1024,
        presence: bool = False,
        receipts: bool = False,
    ) -> RoomClient[Any]:
        """Join a room; returns at once. Enter what is returned, or await it, to wait until the room is joined.

        A room the server has put us into by itself is taken over, with what it brought since.

        :param receives: the message types wanted: one, or a tuple of up to six; ``object``, or nothing, takes
            everything as plain JSON.
        :param joined: the type of :attr:`RoomClient.join_data`.
        :param data: handed to the room's ``on_join``; anything that becomes JSON. Sent with every join.
        :param since: go on from here, as :attr:`RoomClient.position` told another time.
        :param rewind: begin so many messages back instead.
        :param echo: False leaves out the messages this client itself has sent.
        :param max_queue: messages that may wait to be iterated over. Beyond that a room with history is left,
            and recovered from there when half of them are drained; in one without history the oldest are dropped,
            and a gap says so.
        :param presence: be told who is there: :attr:`RoomClient.presence`. A room without presence is refused then,
            with a ``CallError`` of code 108, and so is one where the right to see it is missing, with 103.
        :param receipts: be told how far others have read, and tell them: :attr:`RoomClient.receipts`. Likewise.
        :raises UsageError: when the room is joined already.
        :raises DeclarationError: for types that cannot be messages.
        :raises InvalidMessage: for *data* that JSON cannot hold.
        :raises NotRunning: before the client is entered.
        :raises ConnectionClosed: when it is closed.
        """
        self._core.check()
        if rewind < 0 or max_queue < 1:
            raise ValueError(
                f"rewind= is not negative and max_queue= at least 1, not {rewind!r} and {max_queue!r}"
            )
        if since is not None and rewind:
            raise UsageError("since= says where to go on, rewind= how far back to begin; pass one of them")
        try:
            check_room_name(name)
            if not is_utf8(name):
                raise BadUnit("a lone surrogate cannot be sent")
        except BadUnit as error:
            raise ValueError(f"{name!r:.80} is no room name: {error.message}") from None
        types = (object,) if receives is None else receives if isinstance(receives, tuple) else (receives,)
        reader = Reader(cast("tuple[type[Any], ...]", types), where=f"join({name!r})")
        state = RoomState(
            name,
            since=since,
            rewind=rewind,
            data=UNSET if data is None else Raw(encode_value(data)),
            echo=echo,
            max_queue=max_queue,
            own=self._engine.rooms.own,
            presence=presence,
            receipts=receipts,
        )
        membership = self._engine.rooms.join(state, self._clock.monotonic())
        return RoomClient(self._core, membership, reader, joined)

    # -- calls and messages --------------------------------------------------------------------------------

    @overload
    async def call(
        self, params: object = ..., *, name: str = ..., key: str | None = ..., timeout: float | None = ...
    ) -> Any: ...
    @overload
    async def call(
        self,
        params: object = ...,
        *,
        returns: type[R],
        name: str = ...,
        key: str | None = ...,
        timeout: float | None = ...,
    ) -> R: ...
    async def call(
        self,
        params: object = None,
        *,
        returns: type[Any] = object,
        name: str = "",
        key: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Call a procedure of the server and wait for what it returns.

        Queued, sent again and withdrawn like :meth:`RoomClient.send`, with the same exceptions.

        :param params: of a declared type, which names the procedure; or plain JSON, with *name*.
        :param returns: the type of the answer; plain JSON without it.
        :param name: of the procedure.
        :param key: a key of your own, 1 to 128 characters; say the same again and it happens once.
        :param timeout: seconds to wait, None for ever.
        :raises UsageError: when there is no name to call by.
        """
        self._core.check()
        method, data = pack_call(params, name)
        body = Rpc(method, data, checked_key(key) or self._core.new_key())
        size = 0 if isinstance(data, UnsetType) else len(bytes(data))
        return await self._core.ask(body, size, unpack_answer(returns), timeout=timeout)

    @overload
    def messages(self) -> Feed[Any]: ...
    @overload
    def messages(self, type_: type[A], /) -> Feed[A]: ...
    @overload
    def messages(self, type_: type[A], second: type[B], /) -> Feed[A | B]: ...
    @overload
    def messages(self, type_: type[A], second: type[B], third: type[C], /) -> Feed[A | B | C]: ...
    def messages(self, *types: type[Any]) -> Feed[Any]:
        """Iterate over what the server sends to this session alone, from now on: at most once (C1).

        :param types: the messages wanted, up to three; without any, everything as plain JSON.
        :return: an asynchronous iterator; it keeps the newest 1,024 that are not fetched.
        """
        reader = Reader(types or (object,), where="messages()")
        feed: Feed[Any] = Feed("messages", max_queue=1024)
        self._messages[feed] = reader
        if self.state is State.CLOSED:
            self._end(feed)
        return feed

    def _end(self, feed: Feed[Any]) -> None:
        """The client is closed: so is what it feeds, after what is queued."""
        closed = self._supervisor.closed
        feed.end(closed if closed is not None and closed.code != codes.WS_NORMAL else None)

    def _message(self, push: MessagePush) -> None:
        for feed, reader in list(self._messages.items()):
            try:
                data = reader.decode(push.data)
            except BadUnit as error:
                logger.warning("a message to this session cannot be read: %s", error.message)
                feed.dropped += 1
                continue
            except Exception:  # of the type's own code: it costs the message, not the connection
                logger.exception("a message to this session cannot be read: its type failed")
                feed.dropped += 1
                continue
            if data is not IGNORED:
                feed.offer(data)

    # -- looking at it ---------------------------------------------------------------------------------------

    def statistics(self) -> ClientStatistics:
        """What the client has seen."""
        engine, supervisor = self._engine, self._supervisor
        return ClientStatistics(
            state=self.state,
            connects=supervisor.connects,
            attempts=supervisor.backoff.attempts,
            last_failure=supervisor.last_failure,
            rooms=len(engine.rooms.by_name),
            pending=len(engine.outbox),
            pending_bytes=engine.outbox.bytes,
            sent=engine.sent,
            resent=engine.resent,
            held_back=engine.held_back,
            received=engine.received,
        )

    def __repr__(self) -> str:
        closed = self._supervisor.closed
        why = "" if closed is None else f" ({closed.code}: {closed.reason})"
        rooms, pending = len(self._engine.rooms.by_name), len(self._engine.outbox)
        return f"<Client {without_secrets(self.url)} {self.state}{why}, {rooms} rooms, {pending} pending>"


_timeout = timeout  # methods have a parameter of that name
