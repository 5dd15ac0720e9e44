"""What the kit cannot do to a backend it does not know: what is special about NATS, and what can go wrong with it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest
from cable import Cable
from nats.aio.client import Client
from nats_server import LARGE, NatsServer
from rtkit_nats import NatsBroker, Settings
from rtkit_nats.link import Link

from rtkit.errors import BrokerUnavailable, InvalidMessage, PublishUnknown
from rtkit.messages import History
from rtkit.position import Position
from rtkit.testing.conformance import Delivery, Node, RecordingSink

PLENTY = History(1000, ttl=86400.0)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def settings() -> Settings:
    return Settings(prefix=f"f{secrets.token_hex(4)}", patience=1.0)


@asynccontextmanager
async def opened(url: str, settings: Settings, **options: Any) -> AsyncGenerator[Node]:
    broker, sink = NatsBroker(url, settings=settings, **options), RecordingSink()
    await broker.open(sink)
    try:
        yield Node(broker, sink, 10.0)
    finally:
        await broker.aclose()


@asynccontextmanager
async def client(server: NatsServer) -> AsyncGenerator[Client]:
    """A client of NATS that knows nothing of rtkit."""
    there = await nats.connect(server.url)
    try:
        yield there
    finally:
        await there.close()


async def fill(node: Node, count: int, history: History = PLENTY, *, key: str | None = None) -> Position:
    position = Position("", 0)
    for number in range(count):
        name = f"{key}{number}" if key else None
        position = (await node.broker.append("t", b"%d" % number, history=history, key=name)).position
    return position


async def again(call: Callable[[], Any]) -> Any:
    """Until the server is there again."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except (BrokerUnavailable, PublishUnknown):
                await asyncio.sleep(0.02)


async def messages(server: NatsServer, settings: Settings) -> int:
    """How many JetStream keeps."""
    async with client(server) as there:
        return (await there.jetstream().stream_info(settings.prefix)).state.messages


# -- a server that goes back


async def test_after_a_power_cut_nobody_takes_new_messages_for_lost_ones(
    tmp_path: Path, settings: Settings
) -> None:
    with NatsServer(tmp_path / "own") as server:
        async with opened(server.url, settings) as node:
            on_disk = await fill(node, 2)
            shutil.copytree(server.store, tmp_path / "disk")
            acknowledged = await fill(node, 3)
        # The machine loses its power: the last three never got to the disk.
        server.stop()
        server.roll_back(tmp_path / "disk")
        await asyncio.to_thread(server.start)
        # Nobody is left who remembers, and as many come as were lost, and more.
        async with opened(server.url, settings) as node:
            top = await fill(node, 5)
            assert top.offset == 7
            assert top.epoch != acknowledged.epoch == on_disk.epoch
            # Who had not seen more than what is left goes on; who had is told.
            went_on = await node.broker.read("t", since=on_disk)
            assert ([entry.offset for entry in went_on.entries], went_on.lost) == ([3, 4, 5, 6, 7], None)
            assert (await node.broker.read("t", since=acknowledged)).lost == "rollback"


async def test_what_went_back_behind_our_back_begins_a_new_epoch(
    server: NatsServer, settings: Settings
) -> None:
    """As in a cluster, where a server's life says nothing, and a majority has lost its disks."""
    async with opened(server.url, settings) as node, client(server) as there:
        old = await fill(node, 5)
        subject = f"{settings.prefix}.in.t.%%.log"
        for _ in range(2):
            last = await there.jetstream().get_msg(settings.prefix, subject=subject)
            await there.jetstream().delete_msg(settings.prefix, last.seq)
        page = await node.broker.read("t", since=old)
        assert (page.top, page.lost) == (3, "rollback")
        assert page.epoch != old.epoch
        assert (await node.broker.read("t", since=Position(old.epoch, 3))).lost is None


# -- a server that does not answer


async def test_a_frozen_server_costs_no_more_than_patience(server: NatsServer, settings: Settings) -> None:
    async with opened(server.url, settings) as node:
        await node.broker.subscribe(["t"])
        await fill(node, 1)
        server.freeze()
        try:
            async with asyncio.timeout(4 * settings.patience):
                found = await asyncio.gather(
                    node.broker.read("t"),
                    node.broker.subscribe(["u"]),
                    node.broker.publish("t", b""),
                    node.broker.append("v", b"", history=PLENTY),
                    return_exceptions=True,
                )
        finally:
            server.thaw()
        kinds = [BrokerUnavailable, BrokerUnavailable, PublishUnknown, BrokerUnavailable]
        assert [type(one) for one in found] == kinds
        assert (await again(lambda: node.broker.read("t"))).top == 1


async def test_an_append_without_an_answer_is_unknown(server: NatsServer, settings: Settings) -> None:
    async with opened(server.url, settings) as node:
        await fill(node, 1)
        server.freeze()
        try:
            with pytest.raises(PublishUnknown):
                await node.broker.append("t", b"x", history=PLENTY, key="k")
        finally:
            server.thaw()
        repeated = await again(lambda: node.broker.append("t", b"x", history=PLENTY, key="k"))
        assert repeated.position.offset == 2
        assert (await node.broker.read("t")).top == 2


async def test_nothing_is_left_of_a_broker_that_was_closed(server: NatsServer, settings: Settings) -> None:
    before = asyncio.all_tasks()
    async with opened(server.url, settings) as node:
        await node.broker.subscribe([f"t{n}" for n in range(20)])
        await fill(node, 3)
        assert len(asyncio.all_tasks()) > len(before)
    assert asyncio.all_tasks() == before
    cable = Cable(server.port)
    await cable.plug_in()
    async with opened(f"nats://127.0.0.1:{cable.port}", settings) as node:
        await node.broker.subscribe(["t"])
        await cable.pull_out()
        with pytest.raises(BrokerUnavailable):
            await node.broker.read("t")
    assert asyncio.all_tasks() == before


async def test_a_frozen_server_does_not_hold_up_closing(server: NatsServer, settings: Settings) -> None:
    before = asyncio.all_tasks()
    async with opened(server.url, settings) as node:
        server.freeze()
        try:
            # More than fits into the buffers of the socket.
            large = [asyncio.ensure_future(node.broker.publish("t", b"x" * 5_000_000)) for _ in range(4)]
            await asyncio.wait(large, timeout=0.1)
            async with asyncio.timeout(5):
                await node.broker.aclose()
            found = await asyncio.gather(*large, return_exceptions=True)
            assert {type(one) for one in found} == {PublishUnknown}
        finally:
            server.thaw()
    assert asyncio.all_tasks() == before


async def test_a_cancellation_is_not_swallowed(server: NatsServer, settings: Settings) -> None:
    async with opened(server.url, settings) as node:
        for call in (
            lambda: node.broker.publish("t", b""),
            lambda: node.broker.append("t", b"", history=PLENTY),
            lambda: node.broker.read("t"),
            lambda: node.broker.subscribe([f"t{number}" for number in range(50)]),
        ):
            task = asyncio.ensure_future(call())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


# -- what somebody else does to our stream


async def test_a_stream_that_was_deleted_is_made_again(server: NatsServer, settings: Settings) -> None:
    async with opened(server.url, settings) as node, client(server) as there:
        await node.broker.subscribe(["t"])
        old = await fill(node, 2)
        await there.jetstream().delete_stream(settings.prefix)
        page = await again(lambda: node.broker.read("t", since=old))
        assert (page.lost, page.top) == ("epoch", 0)
        await again(lambda: node.broker.publish("t", b"heard"))
        await node.until(lambda: Delivery("t", b"heard", None) in node.sink.delivered, "it is not subscribed")


async def test_foreign_messages_are_passed_over(server: NatsServer, settings: Settings) -> None:
    async with opened(server.url, settings) as node, client(server) as there:
        await node.broker.subscribe(["t"])
        await fill(node, 1)
        for subject in (f"{settings.prefix}.in.t.%%.log", f"{settings.prefix}.out.t.%%"):
            await there.publish(subject, b"who are you?")
        await there.flush()
        await fill(node, 1)
        page = await node.broker.read("t")
        assert [entry.offset for entry in page.entries] == [1, 2]
        assert [found.position for found in await node.quiet("t")] == [
            Position(page.epoch, 1),
            Position(page.epoch, 2),
        ]
        assert node.sink.interruptions == ["t", "t"]
        # Somebody who has seen nothing of it yet finds the same.
        async with opened(server.url, settings) as other:
            assert await other.broker.read("t") == page


async def test_a_stream_that_is_no_use_is_refused(server: NatsServer, settings: Settings) -> None:
    async with client(server) as there:
        await there.jetstream().add_stream(name=settings.prefix, subjects=[f"{settings.prefix}.in.*.*.*"])
        with pytest.raises(BrokerUnavailable, match="choose another prefix"):
            async with opened(server.url, settings):
                pass


# -- servers and hubs that are too small


async def test_what_this_process_is_too_slow_for_is_said_to_be_missed(
    server: NatsServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtkit_nats.connection.PENDING", 1)
    async with opened(server.url, settings) as node, opened(server.url, settings) as other:
        await node.broker.subscribe(["t", "u"])
        await asyncio.gather(*(other.broker.publish("t", b"%d" % number) for number in range(200)))
        await node.until(lambda: "t" in node.sink.interruptions, "payloads were dropped in silence")
        assert len(node.sink.of("t")) < 200
        assert "u" not in node.sink.interruptions


async def test_a_server_that_takes_less_is_not_sent_more(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with NatsServer(tmp_path, "max_payload: 1MB") as server, caplog.at_level(logging.WARNING, "rtkit_nats"):
        async with opened(server.url, settings) as node:
            assert "set max_payload to 8MB" in caplog.text
            for call in (
                lambda: node.broker.publish("t", b"x" * 1_048_576),
                lambda: node.broker.append("t", b"x" * 1_048_576, history=PLENTY),
            ):
                with pytest.raises(InvalidMessage, match="max_payload in its configuration"):
                    await call()
            await node.broker.publish("t", b"x" * 1_000_000)
            assert node.sink.interruptions == []


async def test_one_server_does_not_replicate(server: NatsServer, settings: Settings) -> None:
    async with opened(server.url, settings) as node:
        with pytest.raises(BrokerUnavailable, match="replicas=3"):
            await node.broker.append("t", b"", history=PLENTY, durability="replicated")


async def test_a_password_is_asked_for_and_not_repeated(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    config = f"{LARGE}\nauthorization {{ user: ann, password: secret }}"
    with NatsServer(tmp_path, config) as server, caplog.at_level(logging.DEBUG):
        url = f"nats://ann:{{}}@127.0.0.1:{server.port}?prefix={settings.prefix}&patience=1"
        broker = NatsBroker.from_url(url.format("secret"))
        await broker.open(RecordingSink())
        await broker.publish("t", b"")
        await broker.aclose()
        wrong = NatsBroker.from_url(url.format("geheim"))
        with pytest.raises(BrokerUnavailable) as caught:
            await wrong.open(RecordingSink())
        assert "geheim" not in str(caught.value) + repr(wrong) + caplog.text
        assert "secret" not in repr(broker) + caplog.text


async def test_a_hub_needs_no_more_rights_than_the_page_says(tmp_path: Path, settings: Settings) -> None:
    rights = f'publish: ["{settings.prefix}.in.>", "$JS.API.>"], subscribe: ["{settings.prefix}.out.>", "_INBOX.>"]'
    config = (
        f"{LARGE}\nauthorization {{ users: [{{ user: ann, password: x, permissions: {{ {rights} }} }}] }}"
    )
    options = {"user": "ann", "password": "x"}
    with NatsServer(tmp_path, config) as server:
        async with opened(server.url, settings, options=options) as node:
            await node.broker.subscribe(["t"])
            await fill(node, 3)
            assert len(await node.quiet("t")) == 3
            assert (await node.broker.read("t")).top == 3
            assert await node.broker.put("k", "f", b"", ttl=9.0)
            await node.broker.clear("t")
            await node.broker._running.streams.tidy("t")


# -- what is given back, and what is asked


async def test_what_is_trimmed_is_given_back(server: NatsServer, settings: Settings) -> None:
    async with opened(server.url, settings) as node:
        await fill(node, 200, History(5, ttl=86400.0))
        for _ in range(500):
            if await messages(server, settings) < 100:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("nothing was given back")
        page = await node.broker.read("t")
        assert (page.top, page.floor) == (200, 195)
        async with opened(server.url, settings) as other:
            assert await other.broker.read("t") == page


async def test_what_has_aged_is_given_back_and_the_top_stays(server: NatsServer, settings: Settings) -> None:
    settings = replace(settings, dedupe_window=0.05)
    async with opened(server.url, settings) as node:
        top = await fill(node, 3, History(100, ttl=0.05), key="k")
        await asyncio.sleep(0.1)
        await node.broker._running.streams.tidy("t")
        assert await messages(server, settings) == 1
        async with opened(server.url, settings) as other:
            page = await other.broker.read("t", since=top)
            assert (page.position, page.floor, page.lost) == (top, 3, None)
            assert (await fill(other, 1)).offset == 4


async def test_of_many_who_read_at_once_few_ask(
    server: NatsServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    last = Link.last

    async def counted(self: Link, subject: str) -> Any:
        nonlocal asked
        asked += 1
        return await last(self, subject)

    async with opened(server.url, settings) as node:
        await fill(node, 3)
        monkeypatch.setattr(Link, "last", counted)
        pages = await asyncio.gather(*(node.broker.read("t") for _ in range(100)))
        assert {page.top for page in pages} == {3}
        assert asked <= 2


async def test_who_hears_a_topic_has_nothing_to_read(
    server: NatsServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, settings) as node, opened(server.url, settings) as other:
        await node.broker.subscribe(["t"])
        await node.broker.read("t")
        await fill(other, 10)
        await node.got("t", 10)

        async def never(self: Link, subject: str, sequence: int, limit: int = 0) -> Any:
            pytest.fail("it has heard all that there is to know")

        monkeypatch.setattr(Link, "after", never)
        assert (await node.broker.read("t", limit=0)).top == 10
        assert (await node.broker.append("t", b"", history=PLENTY)).position.offset == 11
