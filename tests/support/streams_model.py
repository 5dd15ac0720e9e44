"""A hub in miniature that does what `rtkit.streams` calls the driver's duties, in a world without time.

Nothing here is asyncio: a coroutine is run by hand up to its next `await`, and what it awaits (a
subscription, a read) is answered when the schedule says so, with what was true when the schedule had it looked
up. So a schedule, a list of plain tuples, fixes every order of events, and Hypothesis searches for a bad one.

- `ModelBroker` is the truth: one stream that grows, is trimmed, cleared, or fails over to another primary.
- `ModelHub` and `ModelRoom` are the driver: the hub has to do exactly what they do.
- `Client` believes what it is told, and compares it with the truth word by word.
- `World` plays a schedule, brings it to rest, and checks what must hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

from rtkit.position import Gap, Position
from rtkit.streams import CatchUp, Entry, Feed, Meeting, Moved, StreamPage, Verdict, locate

__all__ = ["OPERATIONS", "Client", "Deceived", "ModelBroker", "ModelHub", "ModelRoom", "Restless", "World"]

T = TypeVar("T")


class Deceived(AssertionError):
    """A client was told something that is not so."""


class Restless(AssertionError):
    """Something does not come to rest where it should."""


class Unreachable(Exception):
    """A read failed."""


# -- coroutines without a loop ----------------------------------------------------------------------


class Answer(Generic[T]):
    """What a coroutine of this world may await: a future without a loop."""

    def __init__(self, ready: deque[Callable[[], None]]) -> None:
        self.done = False
        self._ready = ready
        self._value: Any = None
        self._error: Exception | None = None
        self._waiting: list[Callable[[], None]] = []

    def set(self, value: T, error: Exception | None = None) -> None:
        self.done, self._value, self._error = True, value, error
        self._ready.extend(self._waiting)

    def call_when_done(self, step: Callable[[], None]) -> None:
        self._waiting.append(step)

    def __await__(self) -> Generator[Answer[Any], None, T]:
        while not self.done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]


class Task:
    """Steps a coroutine: at once to its first `await`, and on whenever what it awaits is done."""

    def __init__(self, coroutine: Coroutine[Answer[Any], None, None]) -> None:
        self._coroutine: Coroutine[Answer[Any], None, None] | None = coroutine
        self._step()

    def cancel(self) -> None:
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.close()

    def _step(self) -> None:
        if self._coroutine is None:
            return
        try:
            waiting_for = self._coroutine.send(None)
        except StopIteration:
            self._coroutine = None
        else:
            waiting_for.call_when_done(self._step)


@dataclass
class Request:
    """A call to the broker on its way: looked up at one moment, answered at a later one."""

    look_up: Callable[[], Any]
    answer: Answer[Any]
    reading: bool
    taken: bool = False
    value: Any = None

    def take(self) -> None:
        if not self.taken:
            self.taken, self.value = True, self.look_up()


# -- the truth --------------------------------------------------------------------------------------


class ModelBroker:
    """One stream and all its former lives."""

    def __init__(self) -> None:
        self.epoch = "A"
        self.truth: dict[str, list[bytes]] = {"A": []}
        self.floors = {"A": 0}
        self.takeovers: list[tuple[str, int]] = []
        self.lineages: dict[str, list[tuple[str, int]]] = {"A": []}
        self.subscribers: dict[ModelHub, None] = {}
        self.written = 0
        self.silent = False  # a new epoch began, and no hint speaks of it yet

    @property
    def top(self) -> int:
        return len(self.truth[self.epoch])

    @property
    def floor(self) -> int:
        return self.floors[self.epoch]

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.top)

    def append(self) -> None:
        self.written += 1
        self.silent = False
        payload = b"%d" % self.written
        self.truth[self.epoch].append(payload)
        for hub in self.subscribers:
            hub.inbox.append((self.position, payload))

    def trim(self, count: int) -> None:
        self.floors[self.epoch] = min(self.top, self.floor + count)

    def clear(self) -> None:
        """The stream is replaced by a new one."""
        self.takeovers = []
        self._begin([], 0)

    def fail_over(self, lost: int) -> None:
        """Another primary takes over, without the last *lost* entries (B6)."""
        kept = max(0, self.top - lost)
        self.takeovers = [*self.takeovers, (self.epoch, kept)]
        self._begin(self.truth[self.epoch][:kept], min(self.floor, kept))

    def _begin(self, entries: list[bytes], floor: int) -> None:
        self.epoch = chr(ord(self.epoch) + 1)
        self.silent = True
        self.truth[self.epoch] = entries
        self.floors[self.epoch] = floor
        self.lineages[self.epoch] = list(self.takeovers)

    def read(self, since: Position | None, limit: int) -> StreamPage:
        start, lost = locate(
            since, epoch=self.epoch, top=self.top, floor=self.floor, takeovers=self.takeovers
        )
        stored = self.truth[self.epoch]
        entries = tuple(Entry(i + 1, stored[i]) for i in range(start, min(self.top, start + limit)))
        return StreamPage(self.epoch, self.top, self.floor, start, entries, lost)

    def shared(self, old: str, new: str) -> int | None:
        """Up to where epoch *old* goes on in *new*; None if it has nothing to do with it."""
        if old == new:
            return len(self.truth[new])
        lineage = self.lineages[new]
        names = [name for name, _ in lineage]
        return min(offset for _, offset in lineage[names.index(old) :]) if old in names else None


# -- who is told ------------------------------------------------------------------------------------


class Client:
    """Believes what it is told, as an SDK does, and checks it against the truth."""

    def __init__(self, broker: ModelBroker) -> None:
        self.broker = broker
        self.position: Position | None = None
        self.made_up = False  # it asked to continue from a place that nobody had been at
        self.heard: list[object] = []

    def joined(
        self,
        asked: Position | None,
        rewound: bool,
        gap: Gap | None,
        publications: list[Entry],
        position: Position,
        paged: int,
    ) -> None:
        """The join reply: `recovered` is said when *asked* was given and there is no gap."""
        self.heard.append(("joined", asked, gap, publications, position))
        if gap is not None:
            if asked is None:
                self.deny("a gap for one who asked for nothing")
            elif not rewound:
                self.check_joining_gap(asked, gap, paged)
            self.position = Position(gap.epoch, gap.end)
        elif asked is None or rewound:
            first = publications[0].offset if publications else position.offset + 1
            self.position = Position(position.epoch, first - 1)
        else:
            shared = self.broker.shared(asked.epoch, position.epoch)
            if shared is None or shared < asked.offset:
                self.deny(f"recovered from {asked} to {position}, which share {shared}")
            self.position = Position(position.epoch, asked.offset)
        if gap is not None and self.position.epoch != position.epoch:
            self.told_position(Position(position.epoch, self.position.offset))
        for entry in publications:
            self.told(entry)
        if self.position != position:
            self.deny(f"the reply says {position}, the publications end at {self.position}")

    def told(self, entry: Entry) -> None:
        self.heard.append(entry)
        at = self._standing()
        stream = self.broker.truth[at.epoch]
        if entry.offset != at.offset + 1:
            self.deny(f"{entry} after {at}")
        if entry.offset > len(stream) or stream[entry.offset - 1] != entry.payload:
            self.deny(f"{entry} is not of epoch {at.epoch}")
        self.position = Position(at.epoch, entry.offset)

    def told_position(self, position: Position) -> None:
        """The stream goes on in another epoch, and nothing is missing."""
        self.heard.append(position)
        at = self._standing()
        shared = self.broker.shared(at.epoch, position.epoch)
        if position.epoch == at.epoch or position.offset != at.offset or shared is None or shared < at.offset:
            self.deny(f"{at} goes on at {position}, they share {shared}")
        self.position = position

    def told_gap(self, gap: Gap) -> None:
        self.heard.append(gap)
        at = self._standing()
        shared = self.broker.shared(at.epoch, gap.epoch)
        floor = self.broker.floors[gap.epoch]
        if gap.reason == "trimmed":
            true = shared is not None and gap.start == at.offset <= shared and gap.start < gap.end <= floor
        elif gap.reason == "epoch":
            true = shared is None and gap.start == 0 and gap.end <= floor
        else:
            true = shared is not None and shared < at.offset
            true = true and (gap.start == gap.end == shared or (gap.start == 0 and gap.end <= floor))
        if not true:
            self.deny(f"{gap} for one at {at}, they share {shared}")
        self.position = Position(gap.epoch, gap.end)

    def check_joining_gap(self, asked: Position, gap: Gap, paged: int) -> None:
        shared = self.broker.shared(asked.epoch, gap.epoch)
        if gap.start > 0 and (shared is None or gap.start > min(asked.offset, shared)):
            self.deny(f"{gap} does not cover what is missing after {asked}")
        if gap.end > len(self.broker.truth[gap.epoch]):
            self.deny(f"{gap} ends beyond the stream")
        lost = shared is None or asked.offset > shared or asked.offset < self.broker.floors[gap.epoch]
        if paged == 1 and not lost and not self.made_up:
            self.deny(f"{gap}, yet {asked} can be continued")

    def _standing(self) -> Position:
        if self.position is None:
            self.deny("it was told something before it joined")
        return self.position

    def deny(self, what: str) -> NoReturn:
        raise Deceived(f"{what}\n  heard: {self.heard}")


# -- the driver -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Member:
    """A client in a room of a hub."""

    client: Client
    catch: CatchUp | None = None  # while it catches up
    task: Task | None = None  # its way into the live set
    congested: bool = False  # it cannot take the next entry


class ModelRoom:
    """One room on one hub: its feed and its members. Rewritten with asyncio, this is the hub's."""

    forget_publications = True  # what was read before a gap is not part of the join reply

    def __init__(self, hub: ModelHub) -> None:
        self.hub = hub
        self.world = hub.world
        self.feed = self.world.feed()
        self.live: dict[Member, None] = {}
        self.catching: dict[Member, None] = {}
        self.behind: dict[Member, None] = {}
        self.closed = False
        self.subscribed = False
        self.ready: Answer[None] = self.world.answer()
        self._repairing: Answer[None] | None = None
        Task(self._start())

    # Duty 1.
    async def _start(self) -> None:
        await self.hub.subscribe(self)
        self.subscribed = True
        await self.repair()
        self.ready.set(None)

    # Duty 2.
    def hint(self, position: Position, payload: bytes) -> None:
        verdict = self.feed.offer(position, payload)
        if verdict is Verdict.DELIVER:
            self.deliver(Entry(position.offset, payload))
        elif verdict is Verdict.READ and self.subscribed:  # if not, the first page will judge it
            self.repair_soon()

    # Duty 3.
    def repair_soon(self) -> None:
        """Begin a repair unless one is under way."""
        if self._repairing is None:
            self._repairing = self.world.answer()
            Task(self._repair(self._repairing))

    async def repair(self) -> None:
        """Return when continuity is proven; whoever needs that at the same time shares the reads."""
        self.repair_soon()
        if self._repairing is not None:
            await self._repairing

    async def _repair(self, done: Answer[None]) -> None:
        while self.feed.wants_read:
            since = self.feed.reading()
            page = await self.hub.read(since, limit=0 if since is None else self.world.page_limit)
            if self.closed:
                return
            self.hand_out(self.feed.absorb(page))
        self._repairing = None
        done.set(None)

    # Duty 4.
    def hand_out(self, moved: Moved) -> None:
        if moved.start is not None:
            for member in self.live:
                if moved.gap is not None:
                    member.client.told_gap(moved.gap)
                else:
                    member.client.told_position(moved.start)
            for member in self.catching:
                assert member.catch is not None
                member.catch.jumped(moved.start)
        for entry in moved.entries:
            self.deliver(entry)

    def deliver(self, entry: Entry) -> None:
        for member in tuple(self.live):
            if member.congested:
                self.fall_behind(member)
            else:
                member.client.told(entry)
        for member in self.catching:
            assert member.catch is not None
            member.catch.offer(entry)

    def fall_behind(self, member: Member) -> None:
        """It goes on later, from where its client stands."""
        self.live.pop(member, None)
        self.catching.pop(member, None)
        self.behind[member] = None
        member.congested = False

    # Duty 5, of one that joins.
    async def join(self, member: Member, since: Position | None, rewind: int, hooked: bool) -> None:
        await self.ready
        rewound = since is None and rewind > 0
        if rewound:
            page = await self.hub.read(None, limit=0)
            since = Position(page.epoch, max(0, page.top - rewind))
        catch = self.world.catch(since, joining=True, forgiving=rewound)
        publications: list[Entry] = []
        gap: Gap | None = None
        paged = 0
        self.begin(member, catch)
        if hooked:
            # What the application tells it here may be as old as the moment buffering began, and no older.
            since = since or self.cursor
            await self.world.request(lambda: None)
        while True:
            meeting, entries = catch.meet(self.cursor)
            if meeting is Meeting.LIVE:
                break
            if meeting is Meeting.REPAIR:
                self.feed.doubt()
                await self.repair()
                continue
            page = await self.read_for(catch)
            paged += 1
            more, lost = catch.page(page)
            if lost is not None:
                gap = lost
                if self.forget_publications:
                    publications.clear()
            publications.extend(more)
        publications.extend(entries)
        assert catch.position is not None
        member.client.joined(since, rewound, gap, publications, catch.position, paged)
        self.go_live(member)

    # Duty 5, of one that fell behind.
    async def resume(self, member: Member) -> None:
        catch = self.world.catch(member.client.position, joining=False)
        self.begin(member, catch)
        while True:
            meeting, entries = catch.meet(self.cursor)
            if meeting is Meeting.LIVE:
                break
            if meeting is Meeting.REPAIR:
                self.feed.doubt()
                await self.repair()
                continue
            before = catch.position
            page = await self.read_for(catch)
            more, gap = catch.page(page)
            assert before is not None
            assert catch.position is not None
            if gap is not None:
                member.client.told_gap(gap)
            elif catch.position.epoch != before.epoch:
                member.client.told_position(Position(page.epoch, page.start))
            for entry in more:
                member.client.told(entry)
        for entry in entries:
            member.client.told(entry)
        self.go_live(member)

    async def read_for(self, catch: CatchUp) -> StreamPage:
        page = await self.hub.read(catch.position, limit=self.world.page_limit)
        self.hand_out(self.feed.extend(page))
        if self.feed.wants_read:
            self.repair_soon()
        return page

    @property
    def cursor(self) -> Position:
        assert self.feed.cursor is not None
        return self.feed.cursor

    def begin(self, member: Member, catch: CatchUp) -> None:
        self.behind.pop(member, None)
        member.catch = catch
        self.catching[member] = None
        catch.begin(self.cursor)

    def go_live(self, member: Member) -> None:
        del self.catching[member]
        member.catch = member.task = None
        self.live[member] = None

    # Duty 6.
    async def compare(self) -> None:
        page = await self.hub.read(None, limit=0)
        if not self.closed and self.feed.differs(page.position):
            self.interrupted()

    def interrupted(self) -> None:
        """Hints may have been missed."""
        self.feed.doubt()
        if self.subscribed:
            self.repair_soon()


class ModelHub:
    """A node: at most one room, subscribed while it has members."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.room: ModelRoom | None = None
        self.members: list[Member] = []
        self.inbox: list[tuple[Position, bytes]] = []
        self.deaf = False  # it lost a hint, and nothing has told it so

    def join(self, client: Client, since: Position | None, rewind: int = 0, hooked: bool = False) -> None:
        if self.room is None:
            self.room = self.world.room(self)
            self.deaf = False
        member = Member(client)
        self.members.append(member)
        member.task = Task(self.room.join(member, since, rewind, hooked))

    def resume(self, member: Member) -> None:
        assert self.room is not None
        member.task = Task(self.room.resume(member))

    def fall_behind(self, member: Member) -> None:
        """A member that was live once gives up for now; the client keeps what it got."""
        assert self.room is not None
        if member.task is not None:
            member.task.cancel()
        self.room.fall_behind(member)

    # Duty 7.
    def leave(self, member: Member) -> None:
        assert self.room is not None
        if member.task is not None:
            member.task.cancel()
        for among in (self.room.live, self.room.catching, self.room.behind):
            among.pop(member, None)
        self.members.remove(member)
        if not self.members:
            self.room.closed = True
            self.room = None
            self.world.broker.subscribers.pop(self, None)

    def subscribe(self, room: ModelRoom) -> Answer[None]:
        return self.world.request(lambda: self._subscribe(room))

    def _subscribe(self, room: ModelRoom) -> None:
        if not room.closed:
            self.world.broker.subscribers[self] = None

    async def read(self, since: Position | None, *, limit: int) -> StreamPage:
        while True:
            try:
                page: StreamPage = await self.world.request(
                    lambda: self.world.broker.read(since, limit), reading=True
                )
                return page
            except Unreachable:
                continue  # the hub waits before it tries again


# -- the world --------------------------------------------------------------------------------------


class World:
    """Two hubs on one broker, and everything that may happen to them.

    :param page_limit: entries that a read brings at the most.
    :param window: entries that a feed holds, and that one who catches up buffers, at the most.
    :param patience: how many times as many reads as it takes are allowed for coming to rest.
    """

    def __init__(
        self,
        *,
        page_limit: int = 2,
        window: int = 3,
        feed: Callable[..., Feed] = Feed,
        catch: Callable[..., CatchUp] = CatchUp,
        room: Callable[[ModelHub], ModelRoom] = ModelRoom,
        client: Callable[[ModelBroker], Client] = Client,
        patience: int = 1,
    ) -> None:
        self.page_limit = page_limit
        self.patience = patience
        self.room = room
        self.feed = partial(feed, max_held=window)
        self.catch = partial(catch, max_buffered=window)
        self.broker = ModelBroker()
        self.client = partial(client, self.broker)
        self.hubs = (ModelHub(self), ModelHub(self))
        self.gone: list[Position] = []  # where clients stood when they left
        self.requests: list[Request] = []
        self.reads = 0
        self._ready: deque[Callable[[], None]] = deque()

    # -- what the driver uses

    def answer(self) -> Answer[Any]:
        return Answer(self._ready)

    def request(self, look_up: Callable[[], Any], *, reading: bool = False) -> Answer[Any]:
        self.reads += reading
        answer = self.answer()
        self.requests.append(Request(look_up, answer, reading))
        return answer

    # -- what a schedule may do

    def play(self, schedule: Iterable[tuple[str, int]]) -> None:
        """Play a schedule from a world with a member on either hub, and bring it to rest."""
        self.append(1)
        for hub in self.hubs:
            hub.join(self.client(), None)
        self.settle()
        for name, choice in schedule:
            getattr(self, name)(choice)
            if name not in BETWEEN_TURNS:
                self.turn()
            self.check()
        self.rest()

    def append(self, choice: int) -> None:
        for _ in range(choice % 3 + 1):
            self.broker.append()

    def trim(self, choice: int) -> None:
        self.broker.trim(choice % 4 + 1)

    def clear(self, choice: int) -> None:
        """The stream is replaced, and nobody hears of it before something is written."""
        self.broker.clear()
        for _ in range(choice % 2):
            self.broker.append()

    def fail_over(self, choice: int) -> None:
        self.broker.fail_over(choice % 4)
        for _ in range(choice // 4 % 2):
            self.broker.append()

    def hint(self, choice: int) -> None:
        """Hints arrive in order."""
        hub = self.hubs[choice % 2]
        for _ in range(choice // 2 % 4 + 1):
            self._hint(hub, 0)

    def stray_hint(self, choice: int) -> None:
        """A hint overtakes others."""
        self._hint(self.hubs[choice % 2], choice // 2)

    def double_hint(self, choice: int) -> None:
        """A hint arrives, and will arrive once more."""
        self._hint(self.hubs[choice % 2], choice // 2, keep=True)

    def lose_hint(self, choice: int) -> None:
        hub = self.hubs[choice % 2]
        if hub.inbox:
            del hub.inbox[choice // 2 % len(hub.inbox)]
            hub.deaf = True

    def interrupt(self, choice: int) -> None:
        """A hub is told that hints may have been lost."""
        hub = self.hubs[choice % 2]
        hub.deaf = False
        if hub.room is not None:
            hub.room.interrupted()

    def cut(self, choice: int) -> None:
        """A hub loses all hints under way, maybe one of this very moment, and is told so."""
        for _ in range(choice // 2 % 2):
            self.broker.append()
        self.hubs[choice % 2].inbox.clear()
        self.interrupt(choice)

    def pause(self, choice: int) -> None:
        """Nothing new for a while."""
        self.settle()
        self.check_tops()

    def compare(self, choice: int) -> None:
        hub = self.hubs[choice % 2]
        if hub.room is not None and hub.room.ready.done:
            Task(hub.room.compare())

    def take(self, choice: int) -> None:
        """The broker looks up what was asked for; the answer is on its way."""
        if pending := [request for request in self.requests if not request.taken]:
            pending[choice % len(pending)].take()

    def respond(self, choice: int) -> None:
        if self.requests:
            self._respond(self.requests[choice % len(self.requests)])

    def fail(self, choice: int) -> None:
        if reads := [request for request in self.requests if request.reading]:
            self._respond(reads[choice % len(reads)], Unreachable())

    def turn(self, choice: int = 0) -> None:
        """Whoever waits for something that has come goes on."""
        while self._ready:
            self._ready.popleft()()

    def join(self, choice: int) -> None:
        """Somebody new, who asks for nothing, or for the last few."""
        self.hubs[choice % 2].join(self.client(), None, rewind=choice // 2 % 5, hooked=choice >= 30)

    def come_back(self, choice: int) -> None:
        """Somebody who left, on either hub."""
        if self.gone:
            since = self.gone[choice // 2 % len(self.gone)]
            self.hubs[choice % 2].join(self.client(), since, hooked=choice >= 30)

    def claim(self, choice: int) -> None:
        """Somebody with any position, true or made up."""
        epochs = sorted(self.broker.truth, reverse=True)
        epoch = epochs[choice // 2 % 3 % len(epochs)]
        top = len(self.broker.truth[epoch])
        client = self.client()
        since = Position(epoch, choice // 6 % (top + 3))
        client.made_up = since.offset > top
        self.hubs[choice % 2].join(client, since)

    def leave(self, choice: int) -> None:
        hub = self.hubs[choice % 2]
        if hub.members:
            member = hub.members[choice // 2 % len(hub.members)]
            if member.client.position is not None:
                self.gone.append(member.client.position)
            hub.leave(member)

    def congest(self, choice: int) -> None:
        """A live member will not take the next entry."""
        hub = self.hubs[choice % 2]
        if hub.room is not None and hub.room.live:
            tuple(hub.room.live)[choice // 2 % len(hub.room.live)].congested = True

    def fall_behind(self, choice: int) -> None:
        """A member is live no more, or stops catching up."""
        hub = self.hubs[choice % 2]
        if members := [member for member in hub.members if member.client.position is not None]:
            hub.fall_behind(members[choice // 2 % len(members)])

    def resume(self, choice: int) -> None:
        hub = self.hubs[choice % 2]
        if hub.room is not None and hub.room.behind:
            hub.resume(tuple(hub.room.behind)[choice // 2 % len(hub.room.behind)])

    def _hint(self, hub: ModelHub, index: int, *, keep: bool = False) -> None:
        if not hub.inbox:
            return
        index %= len(hub.inbox)
        position, payload = hub.inbox[index]
        if not keep:
            del hub.inbox[index]
        if hub.room is not None:
            hub.room.hint(position, payload)

    def _respond(self, request: Request, error: Exception | None = None) -> None:
        self.requests.remove(request)
        if error is None:
            request.take()
        request.answer.set(request.value, error)

    # -- what must hold

    def check(self) -> None:
        for hub in self.hubs:
            if hub.room is not None:
                for member in hub.room.live:
                    if member.client.position != hub.room.feed.cursor:
                        raise Deceived(f"live at {member.client.position}, but {hub.room.feed}")

    def settle(self) -> None:
        """Everything under way arrives, in order; nothing new happens."""
        steps = 0
        self.turn()
        while self.requests or any(hub.inbox for hub in self.hubs):
            for hub in self.hubs:
                while hub.inbox:
                    self._hint(hub, 0)
            if self.requests:
                self._respond(self.requests[0])
            self.turn()
            self.check()
            steps += 1
            if steps > 1000:
                raise Restless("reading does not come to an end")

    def rest(self) -> None:
        """Silence: within few reads everybody stands at the top."""
        kept = self.broker.top - self.broker.floor
        readers = sum(len(hub.members) + 1 for hub in self.hubs)
        enough = self.reads + self.patience * readers * (2 * kept // self.page_limit + 6)
        for hub in self.hubs:
            for member in hub.members:
                member.congested = False
            if hub.room is not None:
                for member in tuple(hub.room.behind):
                    hub.resume(member)
        self.settle()
        if self.reads > enough:
            raise Restless(f"{self.reads - enough} reads more than it takes")
        self.check_tops()
        # Only who could not hear of it needs the comparison of tops.
        for hub in self.hubs:
            if hub.room is not None:
                Task(hub.room.compare())
        self.settle()
        for hub in self.hubs:
            self._check_at_top(hub)
            if hub.room is not None and set(hub.members) != set(hub.room.live):
                raise Restless(f"{len(hub.members) - len(hub.room.live)} members are not live")

    def check_tops(self) -> None:
        """Once all is quiet, every hub that could hear of what is in the stream has it."""
        for hub in self.hubs:
            if not hub.deaf and not self.broker.silent:
                self._check_at_top(hub)

    def _check_at_top(self, hub: ModelHub) -> None:
        if hub.room is None:
            return
        if hub.room.feed.wants_read or hub.room.cursor != self.broker.position:
            raise Restless(f"the stream stands at {self.broker.position}, but {hub.room.feed}")


#: After these, whoever waits for something that has come has not yet gone on.
BETWEEN_TURNS = frozenset({"append", "clear", "fail_over", "hint", "respond", "stray_hint", "trim"})

# What may happen, and how often.
_WEIGHTS = {
    "append": 3,
    "hint": 3,
    "take": 3,
    "respond": 3,
    "turn": 2,
    "cut": 2,
    "trim": 2,
    **dict.fromkeys(("clear", "fail_over", "stray_hint", "double_hint", "lose_hint", "interrupt"), 1),
    **dict.fromkeys(("compare", "fail", "pause", "join", "come_back", "claim", "leave"), 1),
    **dict.fromkeys(("congest", "fall_behind", "resume"), 1),
}

#: What may happen, the common more than once.
OPERATIONS = tuple(name for name, weight in _WEIGHTS.items() for _ in range(weight))
