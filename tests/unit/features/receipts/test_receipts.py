"""How far users have come: what clients see, on one node and on two (X2)."""

from __future__ import annotations

from typing import Any

import pytest

from rtkit import (
    Context,
    DeclarationError,
    Grant,
    History,
    Hub,
    NotEnabled,
    NotSupported,
    Position,
)
from rtkit.features import Receipts
from rtkit.features.receipts.board import Mark
from rtkit.features.receipts.running import Running
from rtkit.messages import Marks
from tests.support.rawclient import RawClient, Unit
from tests.unit.hub.brokers import FaultyBroker, PlainBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")
ROOM = "chat:a"


def hub_of(world: World, *, broker: Any = None, history: History | None = None, **options: Any) -> Hub[Any]:
    hub = world.hub(broker=broker, **options)
    kept = history or History(100, ttl=3600)
    hub.rooms("chat:{x}", publishes=object, grant=ALL, history=kept, receipts=Receipts())
    hub.rooms("news:{x}", publishes=object, grant=ALL, history=kept, receipts=Receipts(shared=False))
    hub.rooms("bare:{x}", publishes=object, grant=ALL, history=kept)
    return hub


async def said(hub: Hub[Any], count: int, room: str = ROOM) -> str:
    """So many messages are published; the stream's epoch."""
    await hub.start()
    epoch = ""
    for n in range(count):
        published = await hub.publish(room, n)
        assert published.position is not None
        epoch = published.position.epoch
    return epoch


async def watching(world: World, hub: Hub[Any], user: str, room: str = ROOM) -> tuple[RawClient, Unit]:
    """A client of rtkit's own that has asked for marks, and what it was told."""
    client = await world.join(hub, user)
    result = await client.call("subscribe", channel=room, marks=True)
    return client, result["marks"]


async def mark(client: RawClient, offset: int, kind: str = "read", room: str = ROOM, epoch: str = "") -> None:
    if not epoch:
        epoch = client.hub.engine.rooms[room].feed.cursor.epoch  # type: ignore[union-attr]
    assert await client.call("mark", channel=room, kind=kind, epoch=epoch, offset=offset) == {}


def frames(client: RawClient, room: str = ROOM) -> list[Unit]:
    return client.pushes_of(room, "marks")


class Known:
    """What a client of the wire knows by what it was told."""

    def __init__(self, first: Unit) -> None:
        self.epoch, self.delivered, self.read = "", {}, {}  # type: ignore[var-annotated]
        self.more = False
        self.hear(first)

    def hear(self, body: Unit) -> None:
        if body.get("whole"):
            self.epoch, self.delivered, self.read = body["epoch"], {}, {}
            self.more = body.get("more", False)
        assert body["epoch"] == self.epoch
        self.delivered.update(body.get("delivered", {}))
        self.read.update(body.get("read", {}))


def known(client: RawClient, first: Unit, room: str = ROOM) -> tuple[dict[str, int], dict[str, int]]:
    found = Known(first)
    for frame in frames(client, room):
        found.hear(frame)
    return found.delivered, found.read


# -- marking ----------------------------------------------------------------------------------------------


async def test_who_asks_is_told_how_far_everybody_is(world: World) -> None:
    hub = hub_of(world)
    epoch = await said(hub, 5)
    ann, first = await watching(world, hub, "ann")
    assert first == {"epoch": epoch, "whole": True, "user": "ann"}
    bob, _ = await watching(world, hub, "bob")
    await mark(bob, 3)
    await mark(ann, 4, "delivered")
    await world.advance(1)
    assert known(ann, first) == ({"bob": 3, "ann": 4}, {"bob": 3})
    _, later = await watching(world, hub, "cyd")
    assert later == {
        "epoch": epoch, "whole": True, "user": "cyd", "delivered": {"ann": 4, "bob": 3}, "read": {"bob": 3},
    }  # fmt: skip


async def test_who_does_not_ask_is_told_nothing(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 5)
    ann = await world.join(hub, "ann", ROOM)
    bob = await world.join(hub, "bob", ROOM)
    await mark(bob, 3)
    await world.advance(2)
    assert frames(ann) == frames(bob) == []
    assert "\0marks:chat:a" not in hub.engine.listeners
    assert (await hub.room(ROOM).marks())["bob"].read == Position(hub.engine.rooms[ROOM].feed.cursor.epoch, 3)  # type: ignore[union-attr]


async def test_a_mark_never_goes_back(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 5)
    ann, first = await watching(world, hub, "ann")
    for offset in (4, 2, 4, 0):
        await mark(ann, offset)
        await world.advance(1)
    assert len(frames(ann)) == 1
    assert known(ann, first) == ({"ann": 4}, {"ann": 4})
    assert world.backend.position("marks:chat:a").offset == 1  # what changes nothing is not written


async def test_read_is_delivered_too_and_not_the_other_way_round(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 5)
    ann, first = await watching(world, hub, "ann")
    await mark(ann, 2, "delivered")
    await world.advance(1)
    assert known(ann, first) == ({"ann": 2}, {})
    await mark(ann, 4, "read")
    await world.advance(1)
    assert known(ann, first) == ({"ann": 4}, {"ann": 4})
    await mark(ann, 5, "delivered")
    await world.advance(1)
    assert known(ann, first) == ({"ann": 5}, {"ann": 4})


async def test_without_an_id_it_is_not_answered(world: World) -> None:
    hub = hub_of(world)
    epoch = await said(hub, 5)
    ann, first = await watching(world, hub, "ann")
    before = len(ann.units)
    for offset in (3, 99):
        ann.tell({"mark": {"channel": ROOM, "kind": "read", "epoch": epoch, "offset": offset}})
    await ann.settle()
    await world.advance(1)
    assert [unit for unit in ann.units[before:] if "push" not in unit] == []
    assert known(ann, first) == ({"ann": 3}, {"ann": 3})


async def test_what_is_refused(world: World) -> None:
    hub = hub_of(world)
    epoch = await said(hub, 5)
    ann = await world.join(hub, "ann", ROOM, "bare:a")

    async def code(**body: Any) -> int:
        body = {"channel": ROOM, "kind": "read", "epoch": epoch, "offset": 1, **body}
        found: int = (await ann.refused("mark", **body))["code"]
        return found

    assert await code(offset=6) == 107
    assert await code(offset=-1) == 107
    assert await code(offset=2**53) == 107
    assert await code(kind="seen") == 107
    assert await code(epoch="") == 107
    assert await code(epoch="x" * 129) == 107
    assert await code(channel="chat:b") == 103
    assert await code(channel="bare:a") == 108
    assert await code(channel="nowhere") == 102
    assert (await ann.refused("marks", channel="chat:b"))["code"] == 103
    assert (await ann.refused("marks", channel="bare:a"))["code"] == 108
    assert (await ann.refused("subscribe", channel="bare:b", marks=True))["code"] == 108
    assert dict(await hub.room(ROOM).marks()) == {}


async def test_of_an_epoch_that_never_was_a_mark_counts_as_none(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 5)
    ann, first = await watching(world, hub, "ann")
    for n in range(80):
        await mark(ann, 3, epoch=f"made-up-{n}")
    await world.advance(2)
    assert known(ann, first) == ({}, {})
    assert world.backend.entries("marks:chat:a") == {}
    assert len(hub.engine.receipts._epochs_of(ROOM).carry.shared) < 80  # type: ignore[attr-defined]


async def test_a_mark_beyond_what_this_node_has_seen_is_looked_up(world: World) -> None:
    """C4: a client that was at another node a moment ago may know more."""
    one, broker = hub_of(world), FaultyBroker(world.backend)
    two = hub_of(world, broker=broker)
    await said(one, 2)
    bob, first = await watching(world, two, "bob")
    broker.deaf = {"room:chat:a"}
    epoch = await said(one, 3)
    assert two.engine.rooms[ROOM].feed.cursor.offset == 2  # type: ignore[union-attr]
    await mark(bob, 5)
    assert (await bob.refused("mark", channel=ROOM, kind="read", epoch=epoch, offset=6))["code"] == 107
    await world.advance(1)
    assert known(bob, first) == ({"bob": 5}, {"bob": 5})


async def test_devices_of_a_user_have_one_mark(world: World) -> None:
    one, two = hub_of(world), hub_of(world)
    await said(one, 9)
    phone, first = await watching(world, one, "ann")
    laptop, second = await watching(world, two, "ann")
    await mark(phone, 3)
    await mark(laptop, 7)
    await mark(phone, 5)
    await world.advance(2)
    assert known(phone, first) == known(laptop, second) == ({"ann": 7}, {"ann": 7})
    assert list(world.backend.entries("marks:chat:a")) == ["ann"]


async def test_marks_outlive_everybody_and_have_an_end(world: World) -> None:
    one = hub_of(world)
    epoch = await said(one, 5)
    ann, _ = await watching(world, one, "ann")
    await mark(ann, 3)
    await ann.leave()
    await one.aclose()
    two = hub_of(world)
    await two.start()
    assert await two.room(ROOM).marks() == {"ann": Marks(Position(epoch, 3), Position(epoch, 3))}
    await two.aclose()
    await world.clock.advance(29 * 86400)
    assert len(world.backend.entries("marks:chat:a")) == 1
    await world.clock.advance(86400)
    assert world.backend.entries("marks:chat:a") == {}


# -- few writes, few frames -------------------------------------------------------------------------------


async def test_a_quiet_room_is_written_at_once_and_a_busy_one_twice_a_second(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 100)
    clients = [(await watching(world, hub, f"u{n}"))[0] for n in range(10)]
    await mark(clients[0], 1)
    assert world.backend.position("marks:chat:a").offset == 1
    before = world.clock.monotonic()
    for step in range(2, 42):
        for client in clients[:5]:
            await mark(client, step)
        await world.clock.advance(0.1)
    await world.advance(1, 0.25)
    written = world.backend.position("marks:chat:a").offset
    assert written <= 2 * (world.clock.monotonic() - before) + 1
    assert known(clients[9], {"epoch": hub.engine.rooms[ROOM].feed.cursor.epoch, "whole": True})[1] == {  # type: ignore[union-attr]
        f"u{n}": 41 for n in range(5)
    }


async def test_at_most_two_frames_in_any_second(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 100)
    ann, _ = await watching(world, hub, "ann")
    others = [await world.join(hub, f"u{n}", ROOM) for n in range(3)]
    told: list[float] = []
    for step in range(1, 60):
        await mark(others[step % 3], step)
        await world.clock.advance(0.1)
        await ann.settle()
        told += [world.clock.monotonic()] * (len(frames(ann)) - len(told))
    assert len(told) > 8
    assert all(later - earlier > 0.9 for earlier, later in zip(told, told[2:], strict=False))


async def test_many_users_go_in_frames_of_bounded_size(world: World) -> None:
    hub = hub_of(world)
    epoch = await said(hub, 5)
    ann, first = await watching(world, hub, "ann")
    running: Any = hub.engine.receipts
    long = "x" * 240
    for n in range(600):
        running._ledger.mark(
            ROOM, f"{long}{n:04}", epoch, Mark(5, 4), kept=60.0, epochs=running._epochs_of(ROOM)
        )
    await world.advance(10, 0.5)
    sizes = [len(str(frame)) for frame in frames(ann)]
    assert len(sizes) >= 600 * 500 / 32768
    assert max(sizes) < 40_000
    delivered, read = known(ann, first)
    assert len(delivered) == len(read) == 600
    assert set(delivered.values()) == {5}
    assert world.backend.position("marks:chat:a").offset == 3  # 256 users in each revision


async def test_two_hundred_marks_in_a_reply_and_pages_for_the_rest(world: World) -> None:
    one, two = hub_of(world), hub_of(world)
    epoch = await said(one, 5)
    await two.start()
    running: Any = two.engine.receipts
    users = [f"u{n:03}" for n in range(450)]
    for n, user in enumerate(users):
        running._ledger.mark(ROOM, user, epoch, Mark(1 + n % 5), kept=60.0, epochs=running._epochs_of(ROOM))
    await world.advance(2)
    for who, expected in (("zoe", users[:200]), ("u007", users[:200]), ("u449", [*users[:199], "u449"])):
        client, first = await watching(world, one, who)
        assert list(first["delivered"]) == expected
        assert first["more"] is True
        assert first["user"] == who
        found = dict(first["delivered"])
        pages = 0
        while True:
            page = await client.call("marks", channel=ROOM, after=max(found.keys() - {who}))
            assert page["epoch"] == epoch
            assert list(page["delivered"]) == sorted(page["delivered"])
            assert "whole" not in page
            found.update(page["delivered"])
            pages += 1
            if not page.get("more"):
                break
        assert pages == 2
        assert found == {user: 1 + n % 5 for n, user in enumerate(users)}
    # So can who has not asked to be told; nobody watches at this node.
    eve = await world.join(two, "eve", ROOM)
    page = await eve.call("marks", channel=ROOM)
    assert list(page["delivered"]) == users[:200]
    page = await eve.call("marks", channel=ROOM, after="u439")
    assert list(page["delivered"]) == users[440:]
    assert "more" not in page


async def test_of_rooms_that_are_not_shared_one_learns_one_s_own_marks(world: World) -> None:
    one, two = hub_of(world), hub_of(world)
    epoch = await said(one, 5, "news:a")
    phone, first = await watching(world, one, "ann", "news:a")
    laptop, second = await watching(world, two, "ann", "news:a")
    bob, third = await watching(world, one, "bob", "news:a")
    assert first == second == {"epoch": epoch, "whole": True, "user": "ann"}
    await mark(phone, 3, room="news:a")
    await mark(bob, 4, room="news:a")
    await world.advance(2)
    assert known(phone, first, "news:a") == known(laptop, second, "news:a") == ({"ann": 3}, {"ann": 3})
    assert known(bob, third, "news:a") == ({"bob": 4}, {"bob": 4})
    assert await bob.call("marks", channel="news:a") == {
        "epoch": epoch,
        "delivered": {"bob": 4},
        "read": {"bob": 4},
    }
    assert await bob.call("marks", channel="news:a", after="bob") == {"epoch": epoch}
    assert '"ann"' not in bob.text
    _, again = await watching(world, two, "bob", "news:a")
    assert again["read"] == {"bob": 4}
    assert len(await one.room("news:a").marks()) == 2


async def test_who_was_full_gets_a_whole_picture(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 50)
    ann, first = await watching(world, hub, "ann")
    bob, second = await watching(world, hub, "bob")
    await mark(bob, 1)
    await world.advance(1)
    ann.pipe.choke(2**20)
    for offset in range(2, 6):
        await mark(bob, offset)
        await world.clock.advance(1)
    assert hub.engine.counters.get("drops", "receipts") > 0
    ann.ask("mark", channel=ROOM, kind="read", epoch=first["epoch"], offset=7)
    ann.pipe.drain()
    await world.advance(3)
    assert known(ann, first) == known(bob, second) == ({"ann": 7, "bob": 5}, {"ann": 7, "bob": 5})
    assert [frame.get("whole", False) for frame in frames(ann)] == [False, True]
    assert "user" not in frames(ann)[1]


async def test_who_is_behind_gets_messages_first(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 5)
    ann, first = await watching(world, hub, "ann")
    bob = await world.join(hub, "bob", ROOM)
    await mark(bob, 1)
    await world.advance(1)
    ann.pipe.choke()
    for _ in range(10):
        await hub.publish(ROOM, "x" * 30_000)
    await mark(bob, 2)
    await world.clock.advance(1)
    assert hub.engine.counters.get("drops", "receipts") >= 1
    assert ann.pipe.buffered < 2**20 // 2  # there would have been room
    ann.pipe.drain()
    await world.advance(2)
    assert ann.offsets_of(ROOM) == list(range(6, 16))
    assert known(ann, first)[1] == {"bob": 2}
    assert frames(ann)[-1]["whole"] is True


async def test_who_was_full_in_a_large_room_finds_its_own_mark_in_the_picture(world: World) -> None:
    hub = hub_of(world)
    epoch = await said(hub, 9)
    running: Any = hub.engine.receipts
    zoe, _ = await watching(world, hub, "zoe")
    zed, _ = await watching(world, hub, "zed")
    amy, _ = await watching(world, hub, "amy")
    for user in [f"u{n:03}" for n in range(300)] + ["zoe", "amy"]:
        running._ledger.mark(ROOM, user, epoch, Mark(3), kept=60.0, epochs=running._epochs_of(ROOM))
    await world.advance(2)
    for client in (zoe, zed, amy):
        client.forget()
        client.pipe.choke(2**20)
    zoe.ask("mark", channel=ROOM, kind="delivered", epoch=epoch, offset=5)
    await world.clock.advance(2)
    for client in (zoe, zed, amy):
        client.pipe.drain()
    await world.advance(3)
    for client, own in ((zoe, {"zoe": 5}), (zed, {}), (amy, {"amy": 3})):
        (whole,) = [frame for frame in frames(client) if frame.get("whole")]
        assert len(whole["delivered"]) == 200
        assert whole["more"] is True
        assert own.items() <= whole["delivered"].items()


async def test_a_whole_picture_may_be_a_large_unit(world: World) -> None:
    """T8: two hundred users whose names are as long as may be."""
    hub = hub_of(world)
    epoch = await said(hub, 9)
    running: Any = hub.engine.receipts
    ann, _ = await watching(world, hub, "ann")
    for n in range(250):
        running._ledger.mark(
            ROOM, f"{'ü' * 120}{n:04}", epoch, Mark(3, 3), kept=60.0, epochs=running._epochs_of(ROOM)
        )
    await world.advance(10)
    ann.forget()
    ann.pipe.choke(2**20)
    for offset in range(4, 8):
        running._ledger.mark(ROOM, "bob", epoch, Mark(offset), kept=60.0, epochs=running._epochs_of(ROOM))
        await world.clock.advance(1)
    ann.pipe.drain()
    await world.advance(3)
    whole = next(frame for frame in frames(ann) if frame.get("whole"))
    assert (whole["more"], len(whole["delivered"]), len(whole["read"])) == (True, 200, 199)
    assert known(ann, whole)[0]["bob"] == 7
    assert any(kind == "chunk" for kind, _ in ann.order)
    assert max(size for kind, size in ann.order if kind == "unit") < 2**16
    _, fresh = await watching(world, hub, "cyd")
    assert len(fresh["delivered"]) == 200


# -- joining, leaving, coming back ------------------------------------------------------------------------


async def test_who_left_is_told_nothing_more_and_the_watch_ends(world: World) -> None:
    hub = hub_of(world)
    await said(hub, 9)
    ann, _ = await watching(world, hub, "ann")
    bob, _ = await watching(world, hub, "bob")
    await mark(bob, 1)
    await world.advance(1)
    await ann.call("unsubscribe", channel=ROOM)
    heard = len(frames(ann))
    await mark(bob, 2)
    await world.advance(2)
    assert len(frames(ann)) == heard
    await bob.call("unsubscribe", channel=ROOM)
    await world.settle()
    assert hub.engine.listeners == {}
    running: Any = hub.engine.receipts
    assert (len(running._watches), len(running._ledger), len(running._epochs)) == (0, 0, 0)


async def test_who_comes_back_gets_marks_anew(world: World) -> None:
    """C3, also for rooms that are named in connect."""
    hub = world.hub(parks=True)
    hub.rooms("chat:{x}", publishes=object, grant=ALL, history=History(9, ttl=60), receipts=Receipts())
    hub.rooms(
        "user:{x}",
        publishes=object,
        grant=ALL,
        history=History(9, ttl=60),
        receipts=Receipts(shared=False),
        auto_join=lambda identity: [f"user:{identity.user}"],
    )
    await said(hub, 5)
    epoch = await said(hub, 5, "user:ann")
    bob = await world.join(hub, "bob", ROOM)
    ann = world.client(hub, rt=True)
    connected = await ann.connect("ann", subs={"user:ann": {"marks": True}})
    assert connected["subs"]["user:ann"]["marks"] == {"epoch": epoch, "whole": True, "user": "ann"}
    await ann.call("subscribe", channel=ROOM, marks=True)
    await mark(ann, 4, room="user:ann")
    await ann.drop()
    await mark(bob, 3)
    await world.advance(2)
    again = world.client(hub, rt=True)
    connected = await again.connect(
        "ann", subs={"user:ann": {"marks": True}}, rt={"v": 1, "resume": connected["rt"]["resume"]}
    )
    assert connected["rt"]["resumed"] is True
    assert connected["subs"]["user:ann"]["marks"]["read"] == {"ann": 4}
    first = (await again.call("subscribe", channel=ROOM, marks=True))["marks"]
    assert first["read"] == {"bob": 3}
    await mark(bob, 5)
    await world.advance(2)
    assert known(again, first)[1] == {"bob": 5}


async def test_clients_of_the_base_call_procedures(world: World) -> None:
    hub = hub_of(world)
    epoch = await said(hub, 5)
    ann = await world.join(hub, "ann", ROOM, "bare:a", rt=False)

    async def call(method: str, data: Any = None) -> Any:
        body = {} if data is None else {"data": data}
        return (await ann.request("rpc", method=method, **body)).get("error", {}).get("code", 0)

    assert await call("rt.mark", {"channel": ROOM, "kind": "read", "epoch": epoch, "offset": 3}) == 0
    await world.advance(1)
    found = await ann.call("rpc", method="rt.marks", data={"channel": ROOM})
    assert found["data"] == {"epoch": epoch, "delivered": {"ann": 3}, "read": {"ann": 3}}
    found = await ann.call("rpc", method="rt.marks", data={"channel": ROOM, "after": "ann"})
    assert found["data"] == {"epoch": epoch}
    assert await call("rt.mark", {"channel": ROOM, "kind": "read", "epoch": epoch, "offset": 6}) == 107
    assert await call("rt.mark", {"channel": ROOM, "kind": "seen", "epoch": epoch, "offset": 3}) == 107
    assert await call("rt.mark", {"channel": "bare:a", "kind": "read", "epoch": epoch, "offset": 3}) == 108
    assert await call("rt.mark", {"channel": "chat:b", "kind": "read", "epoch": epoch, "offset": 3}) == 103
    assert await call("rt.marks", {"channel": "chat:b"}) == 103
    for method in ("rt.mark", "rt.marks"):
        assert await call(method) == 107
        assert await call(method, [1]) == 107
    # What only rt clients are told stays unsaid, whatever is asked.
    bob = await world.join(hub, "bob", rt=False)
    assert "marks" not in await bob.call("subscribe", channel=ROOM, marks=True)
    await mark(bob, 4)
    await world.advance(2)
    assert frames(ann) == frames(bob) == []


async def test_the_server_asks(world: World) -> None:
    hub = hub_of(world)
    epoch = await said(hub, 5)
    seen: list[Any] = []

    assert dict(await hub.room("chat:empty").marks()) == {}
    ann, _ = await watching(world, hub, "ann")
    await mark(ann, 2, "delivered")
    for watched in (True, False):
        seen.append(await hub.room(ROOM).marks())
        if watched:
            await ann.call("unsubscribe", channel=ROOM)
            await world.advance(1)
    assert seen == [{"ann": Marks(Position(epoch, 2), None)}] * 2
    with pytest.raises(NotEnabled, match=r"pass receipts=Receipts\(\) to rooms\('bare:\{x\}'\)"):
        await hub.room("bare:a").marks()


async def test_a_handler_asks(world: World) -> None:
    hub = hub_of(world)

    @hub.rpc(object, name="readers")
    async def readers(ctx: Context[Any, Any], _: Any) -> list[str]:
        return sorted(await hub.room(ROOM).marks())

    await said(hub, 5)
    ann = await world.join(hub, "ann", ROOM)
    await mark(ann, 2)
    assert await ann.call("rpc", method="readers", data=None) == {"data": ["ann"]}


# -- declarations -----------------------------------------------------------------------------------------


async def test_a_broker_without_state_is_refused_at_the_start(world: World) -> None:
    broker: Any = PlainBroker()
    hub = world.hub(broker=broker)
    hub.rooms("plain:{x}", publishes=object, grant=ALL)
    await hub.start()
    with pytest.raises(NotSupported, match="rooms have receipts=, but PlainBroker keeps no state"):
        Running(hub.engine)


async def test_what_cannot_be_declared(world: World) -> None:
    hub = world.hub()
    with pytest.raises(DeclarationError, match="pass history= too"):
        hub.rooms("a:{x}", publishes=object, grant=ALL, receipts=Receipts())
    with pytest.raises(DeclarationError, match=r"pass receipts=Receipts\(\)"):
        hub.rooms("b:{x}", publishes=object, grant=ALL, history=History(1, ttl=1), receipts=Receipts)  # type: ignore[call-overload]
    for kept in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive seconds"):
            Receipts(kept=kept)
