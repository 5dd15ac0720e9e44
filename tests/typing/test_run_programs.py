"""The programs that the checkers accept also run: for real, over sockets where the program is a server.

``programs/handler_test.py`` is a test itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import httpx2
import pytest
import websockets.asyncio.client

from rtkit import Gap, Grant, History, Hub, Identity, Message, NotSupported, Published, anonymous
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.client import RoomClient, connect
from rtkit.errors import CallError, ConnectionClosed
from rtkit.testing import TestHub
from tests.support.redises import RedisServer
from tests.support.servers import serve_asgi
from tests.typing.programs import (
    custom_broker,
    fastapi_chat,
    multi_tenant,
    notifications_worker,
    people,
    starlette_primitives,
)

M = TypeVar("M")


async def the_next(room: RoomClient[M]) -> Message[M]:
    item = await asyncio.wait_for(anext(room), 5)
    assert not isinstance(item, Gap)
    return item


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncGenerator[str]:
    async with asyncio.timeout(30), serve_asgi(app) as port:
        yield f"http://127.0.0.1:{port}"


async def test_fastapi_chat() -> None:
    chat = fastapi_chat
    # Twice: the application's one hub runs again in another life.
    for _ in range(2):
        chat.topics.clear()
        async with served(chat.app) as url, httpx2.AsyncClient(base_url=url) as http:
            tokens = {
                user: (await http.post("/login", params={"user": user})).json()["token"]
                for user in ("root", "ann")
            }
            async with (
                connect(f"{url}/rt", token=tokens["root"]) as root,
                root.join(
                    "chat:lobby", receives=(chat.Said, chat.TopicChanged), joined=chat.Welcome
                ) as lobby,
            ):
                assert lobby.join_data == chat.Welcome("anything")
                visit = asyncio.create_task(chat.visit(url, tokens["ann"], until="good night"))
                assert (await the_next(lobby)).data == chat.Said("hello", by="Ann")
                await lobby.send(chat.Topic("typing"))
                assert (await the_next(lobby)).data == chat.TopicChanged("typing")
                response = await http.post("/announce/lobby", params={"text": "good night"})
                assert response.json() == {"offset": 3}
                assert await visit == ["Ann: hello", "topic: typing", "the server: good night"]
                assert (await http.get("/log/lobby")).json() == ["good night", "hello"]


async def test_fastapi_chat_refuses() -> None:
    chat = fastapi_chat
    async with served(chat.app) as url:
        for token in ("nonsense", chat.sign("ann", seconds=-1)):
            with pytest.raises(ConnectionClosed, match="sign in first"):
                async with connect(f"{url}/rt", token=token):
                    pass
        async with connect(f"{url}/rt", token=chat.sign("ann")) as ann:
            with pytest.raises(CallError, match="for the staff only"):
                async with ann.join("chat:staff"):
                    pass
            async with ann.join("chat:lobby") as lobby:
                with pytest.raises(CallError, match="only the staff") as refused:
                    await lobby.send(chat.Topic("mine"))
                assert refused.value.code == 403


async def test_notifications_worker() -> None:
    async def authenticate(credentials: object) -> Identity[None]:
        return Identity("org:7/ann")

    worker = notifications_worker
    backend = MemoryBackend()
    hub = Hub(authenticate=authenticate, broker=MemoryBroker(backend))
    hub.include(worker.router)
    async with (
        served(hub) as url,
        connect(url) as ann,
        ann.join(worker.room_of("org:7/ann"), receives=(worker.ExportReady, worker.ExportFailed)) as room,
    ):
        published = await worker.main(MemoryBroker(backend))
        assert [each.duplicate for each in published] == [False, False, True]
        assert (await the_next(room)).data == worker.ExportReady("/exports/a.csv")
        told = await the_next(room)
        assert isinstance(told.data, worker.ExportFailed)
        assert told.sender is None
        assert told.position == published[1].position


async def test_notifications_worker_alone() -> None:
    published = await notifications_worker.main()
    assert all(isinstance(each, Published) and each.position is not None for each in published)


async def test_notifications_without_an_event_loop() -> None:
    worker = notifications_worker
    jobs = [worker.Job("a", "ann", 10), worker.Job("b", "ann", 10_000_000), worker.Job("a", "ann", 10)]

    def run(url: str) -> list[Published]:
        tasks = worker.Tasks(url)
        told = [tasks.export(job) for job in jobs]
        tasks.publisher.close()
        return told + worker.cron(url, jobs)

    with RedisServer() as redis:
        published = await asyncio.to_thread(run, redis.url)
        assert [each.duplicate for each in published] == [False, False, True, True, True, True]
        hub = Hub(authenticate=anonymous, broker=redis.url)
        hub.include(worker.router)
        async with hub:
            page = await hub.room(worker.room_of("ann")).history()
    assert [message.data for message in page.messages] == [worker.outcome(job) for job in jobs[:2]]


async def test_starlette_primitives() -> None:
    def open_socket(url: str) -> Any:
        return websockets.asyncio.client.connect(f"{url.replace('http', 'ws')}/ticker/ACME")

    async with (
        served(starlette_primitives.app) as url,
        httpx2.AsyncClient(base_url=url) as http,
        open_socket(url) as one,
    ):
        assert json.loads(await one.recv()) == {"symbol": "ACME", "watching": 1}
        async with open_socket(url) as two:
            assert json.loads(await two.recv())["watching"] == 2
            await one.send("100")
            assert await two.recv() == "100"
            assert await one.recv() == "100"
            assert json.loads(await one.recv()) == {"told": 2}
            assert (await http.get("/status")).json() == {"rooms": 1, "members": 2}
    assert len(starlette_primitives.registry) == 0


async def test_custom_broker() -> None:
    a, b = custom_broker.make_cluster()
    async with (
        served(a) as url_a,
        served(b) as url_b,
        connect(url_a) as ann,
        connect(url_b) as bob,
        ann.join("lobby") as hers,
        bob.join("lobby") as his,
    ):
        await hers.send({"hello": [1, 2]})
        for room in (hers, his):
            assert (await the_next(room)).data == {"hello": [1, 2]}
        await b.publish("lobby", "from a node")
        for room in (hers, his):
            assert (await the_next(room)).data == "from a node"


async def test_a_plain_broker_keeps_no_history() -> None:
    hub = Hub(authenticate=anonymous, broker=custom_broker.BusBroker(custom_broker.Bus()))
    hub.rooms("chat", publishes=object, history=History(10, ttl=60), grant=Grant())
    with pytest.raises(NotSupported, match="BusBroker"):
        await hub.start()


async def test_multi_tenant() -> None:
    tenant = multi_tenant
    hub = tenant.make_hub()
    tenant.calls.clear()
    async with served(hub) as url:
        lines = await tenant.write_document(url, "token-ann", "acme", "first line")
        assert lines == ["ann@acme: first line"]
        assert tenant.calls == ["acme/ann"] * 2
        # Another tenant's document, for an owner; one's own, for a reader; and one too long.
        with pytest.raises(CallError, match="another tenant's"):
            await tenant.write_document(url, "token-eve", "acme", "mine now")
        with pytest.raises(CallError) as refused:
            await tenant.write_document(url, "token-rob", "acme", "a word")
        assert refused.value.code == 103
        async with connect(url, token="token-ann") as ann, ann.join("tenant:acme:doc:1") as room:
            with pytest.raises(CallError, match="at most 100") as refused:
                await room.send({"text": "x" * 101}, name="Edit")
            assert refused.value.code == 107
        with pytest.raises(ConnectionClosed):
            await tenant.write_document(url, "token-nobody", "acme", "")
        async with (
            connect(url, token="token-rob") as rob,
            connect(url, token="token-eve") as eve,
            rob.join("tenant:acme:news", receives=tenant.Notice) as his,
            eve.join("tenant:evil:news", receives=tenant.Notice) as hers,
        ):
            await tenant.announce(hub, "acme", "for acme")
            await tenant.announce(hub, "evil", "for evil")
            assert (await the_next(his)).data == {"text": "for acme"}
            assert (await the_next(hers)).data == {"text": "for evil"}


async def test_multi_tenant_cursors() -> None:
    tenant = multi_tenant
    hub = tenant.make_hub()
    room = "tenant:acme:doc:1"
    async with (
        served(hub) as url,
        connect(url, token="token-ann") as ann,
        connect(url, token="token-rob") as rob,
        ann.join(room, receives=tenant.Edited) as hers,
        rob.join(room) as his,
    ):
        seen = his.signals(tenant.Cursor)
        await hers.send(tenant.Cursor(7))
        signal = await asyncio.wait_for(anext(seen), 5)
        assert (signal.data, signal.sender) == (tenant.Cursor(7), "ann")


async def test_people() -> None:
    async with TestHub(people.make_hub()) as t:
        ann, bob = await t.connect(Identity("ann")), await t.connect(Identity("bob"))
        window = people.Window()
        t.spawn(people.watch, ann, window)
        await t.clock.advance(1)
        his = await bob.join("chat:lobby", receives=people.Said, presence=True, receipts=True)
        hers = await t.connect(Identity("ann"))
        tablet = await hers.join("chat:lobby", receives=people.Said, presence=True, receipts=True)
        await t.clock.advance(1)
        assert sorted(member.user for member in window.here.values()) == ["ann", "ann", "bob"]
        assert people.devices(his) == {"ann": 2, "bob": 1}
        t.spawn(people.follow, his, window)
        assert people.key_pressed(tablet, 1.0)
        await t.clock.advance(1)
        assert window.typists == ("ann",)
        await t.hub.publish("chat:lobby", people.Said("hi"))
        await t.settle()
        assert tablet.receipts.unread == 1
        t.spawn(people.read, tablet, window)
        changes = his.receipts.changes()
        await t.clock.advance(3)
        assert people.moved(await anext(changes)) == ["ann"]
        assert people.last_read(his, "ann") == tablet.position
        assert window.unread == 0
