"""Which servers a URL or a client names, and who of them is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import Sentinel

from rtkit.brokers.redis.lines import Dialer, Line, pack
from rtkit.brokers.redis.servers import Nowhere, Server, servers_from_client, servers_from_url, slot_of
from rtkit.brokers.redis.topology import Cluster, Sentinels, Standalone
from rtkit.errors import UsageError
from rtkit.testing import ManualClock
from tests.support.scripted_redis import ScriptedRedis, array, bulk, error, slots

pytestmark = pytest.mark.anyio


# -- URLs and clients


@pytest.mark.parametrize(
    ("url", "kind", "label", "database"),
    [
        ("redis://db.example", Standalone, "db.example:6379", 0),
        ("redis://user:hush@db.example:7000/3", Standalone, "db.example:7000", 3),
        ("valkey://:hush@[::1]:7000?db=2", Standalone, "::1:7000", 2),
        ("rediss://db.example", Standalone, "db.example:6379", 0),
        ("valkeys://db.example?ssl_cert_reqs=none", Standalone, "db.example:6379", 0),
        (
            "redis+sentinel://:hush@a,b:1,[::1]:2/main?db=4&sentinel_password=shush",
            Sentinels,
            "main (by Sentinel)",
            4,
        ),
        ("redis+cluster://:hush@a,b:1/0", Cluster, "", 0),
    ],
)
async def test_what_a_url_names(url: str, kind: type[object], label: str, database: int) -> None:
    servers = servers_from_url(url)
    assert isinstance(servers, kind)
    assert servers.sharded is (kind is Cluster)
    assert servers.database == database
    assert "hush" not in repr(servers)
    assert [str(each) for each in servers.primaries()] == ([label] if label else [])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://db", "redis://"),
        ("redis", "redis://"),
        ("redis://:hush@db/zero", "number of a database"),
        ("redis://:hush@db:port", "cannot be read"),
        ("redis://:hush@db?nonsense=1", "nonsense"),
        ("redis://:hush@db?socket_timeout=soon", "cannot be read"),
        ("redis+sentinel://:hush@a:1", "names the service"),
        ("redis+sentinel://:hush@a:x/main", "host:port,host:port"),
        ("redis+sentinel://:hush@a,/main", "host:port,host:port"),
        ("redis+cluster://:hush@a/1", "one database"),
        ("redis+cluster://:hush@a?db=1", "one database"),
        ("redis+cluster://", "host:port,host:port"),
    ],
)
async def test_a_url_that_cannot_be_one_is_refused_and_no_password_repeated(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        servers_from_url(url)
    assert "hush" not in str(caught.value)


async def test_tls_is_taken_from_the_scheme_or_the_query() -> None:
    for url in ("rediss://db", "valkeys://db"):
        assert _kind(servers_from_url(url)) is SSLConnection
    for url in ("redis+cluster://db", "redis+sentinel://db/main"):
        assert _kind(servers_from_url(url)) is Connection
        assert _kind(servers_from_url(f"{url}?ssl=true&ssl_cert_reqs=none")) is SSLConnection


def _kind(servers: object) -> object:
    return servers._dialer._kind  # type: ignore[attr-defined]


async def test_an_existing_client_lends_its_configuration_and_no_connection() -> None:
    client = redis.asyncio.Redis(
        host="db", port=7000, db=3, password="hush", socket_timeout=9, health_check_interval=7
    )
    servers = servers_from_client(client)
    assert isinstance(servers, Standalone)
    assert str(servers.server) == "db:7000"
    assert servers.database == 3
    options = servers._dialer._options
    assert options["password"] == "hush"
    assert "socket_timeout" not in options
    assert "retry" not in options
    connection = servers._dialer.line()._connection
    assert connection.socket_timeout is None
    assert connection.health_check_interval == 0


async def test_a_client_of_a_unix_socket_will_do() -> None:
    servers = servers_from_client(redis.asyncio.Redis(unix_socket_path="/run/redis.sock"))
    assert [str(each) for each in servers.primaries()] == ["/run/redis.sock"]


async def test_a_client_by_sentinel_lends_the_sentinels() -> None:
    make: Any = Sentinel  # it has no types
    sentinel = make([("a", 1), ("b", 2)], sentinel_kwargs={"password": "shush"}, password="hush", db=3)
    servers = servers_from_client(sentinel.master_for("main"))
    assert isinstance(servers, Sentinels)
    assert [each.address for each in servers._sentinels] == [("a", 1), ("b", 2)]
    assert servers._sentinels[0]._options["password"] == "shush"
    assert servers._dialer._options["password"] == "hush"
    assert servers._dialer._kind is Connection
    assert servers.database == 3


async def test_a_client_of_a_cluster_lends_where_to_begin() -> None:
    client = redis.asyncio.RedisCluster(host="a", port=7, password="hush", ssl=True)
    servers = servers_from_client(client)
    assert isinstance(servers, Cluster)
    assert servers._seeds == [Server("a", 7)]
    assert servers._dialer._kind is SSLConnection


async def test_anything_else_is_refused() -> None:
    with pytest.raises(UsageError, match="not a str"):
        servers_from_client("redis://db")


# -- lines


def test_commands_are_packed_as_arrays_of_bytes() -> None:
    assert (
        pack("SET", b"\x00\xff", "ü", 12, "")
        == b"*5\r\n$3\r\nSET\r\n$2\r\n\x00\xff\r\n$2\r\n\xc3\xbc\r\n$2\r\n12\r\n$0\r\n\r\n"
    )


async def test_credentials_are_asked_for_with_each_connection() -> None:
    class Rotating(redis.CredentialProvider):
        given = 0

        def get_credentials(self) -> tuple[str, str]:
            self.given += 1
            return "user", f"password-{self.given}"

    async with ScriptedRedis() as server:
        client = redis.asyncio.Redis(host="127.0.0.1", port=server.port, credential_provider=Rotating())
        servers = servers_from_client(client)
        for _ in range(2):
            line = await servers.connect(servers.primaries()[0], ManualClock())
            line.close()
        passwords = [command[2] for command in server.commands if command[0] == b"AUTH"]
        assert passwords == [b"password-1", b"password-2"]


@pytest.mark.parametrize("role", ["slave", "replica", "sentinel"])
async def test_only_a_primary_will_do(role: str) -> None:
    async with ScriptedRedis() as server:
        server.role = role
        servers = servers_from_url(server.url)
        with pytest.raises(Nowhere, match="no primary"):
            await servers.connect(servers.primaries()[0], ManualClock())
        await ManualClock().settle()
        assert server.live == []


async def test_a_server_that_knows_no_hello_is_taken_at_its_word() -> None:
    async with ScriptedRedis() as server:
        server.answers[b"HELLO"] = error("ERR unknown command 'HELLO'")
        servers = servers_from_url(server.url)
        line = await servers.connect(servers.primaries()[0], ManualClock())
        assert line.role == ""
        line.close()


async def test_closing_a_line_is_idempotent_and_works_outside_of_tasks() -> None:
    async with ScriptedRedis() as server:
        line = Dialer(Connection, {"host": "127.0.0.1", "port": server.port}).line()
        line.close()  # not even open
        await line.open()
        asyncio.get_running_loop().call_soon(line.close)
        await asyncio.sleep(0)
        line.close()
        assert "closed" in repr(line)
        await ManualClock().settle()
        assert server.live == []


# -- Sentinels


def says(port: int, epoch: int) -> bytes:
    """The answer to SENTINEL MASTER."""
    fields = [b"name", b"main", b"ip", b"127.0.0.1", b"port", b"%d" % port, b"config-epoch", b"%d" % epoch]
    return array(*map(bulk, fields))


@asynccontextmanager
async def sentinels(count: int) -> AsyncGenerator[tuple[list[ScriptedRedis], Sentinels, ManualClock]]:
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(ScriptedRedis()) for _ in range(count)]
        for each in found:
            each.role = "sentinel"
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in found)
        servers = servers_from_url(f"redis+sentinel://{hosts}/main")
        assert isinstance(servers, Sentinels)
        yield found, servers, ManualClock()


async def connect(servers: Sentinels, clock: ManualClock) -> asyncio.Task[Line]:
    task = asyncio.create_task(servers.connect(servers.server, clock))
    await clock.settle()
    return task


async def test_the_sentinel_with_the_latest_configuration_is_right() -> None:
    async with sentinels(3) as (found, servers, clock), ScriptedRedis() as old, ScriptedRedis() as new:
        for each, answer in zip(
            found, [says(old.port, 3), says(new.port, 4), says(old.port, 3)], strict=True
        ):
            each.answers[b"SENTINEL"] = answer
        line = await (await connect(servers, clock))
        assert (len(old.peers), len(new.peers)) == (0, 1)
        line.close()


async def test_a_frozen_sentinel_delays_for_a_moment_only() -> None:
    async with sentinels(3) as (found, servers, clock), ScriptedRedis() as server:
        found[0].mute = True
        found[1].answers[b"SENTINEL"] = says(server.port, 1)
        found[2].answers[b"SENTINEL"] = error("ERR No such master with that name")
        task = await connect(servers, clock)
        assert not task.done()
        await clock.advance(0.3)
        (await task).close()
        await clock.settle()
        assert [each.live for each in found] == [[], [], []]
        assert clock.timers == 0


async def test_sentinels_are_asked_anew_for_each_connection() -> None:
    async with sentinels(1) as (found, servers, clock), ScriptedRedis() as one, ScriptedRedis() as two:
        for server in (one, two):
            found[0].answers[b"SENTINEL"] = says(server.port, 1)
            (await (await connect(servers, clock))).close()
        assert (len(one.peers), len(two.peers)) == (1, 1)


async def test_whom_no_sentinel_knows_is_nowhere() -> None:
    async with sentinels(2) as (found, servers, clock):
        found[0].answers[b"SENTINEL"] = error("ERR No such master with that name")
        await found[1].stop()
        with pytest.raises(Nowhere, match=r"Error 111.*No such master"):
            await (await connect(servers, clock))


async def test_a_sentinel_that_still_names_the_old_primary_is_not_believed() -> None:
    async with sentinels(1) as (found, servers, clock), ScriptedRedis() as demoted:
        demoted.role = "slave"
        found[0].answers[b"SENTINEL"] = says(demoted.port, 1)
        with pytest.raises(Nowhere, match="it is a replica"):
            await (await connect(servers, clock))


# -- a Cluster


async def test_slots_are_those_of_redis() -> None:
    assert slot_of("foo") == 12182
    assert slot_of("") == 0
    assert slot_of("123456789") == 0x31C3


async def test_how_a_cluster_lies_is_asked_of_whoever_answers() -> None:
    clock = ManualClock()
    async with ScriptedRedis() as dead, ScriptedRedis() as alive:
        servers = servers_from_url(f"redis+cluster://127.0.0.1:{dead.port},127.0.0.1:{alive.port}")
        alive.answers[b"CLUSTER"] = slots((0, 8191, 7001), (8192, 16383, 7002))
        await dead.stop()
        with pytest.raises(Nowhere):
            servers.server_of("foo")
        await servers.refresh(clock)
        assert str(servers.server_of("foo")) == "127.0.0.1:7002"
        assert [str(each) for each in servers.primaries()] == ["127.0.0.1:7001", "127.0.0.1:7002"]
        version = servers.version
        await servers.refresh(clock)
        assert servers.version == version
        assert clock.timers == 0


async def test_a_frozen_server_of_a_cluster_does_not_hold_up_the_look() -> None:
    clock = ManualClock()
    async with ScriptedRedis() as frozen, ScriptedRedis() as alive:
        frozen.mute = True
        alive.answers[b"CLUSTER"] = slots((0, 16383, alive.port))
        servers = servers_from_url(f"redis+cluster://127.0.0.1:{frozen.port},127.0.0.1:{alive.port}")
        await servers.refresh(clock)
        assert [each.port for each in servers.primaries()] == [alive.port]


async def test_servers_that_tell_no_host_are_where_the_asked_one_is() -> None:
    async with ScriptedRedis() as server:
        servers = servers_from_url(f"redis+cluster://127.0.0.1:{server.port}")
        for host in (b"$-1\r\n", bulk(b""), bulk(b"?")):
            nodes = array(host, array(), bulk(b"id")).replace(b"*0\r\n", b":7001\r\n")
            server.answers[b"CLUSTER"] = array(array(b":0\r\n", b":16383\r\n", nodes))
            await servers.refresh(ManualClock())
            assert [str(each) for each in servers.primaries()] == ["127.0.0.1:7001"]


async def test_what_moved_is_remembered() -> None:
    async with ScriptedRedis() as server:
        server.answers[b"CLUSTER"] = slots((0, 16383, server.port))
        servers = servers_from_url(f"redis+cluster://127.0.0.1:{server.port}")
        await servers.refresh(ManualClock())
        by, version = servers.server_of("foo"), servers.version
        assert servers.moved(slot_of("foo"), "", 7001, by) == Server("127.0.0.1", 7001)
        assert servers.server_of("foo") == Server("127.0.0.1", 7001)
        assert servers.server_of("bar") == by
        assert servers.version != version


async def test_there_is_a_tag_on_every_server_however_few_slots_it_has() -> None:
    async with ScriptedRedis() as server:
        server.answers[b"CLUSTER"] = slots((0, 16382, 7001), (16383, 16383, 7002))
        servers = servers_from_url(f"redis+cluster://127.0.0.1:{server.port}")
        await servers.refresh(ManualClock())
        for each in servers.primaries():
            tag = servers.tag_on(each, "mine")
            assert tag is not None
            assert tag.startswith("mine")
            assert servers.server_of(tag) == each
        assert servers.tag_on(Server("127.0.0.1", 7003), "mine") is None
