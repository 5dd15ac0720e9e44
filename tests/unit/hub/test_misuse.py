"""Misuse is refused early, and the message says what to do instead (api 1, 3, 4, 5, 7, 10)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest

from rtkit import (
    Context,
    DeclarationError,
    Grant,
    History,
    Hub,
    Limits,
    NotSupported,
    Reject,
    Router,
    UnknownRoom,
    UsageError,
    anonymous,
)
from rtkit.primitives import Heartbeat, Rate
from tests.unit.hub.brokers import PlainBroker
from tests.unit.hub.conftest import World


@dataclass
class Say:
    text: str


@dataclass
class Said:
    text: str


class One(TypedDict):
    a: int


class Two(TypedDict):
    b: int


def plain(*args: Any) -> Any:
    """A function that would block everybody."""


async def fine(*args: Any) -> Any:
    """One that would not."""


def make() -> Hub[Any]:
    return Hub(authenticate=anonymous)


# -- async def ----------------------------------------------------------------------------------------

PLACES: dict[str, Callable[[Hub[Any], Any], Any]] = {
    "authenticate": lambda hub, func: Hub(authenticate=func),
    "authorize": lambda hub, func: hub.rooms("r", publishes=object).authorize(func),
    "handler": lambda hub, func: hub.rooms("r", publishes=object).on(Say)(func),
    "on_join": lambda hub, func: hub.rooms("r", publishes=object).on_join(func),
    "on_leave": lambda hub, func: hub.rooms("r", publishes=object).on_leave(func),
    "gate": lambda hub, func: hub.gate(func),
    "rpc": lambda hub, func: hub.rpc(Say)(func),
    "middleware": lambda hub, func: hub.middleware(func),
    "on_error": lambda hub, func: hub.on_error(func),
    "on_session_start": lambda hub, func: hub.on_session_start(func),
    "on_session_end": lambda hub, func: hub.on_session_end(func),
}


class Callable_:
    """An object whose call is async."""

    async def __call__(self, *args: Any) -> Any: ...

    async def method(self, *args: Any) -> Any: ...

    def blocking(self, *args: Any) -> Any: ...


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_plain_def_is_refused(place: Callable[[Hub[Any], Any], Any]) -> None:
    """API 5: with the remedy, and its name."""
    for func in (plain, Callable_().blocking, functools.partial(plain, 1), lambda *args: None, print):
        with pytest.raises(TypeError, match=r"must be `async def`.*await anyio.to_thread.run_sync") as caught:
            place(make(), func)
    with pytest.raises(TypeError, match="plain must be"):
        place(make(), plain)
    assert "block every connection" in str(caught.value)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_anything_async_is_taken(place: Callable[[Hub[Any], Any], Any]) -> None:
    for func in (fine, Callable_(), Callable_().method, functools.partial(fine, 1)):
        place(make(), func)


def test_decorators_return_what_they_were_given() -> None:
    """API: a decorated function can be called and tested by itself."""
    hub = make()
    rooms = hub.rooms("r", publishes=object)
    for decorate in (rooms.authorize, rooms.on(Say), rooms.on_join, rooms.on_leave, hub.gate, hub.middleware):
        assert decorate(fine) is fine
    for decorate in (hub.rpc(Say), hub.on_error, hub.on_session_start, hub.on_session_end):
        assert decorate(fine) is fine


# -- names --------------------------------------------------------------------------------------------


def test_two_of_the_same_kind() -> None:
    """API 4: a clash fails at declaration, and says what to change."""
    hub = make()
    rooms = hub.rooms("r", publishes=object)
    rooms.on(Say)(fine)
    with pytest.raises(DeclarationError, match=r"'r' handle 'Say' already; give one of the two a name="):
        rooms.on(Say)(fine)
    rooms.on(Say, name="Tell")(fine)
    hub.rpc(Say)(fine)
    with pytest.raises(DeclarationError, match=r"'Say' is declared twice; give one of the two a name="):
        hub.rpc(Say)(fine)
    hub.rpc(Say, name="Tell")(fine)
    with pytest.raises(
        DeclarationError, match=r"names that begin with 'rt\.' are rtkit's own, so not 'rt\.x'"
    ):
        hub.rpc(Say, name="rt.x")(fine)
    rooms.on_join(fine)
    with pytest.raises(DeclarationError, match="'r' have an on_join hook already"):
        rooms.on_join(fine)
    rooms.on_leave(fine)
    with pytest.raises(DeclarationError, match="'r' have an on_leave hook already"):
        rooms.on_leave(fine)
    rooms.authorize(fine)
    with pytest.raises(DeclarationError, match="have a grant= or an authorize hook already; keep one"):
        rooms.authorize(fine)
    with pytest.raises(DeclarationError, match="keep one"):
        hub.rooms("s", publishes=object, grant=Grant()).authorize(fine)


def test_the_same_procedure_in_two_routers() -> None:
    """API 1: found when the second is included, or declared later; what was refused is not there."""
    hub, one, two = make(), Router[Any](), Router[Any]()
    one.rpc(Say)(fine)
    two.rpc(Say)(fine)
    hub.include(one)
    with pytest.raises(DeclarationError, match="declared twice"):
        hub.include(two)
    assert two not in hub.included
    late: Router[Any] = Router()
    hub.include(late)
    with pytest.raises(DeclarationError, match="declared twice"):
        late.rpc(Say)(fine)
    late.rpc(Said)(fine)
    assert set(hub.table().procedures) == {"Say", "Said"}


# -- patterns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("chat:{a}", "chat:{b}"), ("{a}:x", "{b}:{c}"), ("x:{rest*}", "x:{a}:{b}"), ("same", "same")],
)
def test_ambiguous_patterns(first: str, second: str) -> None:
    """API 2: both are named, and the way out."""
    hub = make()
    hub.rooms(first, publishes=object)
    with pytest.raises(
        DeclarationError, match="are ambiguous: some room name matches both. Give one of them a literal"
    ) as e:
        hub.rooms(second, publishes=object)
    assert repr(first) in str(e.value)
    assert repr(second) in str(e.value)
    assert [rooms.pattern for rooms in hub.families] == [first]


def test_ambiguous_only_together() -> None:
    """API 1: by prefixes, and by routers included later; what was refused is not there."""
    hub, router = make(), Router[Any]("chat:")
    hub.rooms("chat:{room}", publishes=object)
    router.rooms("{other}", publishes=object)
    with pytest.raises(DeclarationError, match=r"'chat:\{room\}' and 'chat:\{other\}' are ambiguous"):
        hub.include(router)
    assert hub.included == []
    empty: Router[Any] = Router("chat:")
    hub.include(empty)
    with pytest.raises(DeclarationError, match="are ambiguous"):
        empty.rooms("{other}", publishes=object)
    assert empty.families == []
    empty.rooms("room:{other}", publishes=object)
    assert hub.room("chat:room:1").params == {"other": "1"}


def test_the_longest_literal_prefix_wins() -> None:
    """API 2: whatever the order of declaration."""
    hub = make()
    for pattern in ("{any}:{x}", "chat:{x}", "chat:admin:{x}", "chat:{x}:{y}", "chat:lobby"):
        hub.rooms(pattern, publishes=object)
    found = {
        name: hub.table().find(name)[0].pattern.text
        for name in ("chat:lobby", "chat:a", "chat:admin:a", "x:y")
    }
    assert found == {
        "chat:lobby": "chat:lobby",
        "chat:a": "chat:{x}",
        "chat:admin:a": "chat:admin:{x}",
        "x:y": "{any}:{x}",
    }


def test_an_unknown_room_lists_what_is_declared() -> None:
    """API 1."""
    hub = make()
    with pytest.raises(UnknownRoom, match="no family of rooms matches 'chat:a'; declared: none yet"):
        hub.room("chat:a")
    hub.rooms("chat:{room}", publishes=object)
    hub.rooms("user:{user}", publishes=object)
    with pytest.raises(UnknownRoom, match=r"matches 'chat:a:b'; declared: chat:\{room\}, user:\{user\}"):
        hub.room("chat:a:b")
    with pytest.raises(UnknownRoom, match="cannot be a room name: a channel is 1 to 255 bytes"):
        hub.room("chat:" + "x" * 300)
    assert hub.lookup("chat:a")[1] == {"room": "a"}


def test_rooms_of_a_family() -> None:
    """API 2: by their parameters, in the hub that included them; else it says which hub is missing."""
    router: Router[Any] = Router("t:{tenant}:")
    rooms = router.rooms("doc:{id}", publishes=object)
    with pytest.raises(UsageError, match=r"no hub has included it yet; use hub.room\(name\)"):
        rooms.room(tenant="a", id="1")
    hub = make()
    hub.include(router)
    assert rooms.room(tenant="a:b", id="1").name == "t:a%3Ab:doc:1"
    with pytest.raises(UsageError, match=r"'t:\{tenant\}:doc:\{id\}' takes tenant, id, but was given id"):
        rooms.room(id="1")
    other = make()
    other.include(router)
    with pytest.raises(UsageError, match="2 hubs have included it; use hub.room"):
        rooms.room(tenant="a", id="1")


def test_a_family_in_two_places_of_one_hub() -> None:
    """API 2: which room is meant cannot be guessed."""
    shared: Router[Any] = Router()
    rooms = shared.rooms("doc:{id}", publishes=object)
    hub = make()
    for prefix in ("a:", "b:"):
        parent: Router[Any] = Router(prefix)
        parent.include(shared)
        hub.include(parent)
    assert hub.room("a:doc:1").params == hub.room("b:doc:1").params == {"id": "1"}
    with pytest.raises(UsageError, match="use hub.room"):
        rooms.room(id="1")


def test_a_router_and_itself() -> None:
    """API 1: directly, around a corner, and twice."""
    one, two = Router[Any](), Router[Any]()
    with pytest.raises(DeclarationError, match="cannot include itself"):
        one.include(one)
    one.include(two)
    with pytest.raises(DeclarationError, match="cannot include itself"):
        two.include(one)
    with pytest.raises(DeclarationError, match="is included already"):
        one.include(two)


# -- types --------------------------------------------------------------------------------------------


class Tagged(msgspec.Struct, tag="Say"):
    text: str


@pytest.mark.parametrize(
    ("publishes", "message"),
    [
        ((), "publishes= names at least one type, or object for any JSON"),
        ((Say, object), "object means any JSON and cannot stand beside other types"),
        ((One, Two), "One and Two are both TypedDicts.*make one of them a dataclass"),
        ((Say, Say), "two message types are called 'Say' on the wire; rename one, or give it a tag"),
        ((Say, Tagged), "two message types are called 'Say'"),
        (
            int,
            "a message is a dataclass, msgspec Struct, TypedDict or pydantic model, not <class 'int'>; for several",
        ),
        (dict, "and for any JSON object"),
        ("Say", "a message is a dataclass"),
        (Say | Said, "a message is a dataclass"),
        (Say("x"), "a message is a dataclass"),
        (list[Say], "a message is a dataclass"),
    ],
)
def test_what_a_room_cannot_publish(publishes: Any, message: str) -> None:
    """API 4: at declaration, and it says which rooms."""
    hub = make()
    with pytest.raises(DeclarationError, match=message) as caught:
        hub.rooms("r:{x}", publishes=publishes)
    assert "rooms 'r:{x}'" in str(caught.value)
    assert hub.families == []


class Unreadable:
    def __init__(self, x: Any) -> None:
        self.x = x


@dataclass
class Unfinished:
    x: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("type_", [Unreadable, Unfinished, Say | Said, 3, "Say", None, Callable])
def test_what_a_handler_cannot_take(type_: Any) -> None:
    """API 4: a DeclarationError where it is declared, not an error when the first message comes."""
    hub = make()
    rooms = hub.rooms("r", publishes=object)
    for declare in (rooms.on, hub.rpc):
        with pytest.raises(DeclarationError):
            declare(type_)


def test_a_union_may_be_handled_under_a_name() -> None:
    """API 4: msgspec can decode it; it only has no name of its own."""
    hub = make()

    class A(msgspec.Struct, tag=True):
        a: int

    class B(msgspec.Struct, tag=True):
        b: int

    hub.rpc(A | B, name="either")(fine)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="name="):
        hub.rpc(A | B)(fine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overflow", "history", "message"),
    [
        (
            "newest",
            None,
            "overflow='newest' is none of recover, drop_oldest, drop_newest, latest_per_key, close",
        ),
        ("recover", None, "'recover' does not go without history; use drop_oldest or drop_newest or"),
        ("drop_oldest", History(1, ttl=1), "'drop_oldest' does not go with history; use recover or close"),
        ("latest_per_key", History(1, ttl=1), "does not go with history"),
    ],
)
def test_overflow_policies_that_do_not_fit(overflow: Any, history: Any, message: str) -> None:
    """D1."""
    with pytest.raises(DeclarationError, match=message):
        make().rooms("r", publishes=object, overflow=overflow, history=history)


async def test_history_needs_a_broker_with_streams(world: World) -> None:
    """API, brokers: at start, with a broker to use."""
    hub = world.hub(broker=PlainBroker())
    hub.rooms("kept:{x}", publishes=object, grant=Grant(), history=History(5, ttl=60))
    with pytest.raises(
        NotSupported, match=r"'kept:\{x\}' have history=, but PlainBroker keeps no streams; use .*memory://"
    ):
        await hub.start()
    assert not hub.running


async def test_a_plain_broker_is_enough_without(world: World) -> None:
    """B1: what a broker implements is what it can do."""
    hub = world.hub(broker=PlainBroker())
    hub.rooms("live:{x}", publishes=object, grant=Grant("publish"))
    client = await world.join(hub, "ann", "live:a")
    assert await client.call("publish", channel="live:a", data=1) == {}
    assert client.data_of("live:a") == [1]


# -- while it runs ------------------------------------------------------------------------------------


async def test_declaring_while_it_runs(world: World) -> None:
    """API 10: refused, on the hub and on every router below it, and nothing of it stays behind."""
    hub, router = world.hub(), Router[Any]()
    rooms = router.rooms("r:{x}", publishes=object, grant=Grant("publish"))
    open_rooms = router.rooms("s:{x}", publishes=object)
    open_rooms.authorize(fine)
    hub.include(router)
    client = await world.join(hub, "ann", "r:a")
    attempts: list[Callable[[], Any]] = [
        lambda: hub.include(Router()),
        lambda: router.include(Router()),
        lambda: rooms.on(Say)(fine),
        lambda: rooms.on_join(fine),
        lambda: rooms.on_leave(fine),
        lambda: hub.on_session_start(fine),
        lambda: hub.on_session_end(fine),
    ]
    for each in (hub, router):
        attempts += [
            functools.partial(each.rooms, "new:{x}", publishes=object, grant=Grant()),
            functools.partial(each.rpc(Say), fine),
            functools.partial(each.gate, fine),
            functools.partial(each.middleware, fine),
            functools.partial(each.on_error, fine),
        ]
    for attempt in attempts:
        with pytest.raises(
            UsageError, match="the hub is running; declare rooms and handlers before it starts"
        ):
            attempt()
    assert (await client.refused("rpc", method="Say"))["code"] == 104
    await client.call("publish", channel="r:a", data={"event": "Say", "data": {"text": "raw"}})
    await hub.aclose()
    assert (hub.families, hub.gates, hub.middlewares, hub.error_hooks, hub.start_hooks, hub.end_hooks) == (
        [],
    ) * 6
    assert (router.families, router.gates, router.middlewares) == ([rooms, open_rooms], [], [])
    assert (hub.procedures, router.procedures, rooms.handlers) == ({}, {}, {})
    assert (hub.included, router.included) == ([router], [])
    rooms.on(Say)(fine)
    router.rooms("new:{x}", publishes=object, grant=Grant())
    await hub.start()
    assert hub.room("new:1").params == {"x": "1"}


# -- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_frame": 0}, r"Limits\(max_frame=…\) is positive, not 0"),
        ({"max_publication": -1}, r"max_publication=…\) is positive, not -1"),
        ({"auth_timeout": 0}, "auth_timeout"),
        ({"lease": 0.5}, r"Limits\(lease=…\) is 1 to 3600 s, not 0.5"),
        ({"lease": float("inf")}, r"lease=…\) is 1 to 3600 s, not inf"),
        ({"auth_timeout": float("nan")}, "auth_timeout=…. is positive, not nan"),
        ({"handler_timeout": -1.0}, "handler_timeout"),
        ({"position_check": 0}, "position_check"),
        (
            {"max_rooms": 1000},
            r"max_connect=131072\) must have room for max_rooms=1000 rooms, 640 bytes each",
        ),
        ({"large": 1_100_000}, r"Limits\(large=1100000\) must exceed max_publication=1048576 by 64 KiB"),
    ],
)
def test_limits(options: dict[str, Any], message: str) -> None:
    """Manners 11: validated at construction, the offending value in the message."""
    with pytest.raises(ValueError, match=message):
        Limits(**options)


def test_limits_that_are_off() -> None:
    limits = Limits(handler_timeout=None, heartbeat=None, position_check=None)
    assert (limits.handler_timeout, limits.heartbeat, limits.position_check) == (None, None, None)
    with pytest.raises(AttributeError):
        limits.max_rooms = 3  # type: ignore[misc]
    assert Limits().heartbeat == Heartbeat(interval=25, timeout=10)
    assert Limits().commands == Rate(rate=50, burst=100)


async def test_what_an_application_rejects_with(world: World) -> None:
    """API: 103 unless given; from 400 its own."""
    assert (Reject("no").code, Reject("no", code=404).code) == (103, 404)
    assert repr(Reject("no", code=404)) == "Reject('no', code=404)"


def test_reprs() -> None:
    """Manners 10."""
    hub = make()
    rooms = hub.rooms("chat:{room}", publishes=(Say, Said), grant=Grant())
    router: Router[Any] = Router("t:")
    assert repr(rooms) == "<Rooms 'chat:{room}' Schema(Say, Said)>"
    assert repr(router) == "<Router 't:' 0 families>"
    assert repr(hub.room("chat:a")) == "<Room 'chat:a'>"
    assert repr(hub.user("ann")) == "<User 'ann'>"
    assert repr(hub.table().families[0]) == "<Family 'chat:{room}'>"
    assert f"<Hub {hub.node_id} idle, 1 families>" == repr(hub)


async def test_a_context_says_who_and_where(world: World) -> None:
    hub = world.hub()
    seen: list[str] = []

    @hub.rpc(object, name="x")
    async def x(ctx: Context[Any, Any], message: Any) -> None:
        seen.append(repr(ctx))
        seen.append(repr(ctx.session))

    client = await world.join(hub, "ann")
    await client.call("rpc", method="x")
    assert seen[0] == "<Context 'ann' in ''>"
    assert seen[1].endswith("of 'ann', connected, 0 rooms>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0, "ttl": 1}, r"History\(count=…\) is at least 1, not 0"),
        ({"count": 1, "ttl": 0}, r"History\(ttl=…\) is positive seconds, not 0"),
        ({"count": 1, "ttl": float("nan")}, "not nan"),
        ({"count": 1, "ttl": 1, "size": 0}, r"History\(size=…\) is positive bytes, not 0"),
        ({"count": 1, "ttl": 1, "durability": "fsync"}, "is 'stored' or 'replicated', not 'fsync'"),
    ],
)
def test_history(options: dict[str, Any], message: str) -> None:
    """H6: bounded, always."""
    with pytest.raises(ValueError, match=message):
        History(**options)


def test_the_name_of_a_room() -> None:
    """API 2: for auto_join and workers, which have no hub."""
    router: Router[Any] = Router("t:{tenant}:")
    rooms = router.rooms("doc:{id}", publishes=object)
    assert rooms.name(tenant="a:b", id="1") == "t:a%3Ab:doc:1"
    outer: Router[Any] = Router("v1:")
    outer.include(router)
    assert rooms.name(tenant="a", id="1") == "v1:t:a:doc:1"
    second: Router[Any] = Router("v2:")
    second.include(router)
    with pytest.raises(
        UsageError, match=r"'doc:\{id\}' stand below several prefixes: v1:t:\{tenant\}:, v2:t:"
    ):
        rooms.name(tenant="a", id="1")
    with pytest.raises(UsageError, match="takes"):
        make().rooms("r:{x}", publishes=object).name()


async def test_rooms_of_a_router_in_two_hubs_of_which_one_runs(world: World) -> None:
    """API 2: as in tests, where each has a hub of its own."""
    router: Router[Any] = Router()
    rooms = router.rooms("r:{x}", publishes=object, grant=Grant())
    one, two = world.hub(), world.hub()
    one.include(router)
    two.include(router)
    await two.start()
    assert rooms.room(x="1")._hub is two
