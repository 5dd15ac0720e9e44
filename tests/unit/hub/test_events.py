"""The one-way endpoint: what is answered to whom, and how a stream ends (T5, F2, F4)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Reject
from rtkit.primitives import sleep
from rtkit.primitives.ratelimit import Rate
from rtkit.transports import Handshake, HttpRequest, Response, Streaming
from rtkit.wire import eventstream, telling
from tests.support.eventsource import EventSource, StreamSink
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")


@dataclass
class Said:
    text: str


def hub_of(world: World, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    hub.rooms("kept:{x}", publishes=object, grant=ALL, history=History(100, ttl=600))
    hub.rooms("plain:{x}", publishes=object, grant=ALL)
    hub.rooms("typed:{x}", publishes=Said, grant=ALL, history=History(100, ttl=600))

    closed = hub.rooms("closed:{x}", publishes=object, history=History(100, ttl=600))

    @closed.authorize
    async def closed_to_all(ctx: Context[Any, Any]) -> Grant:
        raise Reject("members only")

    return hub


async def page_of(world: World, hub: Hub[Any], *rooms: str, token: str = "ann", **more: Any) -> EventSource:
    """A page that is in these rooms."""
    await hub.start()
    query = "&".join([*(f"room={room}" for room in rooms), f"token={token}"])
    page = EventSource(hub, world.clock, query, **more)
    assert await page.open() == 200
    assert page.types == ["joined"]
    return page


def no_one_is_there(hub: Hub[Any]) -> bool:
    now = hub.statistics()
    return (now.connections, now.sessions, now.users, now.rooms) == (0, 0, 0, 0)


# -- what comes ----------------------------------------------------------------------------------------


async def test_a_page_hears_its_rooms_and_no_other(world: World) -> None:
    """T5: one stream for several rooms, with and without history, typed and raw."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a", "plain:a", "typed:a")
    bob = await world.join(hub, "bob", "kept:a")
    await bob.call("publish", channel="kept:a", data={"n": 1})
    await hub.publish("plain:a", None)
    await hub.publish("typed:a", Said("hi"))
    await hub.publish("kept:b", "not for us")
    await page.settle()
    time = world.clock.time()
    client = (await hub.room("kept:a").history(limit=1)).messages[0].client
    assert page.of("message") == [
        {"room": "kept:a", "data": {"n": 1}, "offset": 1, "sender": "bob", "client": client, "time": time},
        {"room": "plain:a", "data": None, "time": time},
        {"room": "typed:a", "data": {"event": "Said", "data": {"text": "hi"}}, "offset": 1, "time": time},
    ]


async def test_the_head_and_the_first_event(world: World) -> None:
    """T5, T6: nothing on the way may keep or collect it; when to come back, and where it stands, is said at once."""
    hub = hub_of(world)
    joined = hub.rooms("greets:{x}", publishes=object, grant=ALL)

    @joined.on_join
    async def greet(ctx: Context[Any, Any]) -> dict[str, str]:
        return {"hello": ctx.user}

    page = await page_of(world, hub, "kept:a", "greets:b")
    assert page.answered["content-type"] == "text/event-stream"
    assert page.answered["cache-control"] == "no-store, no-transform"
    assert page.answered["x-accel-buffering"] == "no"
    assert "content-length" not in page.answered
    assert page.of("joined") == [
        {"rooms": {"kept:a": {"recoverable": True}, "greets:b": {"data": {"hello": "ann"}}}}
    ]
    assert page.last_id
    assert 1000 <= page.retry <= 5000
    assert page.sink.writes == 1


async def test_a_crowd_is_told_different_moments_to_come_back(world: World) -> None:
    """F3."""
    hub = hub_of(world)
    retries = {(await page_of(world, hub, "kept:a")).retry for _ in range(20)}
    assert len(retries) > 10


async def test_what_else_the_hub_says_to_its_clients(world: World) -> None:
    """Signals, and messages to this session alone; neither moves the place."""
    hub = hub_of(world)

    @hub.on_session_start
    async def hello(ctx: Context[Any, None]) -> None:
        ctx.session.send("hello")

    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a&token=ann")
    await page.open()
    bob = await world.join(hub, "bob", "kept:a")
    await bob.call("signal", channel="kept:a", event="typing", data=True)
    await page.settle()
    assert page.types == ["joined", "message", "signal"]
    assert page.data() == ["hello"]
    said = {"room": "kept:a", "event": "typing", "data": True, "sender": "bob"}
    assert page.of("signal") == [said | {"client": bob.replies[1]["connect"]["client"]}]
    assert len({event.id for event in page.events}) == 1


async def test_the_lines_of_a_message_are_made_once_for_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5: only the ids are each stream's own."""
    hub = hub_of(world)
    pages = [await page_of(world, hub, "kept:a", *["kept:b"] * (n % 2)) for n in range(10)]
    made: list[str] = []

    def count(room: str, pub: Any) -> bytes:
        made.append(room)
        return eventstream.message_lines(room, pub)

    monkeypatch.setattr(telling, "message_lines", count)
    await hub.publish("kept:a", "x")
    await world.settle()
    assert all(page.data() == ["x"] for page in pages)
    assert made == ["kept:a"]
    assert len({page.last_id for page in pages}) == 2


@pytest.mark.parametrize("text", ["a\nb", "\r", "\r\n\r\ndata: x\n\n", "\0", "\u2028\x85", "\ufeff", "😀"])
async def test_whatever_is_in_a_message_comes_out_of_it(world: World, text: str) -> None:
    """T5: line breaks and NUL cannot end an event or make a field."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a", "plain:a")
    await hub.publish("kept:a", {text: text})
    await hub.publish("plain:a", text)
    await page.settle()
    assert page.data() == [{text: text}, text]
    assert page.types == ["joined", "message", "message"]
    assert "\r" not in page.sink.body.decode()


@pytest.mark.parametrize("size", [70_000, 400_000])
async def test_a_large_message_comes_whole(world: World, size: int) -> None:
    """T8: the hub cuts it for those who can put it together; a page cannot, and need not know."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a", "plain:a")
    await hub.publish("kept:a", "k" * size)
    await hub.publish("plain:a", "p" * size)
    await page.settle()
    assert sorted(map(len, page.data())) == [size, size]
    await page.cut()
    first = page.events[0].id
    page.forget()
    await page.open(last_id=first)
    assert page.data() == ["k" * size]


# -- who is let in -------------------------------------------------------------------------------------

REFUSED = {
    "no room": ("token=ann", 400, "name 1 to 32 rooms"),
    "33 rooms": ("&".join(f"room=kept:{n}" for n in range(33)) + "&token=ann", 400, "not 33"),
    "no such room": ("room=nowhere&token=ann", 404, "room 'nowhere': unknown room"),
    "a room spelled otherwise": ("room=kept:%2541&token=ann", 404, "did you mean 'kept:A'"),
    "an empty name": ("room=&token=ann", 404, "unknown room"),
    "a name with a line break": ("room=kept:a%0Aid:x&token=ann", 404, "unknown room"),
    "a name with NUL": ("room=kept:a%00&token=ann", 404, "unknown room"),
    "an internal topic": ("room=%00control&token=ann", 404, "unknown room"),
    "not UTF-8": ("room=kept:%ff&token=ann", 400, "not UTF-8"),
    "no token": ("room=kept:a", 401, "no token"),
    "nobody and nowhere": ("room=nowhere", 401, "no token"),
    "not permitted": ("room=closed:a&token=ann", 403, "room 'closed:a': members only"),
    "one of two": ("room=kept:a&room=closed:a&token=ann", 403, "members only"),
    "a place that is none": ("room=kept:a&token=ann&since=not%20an%20id", 400, "no id of an event"),
    "a place that is too long": ("room=kept:a&token=ann&since=" + "1" * 5000, 400, "at most 4096"),
}


@pytest.mark.parametrize(("query", "status", "text"), REFUSED.values(), ids=REFUSED)
async def test_a_last_word_is_a_status(world: World, query: str, status: int, text: str) -> None:
    """F2, A1, A2: an EventSource stops at it. All rooms or none; and who is nobody learns nothing about rooms."""
    hub = hub_of(world)
    await hub.start()
    page = EventSource(hub, world.clock, query)
    assert await page.open() == status
    assert text in page.text
    assert page.answered["content-type"].startswith("text/plain")
    assert ("www-authenticate" in page.answered) == (status == 401)
    await world.settle()
    assert no_one_is_there(hub)


async def test_a_place_that_is_none_in_the_header(world: World) -> None:
    hub = hub_of(world)
    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a&token=ann")
    for bad in ("not an id", "1" * 5000, "1AAAA", "a\x00b"):
        assert await page.open(last_id=bad) == 400


async def test_32_rooms_are_not_too_many_and_none_counts_twice(world: World) -> None:
    """T5."""
    hub = hub_of(world)
    names = [f"kept:{n}" for n in range(32)]
    page = await page_of(world, hub, *names, *names)
    for name in names:
        await hub.publish(name, name)
    await page.settle()
    assert sorted(page.data()) == sorted(names)
    assert len(page.last_id) < 4096


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("origin", "https://evil.example")], 403),
        ([("sec-fetch-site", "cross-site")], 403),
        ([("origin", "http://test"), ("sec-fetch-site", "same-origin")], 200),
    ],
)
async def test_other_peoples_pages_may_not(world: World, headers: list[tuple[str, str]], status: int) -> None:
    """T10."""
    hub = hub_of(world)
    await hub.start()
    assert await EventSource(hub, world.clock, "room=kept:a&token=ann", headers=headers).open() == status


async def test_the_methods_there_are(world: World) -> None:
    hub = hub_of(world)
    answer = await hub.answer(HttpRequest("POST", "events", Handshake(query="room=kept:a")))
    assert isinstance(answer, Response)
    assert answer.status == 405


async def test_cookie_header_and_token_are_told_apart(world: World) -> None:
    """T5: an application sees that a token came with the URL, where proxies write it down."""
    seen: list[Credentials] = []

    async def authenticate(credentials: Credentials) -> Identity[None]:
        seen.append(credentials)
        return Identity("ann")

    hub = hub_of(world, authenticate=authenticate)
    await hub.start()
    await EventSource(hub, world.clock, "room=kept:a&token=secret").open()
    await EventSource(hub, world.clock, "room=kept:a", headers=[("cookie", "sid=7")]).open()
    await EventSource(hub, world.clock, "room=kept:a", headers=[("authorization", "Bearer abc")]).open()
    assert [(each.token, each.query.get("token"), each.cookies) for each in seen] == [
        ("secret", "secret", {}),
        (None, None, {"sid": "7"}),
        ("abc", None, {}),
    ]


async def test_a_token_is_written_nowhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A5: not in a log, not even where something fails."""

    async def authenticate(credentials: Credentials) -> Identity[None]:
        if credentials.query["token"].endswith("2"):
            raise Reject("no", code=101)
        return Identity("ann")

    hub = hub_of(world, authenticate=authenticate)
    await hub.start()
    for token in ("s3cret-1", "s3cret-2"):
        page = EventSource(hub, world.clock, f"room=kept:a&token={token}")
        await page.open()
        await page.cut()
        assert token not in page.text + page.sink.body.decode()
    assert "s3cret" not in "".join(record.getMessage() + str(record.__dict__) for record in caplog.records)


async def test_no_room_is_entered_by_whom_another_refuses(world: World) -> None:
    """All or nothing: the first of the two is left again, and nobody stays."""
    hub = hub_of(world)
    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a&room=closed:a&token=ann")
    assert await page.open() == 403
    await world.settle()
    assert no_one_is_there(hub)


async def test_a_room_that_the_server_chose_anyway(world: World) -> None:
    """A personal room that is asked for is recovered; one that is not is no part of this stream."""
    hub = hub_of(world)
    hub.rooms(
        "user:{x}",
        publishes=object,
        grant=ALL,
        history=History(9, ttl=600),
        auto_join=lambda identity: [f"user:{identity.user}"],
    )
    page = await page_of(world, hub, "kept:a", "user:ann")
    other = await page_of(world, hub, "kept:a")
    await hub.publish("user:ann", 1)
    await page.settle()
    assert (page.data(), other.data()) == ([1], [])
    assert len(hub.engine.rooms["user:ann"].live) == 1
    assert other.of("joined") == [{"rooms": {"kept:a": {"recoverable": True}}}]
    await page.cut()
    await hub.publish("user:ann", 2)
    await page.open()
    assert page.data("user:ann") == [1, 2]
    assert page.of("joined")[-1]["rooms"]["user:ann"] == {"recoverable": True, "recovered": True}


async def test_many_rooms_wait_for_a_small_rate(world: World) -> None:
    """F1: the rate of commands is for clients; one request for many rooms takes its time, and is answered."""
    hub = hub_of(world, limits=Limits(commands=Rate(rate=2, burst=3)))
    await hub.start()
    page = EventSource(hub, world.clock, "&".join(f"room=kept:{n}" for n in range(12)) + "&token=ann")
    opening = asyncio.ensure_future(page.open())
    await world.advance(4)
    assert not opening.done()
    await world.advance(4)
    assert await opening == 200
    assert len(page.of("joined")[0]["rooms"]) == 12


# -- not now -------------------------------------------------------------------------------------------


def says_come_back(page: EventSource, low: float, high: float) -> None:
    """The one way of saying it that an EventSource survives."""
    assert (page.status, page.types) == (200, [])
    assert page.answered["content-type"] == "text/event-stream"
    assert low <= page.retry <= high
    assert page.ended


@pytest.mark.parametrize("where", ["authenticate", "authorize"])
async def test_try_again_later_is_no_status(world: World, where: str) -> None:
    """F2: a 503 would end an EventSource for good."""

    async def authenticate(credentials: Credentials) -> Identity[None]:
        if where == "authenticate":
            raise Reject("busy", retry_after=7)
        return Identity("ann")

    hub = world.hub(authenticate=authenticate)
    rooms = hub.rooms("r:{x}", publishes=object)

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        raise Reject("busy", retry_after=7)

    await hub.start()
    page = EventSource(hub, world.clock, "room=r:a")
    await page.open()
    says_come_back(page, 7000, 14000)
    await world.settle()
    assert no_one_is_there(hub)


async def test_while_the_broker_is_away(world: World) -> None:
    """B4, F2."""
    broker = FaultyBroker(world.backend)
    hub = hub_of(world, broker=broker)
    await hub.start()
    broker.failing = {"subscribe", "read"}
    page = EventSource(hub, world.clock, "room=kept:a&token=ann")
    await page.open()
    says_come_back(page, 1000, 2000)
    broker.failing = set()
    assert await page.open() == 200
    assert page.types == ["joined"]


async def test_a_hub_that_cannot_start(world: World) -> None:
    """B4, F2: a last word would be a lie."""
    broker = FaultyBroker(world.backend)
    broker.down = True
    hub = hub_of(world, broker=broker)
    page = EventSource(hub, world.clock, "room=kept:a&token=ann")
    await page.open()
    says_come_back(page, 5000, 10000)


async def test_something_broke(world: World, errors: Any) -> None:
    """L3: it is logged, the client learns nothing, and comes back."""

    async def authenticate(credentials: Credentials) -> Identity[None]:
        raise RuntimeError("s3cret")

    hub = hub_of(world, authenticate=authenticate)
    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a")
    await page.open()
    says_come_back(page, 1000, 2000)
    assert "s3cret" not in page.text
    assert len(errors()) == 1


async def test_a_hub_that_closes_tells_its_streams_when_to_come_back(world: World) -> None:
    """L1, F2: within the window, and whoever asks meanwhile is told to as well."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a")
    await hub.publish("kept:a", "last words")
    closing = asyncio.ensure_future(hub.aclose())
    await page.settle()
    assert page.data() == ["last words"]
    assert page.retry <= 1000
    assert page.ended
    await closing
    other = hub_of(world)
    assert await EventSource(other, world.clock, page.query).open() == 200


async def test_who_asks_while_the_hub_closes(world: World) -> None:
    """F2."""
    hub = hub_of(world)
    stuck = await page_of(world, hub, "kept:a")
    stuck.sink.stalled = True
    await hub.publish("kept:a", 1)
    await world.settle()
    closing = asyncio.ensure_future(hub.aclose())
    await world.settle()
    page = EventSource(hub, world.clock, "room=kept:a&token=ann")
    await page.open()
    says_come_back(page, 1000, 2000)
    stuck.sink.drain()
    await closing


async def test_too_slow_to_let_in(world: World) -> None:
    """A1, F2: whose fault that is decides; it is ours."""

    async def authenticate(credentials: Credentials) -> Identity[None]:
        await sleep(world.clock, 3600)
        return Identity("ann")

    hub = hub_of(world, authenticate=authenticate)
    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a")
    opening = asyncio.ensure_future(page.open(settled=False))
    await world.advance(11)
    assert await opening == 200
    says_come_back(page, 1000, 2000)


async def test_rooms_that_take_too_long_together(world: World) -> None:
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object)

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        await sleep(world.clock, 20)
        return ALL

    await hub.start()
    page = EventSource(hub, world.clock, "room=r:a&room=r:b&token=ann")
    opening = asyncio.ensure_future(page.open(settled=False))
    await world.advance(31)
    assert await opening == 200
    says_come_back(page, 1000, 2000)
    await world.advance(20)
    assert no_one_is_there(hub)


# -- while it opens ------------------------------------------------------------------------------------


def slow_second_room(world: World, **options: Any) -> Hub[Any]:
    hub = hub_of(world, **options)
    rooms = hub.rooms("slow:{x}", publishes=object)

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        await sleep(world.clock, 5)
        return ALL

    return hub


@pytest.mark.parametrize("size", [10, 4_000])
async def test_what_is_published_while_another_room_is_joined_is_not_lost(world: World, size: int) -> None:
    """H2, for all rooms at once: held back until the status is known, then told in order. The reply that is waited for
    comes behind it."""
    hub = slow_second_room(world)
    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a&room=plain:a&room=slow:a&token=ann")
    opening = asyncio.ensure_future(page.open(settled=False))
    await world.settle()
    said = [[n, "x" * size] for n in range(50)]
    for message in said:
        await hub.publish("kept:a", message)
        await hub.publish("plain:a", message)
    await world.advance(6)
    assert await opening == 200
    assert (page.data("kept:a"), page.data("plain:a")) == (said, said)
    assert page.types[0] == "joined"


async def test_more_than_can_be_held_is_not_held(world: World) -> None:
    """D1: the request is answered with a later; what was held is let go of."""
    hub = slow_second_room(world)
    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a&room=slow:a&token=ann")
    opening = asyncio.ensure_future(page.open(settled=False))
    await world.settle()
    for _ in range(6):
        await hub.publish("kept:a", "x" * 200_000)
    await world.settle()
    assert await opening == 200
    says_come_back(page, 1000, 2000)
    await world.advance(6)
    assert no_one_is_there(hub)


async def test_a_client_that_goes_before_it_is_answered(world: World) -> None:
    hub = slow_second_room(world)
    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a&room=slow:a&token=ann")
    asking = asyncio.ensure_future(hub.answer(page.request()))
    await world.settle()
    assert hub.statistics().sessions == 1
    asking.cancel()
    await world.settle()
    assert asking.cancelled()
    await world.advance(6)
    assert no_one_is_there(hub)


async def answered(world: World, hub: Hub[Any], query: str) -> Streaming:
    """An answer that the host has not begun to send."""
    await hub.start()
    asking = asyncio.ensure_future(hub.answer(EventSource(hub, world.clock, query).request()))
    await world.settle()
    found = await asking
    assert isinstance(found, Streaming)
    return found


async def test_an_answer_that_is_never_sent_is_forgotten(world: World) -> None:
    """The host says nothing when its client has gone between the two; and what waits meanwhile is bounded."""
    hub = hub_of(world)
    await answered(world, hub, "room=kept:a&token=ann")
    for _ in range(30):
        await hub.publish("kept:a", "x" * 10_000)
    await world.settle()
    (connection,) = hub.engine.connections
    assert 64_000 < connection.transport.buffered < 80_000
    await world.advance(31)
    assert no_one_is_there(hub)


async def test_what_came_before_the_answer_was_sent_comes_with_it(world: World) -> None:
    """More than is held at once: the rest follows, nothing is lost."""
    hub = hub_of(world)
    answer = await answered(world, hub, "room=kept:a&token=ann")
    for n in range(40):
        await hub.publish("kept:a", str(n) * 5_000)
        await world.settle()
    page = EventSource(hub, world.clock, "")
    page.sink.stream = answer.start(page.sink)
    await page.settle()
    assert page.data() == [str(n) * 5_000 for n in range(40)]


async def test_a_stream_that_was_closed_before_it_began(world: World) -> None:
    """It says what it had, and why it ends."""
    hub = hub_of(world)
    answer = await answered(world, hub, "room=kept:a&token=ann")
    await hub.publish("kept:a", 1)
    await hub.user("ann").close(reason="enough")
    await world.settle()
    assert no_one_is_there(hub)
    assert hub.statistics().deadlines == 0
    page = EventSource(hub, world.clock, "")
    page.sink.stream = answer.start(page.sink)
    await page.settle()
    assert page.types == ["joined", "message", "closed"]
    assert page.ended


async def test_a_host_that_begins_after_all(world: World) -> None:
    hub = hub_of(world)
    answer = await answered(world, hub, "room=kept:a&token=ann")
    await world.advance(31)
    page = EventSource(hub, world.clock, "")
    page.sink.stream = answer.start(page.sink)
    await page.settle()
    assert page.ended
    assert page.types == ["joined"]


# -- how it ends ---------------------------------------------------------------------------------------


async def test_nobody_parks(world: World) -> None:
    """C3: a page comes back to a place, not to a session, which would linger beside its successor."""
    hub = hub_of(world, parks=True)
    page = await page_of(world, hub, "kept:a")
    await page.cut()
    assert no_one_is_there(hub)
    await page.open()
    await hub.user("ann").close(code=3000)
    await world.settle()
    assert no_one_is_there(hub)


async def test_closed_for_good(world: World) -> None:
    """A4: it is said, and the next request, which the browser makes by itself, is the last."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a")
    await hub.publish("kept:a", 1)
    await hub.user("ann").close(code=3503, reason="that\nis enough")
    await page.settle()
    assert page.types == ["joined", "message", "closed"]
    assert page.of("closed") == [{"code": 3503, "reason": "that\nis enough"}]
    assert page.ended
    assert await page.open() == 204
    again = EventSource(hub, world.clock, f"{page.query}&since={page.last_id}")  # a page that wants to, may
    await hub.publish("kept:a", 2)
    assert await again.open() == 200
    assert again.data() == [2]


async def test_closed_but_not_for_good(world: World) -> None:
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a")
    await hub.user("ann").close(code=3000, reason="move")
    await page.settle()
    assert page.ended
    await hub.publish("kept:a", 1)
    assert await page.open() == 200
    assert (page.types, page.data()) == (["joined", "joined", "message"], [1])


async def test_a_revoked_user_is_out_and_stays_out(world: World) -> None:
    """A4."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a")
    await hub.user("ann").revoke(until=world.clock.time() + 60)
    await page.settle()
    assert page.of("closed")[0]["code"] == 4501
    assert await page.open() == 204
    assert await EventSource(hub, world.clock, page.query).open() == 401


class Tokens:
    """``name:seconds``, good until then."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.begun = world.clock.time()

    async def __call__(self, credentials: Credentials) -> Identity[None]:
        name, _, until = (credentials.token or "").partition(":")
        expires_at = self.begun + float(until)
        if expires_at <= self.world.clock.time():
            raise Reject("token expired", code=109)
        return Identity(name, expires_at=expires_at)


async def test_an_expired_token_ends_it(world: World) -> None:
    """T5, A3: said, ended, and the same URL again is answered with 204; a page goes on with a new token."""
    hub = hub_of(world, authenticate=Tokens(world).__call__)
    page = await page_of(world, hub, "kept:a", token="ann:60")
    await world.advance(30)
    await hub.publish("kept:a", 1)
    await world.advance(60)
    assert page.types == ["joined", "message", "expired"]
    assert page.of("expired") == [{"code": 3005, "reason": "expired"}]
    assert page.ended
    await hub.publish("kept:a", 2)
    assert await page.open() == 204
    assert page.text == ""
    renewed = EventSource(hub, world.clock, f"room=kept:a&token=ann:600&since={page.last_id}")
    assert await renewed.open() == 200
    assert renewed.data() == [2]


async def test_a_token_that_was_old_from_the_start(world: World) -> None:
    """Somebody looks at it for the first time: it is told why."""
    hub = hub_of(world, authenticate=Tokens(world).__call__)
    await hub.start()
    page = EventSource(hub, world.clock, "room=kept:a&token=ann:-1")
    assert await page.open() == 401
    assert page.text == "token expired\n"


async def test_taken_out_of_one_room(world: World) -> None:
    """A4: it is told, the others go on, and coming back does not bring it back in."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a", "kept:b", "plain:a")
    await hub.room("kept:a").remove("ann", reason="enough")
    await hub.room("plain:a").remove("ann", reason="here too")
    await page.settle()
    assert page.of("left") == [
        {"room": "kept:a", "code": 2000, "reason": "enough"},
        {"room": "plain:a", "code": 2000, "reason": "here too"},
    ]
    for room in ("kept:a", "kept:b", "plain:a"):
        await hub.publish(room, room)
    await page.settle()
    assert page.data() == ["kept:b"]
    for _ in range(2):  # and the id of the next stream still knows
        await page.cut()
        await hub.publish("kept:b", "more")
        await hub.publish("kept:a", "not for us")
        assert await page.open() == 200
        assert list(page.of("joined")[-1]["rooms"]) == ["kept:b"]
    assert page.data() == ["kept:b", "more", "more"]
    again = EventSource(hub, world.clock, f"{page.query}&since={page.last_id}")  # a page that wants to, may
    await again.open()
    assert len(again.of("joined")[0]["rooms"]) == 3


async def test_taken_out_of_the_last_room(world: World) -> None:
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a")
    await hub.room("kept:a").remove("ann", reason="enough")
    await page.settle()
    assert page.types == ["joined", "left"]
    assert page.ended
    assert await page.open() == 204


async def test_a_right_that_cannot_be_renewed_is_asked_for_again(world: World, errors: Any) -> None:
    """A2: from 2500 on a client joins again, which here is a new stream."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, history=History(9, ttl=600))
    asked: list[int] = []

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("the database is away")
        return Grant(ttl=60)

    page = await page_of(world, hub, "r:a")
    await world.advance(61)
    assert page.ended
    assert page.types == ["joined"]
    await hub.publish("r:a", 1)
    assert await page.open() == 200
    assert page.data() == [1]
    assert len(errors()) == 1


# -- slow and silent -----------------------------------------------------------------------------------


async def test_a_comment_now_and_then(world: World) -> None:
    """F4, T6: the first at a random moment, then every 15 s; nobody has to answer."""
    hub = hub_of(world)
    pages = [await page_of(world, hub, "kept:a") for _ in range(8)]
    await world.advance(7)
    for page in pages:
        await page.settle()
    assert 1 <= sum(page.comments for page in pages) <= 7
    await world.advance(8)
    for page in pages:
        await page.settle()
        assert page.comments == 1
    await world.advance(600)
    for page in pages:
        await page.settle()
        assert page.comments == 41
        assert not page.ended


async def test_a_slow_reader_misses_nothing_and_costs_no_more_than_its_bound(world: World) -> None:
    """D1, D3: what does not fit is read from history when there is room."""
    hub = world.hub(limits=Limits(outbox=1024 * 1024))
    hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(1000, ttl=600))
    page, quick = await page_of(world, hub, "r:a"), await page_of(world, hub, "r:a")
    page.sink.stalled = True
    for n in range(300):
        await hub.publish("r:a", [n, "x" * 10_000])
        if n % 10 == 9:
            await world.settle()
    connection = next(c for c in hub.engine.connections if c.transport.buffered)
    assert connection.transport.buffered + connection.outbox.size < 1_400_000
    await quick.settle()
    assert [n for n, _ in quick.data()] == list(range(300))
    page.sink.drain()
    await page.settle()
    assert [n for n, _ in page.data()] == list(range(300))
    assert page.types.count("gap") == 0


@pytest.mark.parametrize("size", [1_000, 200_000])
async def test_a_reader_that_takes_nothing_for_half_a_minute_is_gone(world: World, size: int) -> None:
    """F4: whether much waits for it or little."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a")
    await world.advance(20)
    page.sink.stalled = True
    await hub.publish("kept:a", "x" * size)
    await world.settle()
    await world.advance(29)
    assert not page.ended
    await world.advance(2)
    assert page.ended
    totals = hub.statistics().totals
    assert totals is not None
    assert totals["closes{3009}"] == 1
    assert hub.statistics().sessions == 0
    page.sink.drain()
    await world.settle()
    assert no_one_is_there(hub)


async def test_a_reader_that_takes_a_little_all_the_time_stays(world: World) -> None:
    """F4: slow is not gone, and no pong is missed by who cannot answer."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a")
    page.sink.stalled = True
    for _ in range(4):
        await hub.publish("kept:a", "x" * 100_000)
    await world.settle()
    for _ in range(20):
        await world.advance(14)
        page.sink.take(1000)
    assert not page.ended
    page.sink.drain()
    await page.settle()
    assert len(page.data()) == 4
    before = page.comments
    await world.advance(60)
    await page.settle()
    assert 3 <= page.comments - before <= 4


async def test_a_stall_of_our_own_is_not_the_readers_fault(world: World) -> None:
    """F5."""
    hub = hub_of(world)
    page = await page_of(world, hub, "kept:a")
    page.sink.stalled = True
    await hub.publish("kept:a", 1)
    await world.settle()
    await world.advance(14)
    world.clock.stall(60)
    await world.settle()
    assert not page.ended


async def test_an_idle_stream_costs_a_deadline_and_no_task(world: World) -> None:
    """C5."""
    hub = hub_of(world)
    await page_of(world, hub, "kept:a")
    before = hub.statistics()
    for _ in range(5):
        await page_of(world, hub, "kept:a")
    now = hub.statistics()
    assert now.tasks == before.tasks
    assert now.deadlines == before.deadlines + 5


def test_the_sink_is_a_stream_pipe() -> None:
    """The tests above prove what they say of a real one's promises."""
    sink: Sequence[str] = [name for name in dir(StreamSink) if not name.startswith("_")]
    assert {"buffered", "write", "write_batch", "end"} <= set(sink)
