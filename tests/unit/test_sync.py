"""Publishing without an event loop: threads, forks, interrupts, the end of the process (B8)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import rtkit.sync
from rtkit import Grant, History, InvalidMessage, NotRunning, NotSupported, Router, UnknownRoom, UsageError
from rtkit.brokers import MemoryBroker
from rtkit.errors import BrokerUnavailable, PublishUnknown
from rtkit.sync import Publisher
from tests.support.linebroker import PATIENCE, LineBroker, LineServer, install_line_broker

ROOT = Path(__file__).parents[2]


@dataclass
class Notice:
    text: str


def declare() -> Router[Any]:
    router: Router[Any] = Router()
    router.rooms("user:{user}", publishes=Notice, grant=Grant())
    router.rooms("live", publishes=object, grant=Grant())
    router.rooms("kept", publishes=object, grant=Grant(), history=History(10, ttl=60))
    return router


@pytest.fixture
def server() -> Iterator[LineServer]:
    with LineServer() as running:
        yield running


@pytest.fixture
def publisher(server: LineServer) -> Iterator[Publisher]:
    made = Publisher(server.broker(), declare())
    yield made
    server.release()
    made.close()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert portals() == []


def portals() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rtkit-publisher"]


@contextlib.contextmanager
def in_a_thread(func: Callable[[], Any]) -> Generator[Callable[[], Any]]:
    """Run it in another thread meanwhile; calling what is given waits for its result."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(func)
        yield lambda: future.result(PATIENCE)


# -- as it is used ----------------------------------------------------------------------------------------


def test_it_publishes_over_one_connection_that_the_first_opens(
    server: LineServer, publisher: Publisher
) -> None:
    assert repr(publisher).startswith("<rtkit.sync.Publisher closed on ")
    assert (server.connections, portals()) == (0, [])
    published = publisher.publish("user:ann", Notice("ready"), key="k")
    assert (published.position, published.duplicate) == (None, False)
    publisher.publish("live", [1])
    assert [(topic, data) for _, _, topic, data in server.lines] == [
        ("room:user:ann", {"event": "Notice", "data": {"text": "ready"}}),
        ("room:live", [1]),
    ]
    assert (server.connections, len(portals())) == (1, 1)
    assert repr(publisher).startswith("<rtkit.sync.Publisher open on ")


def test_a_block_opens_and_closes_it(server: LineServer) -> None:
    with Publisher(server.broker(), declare()) as publisher:
        assert len(portals()) == 1
        publisher.publish("live", 1)
    assert portals() == []
    server.wait_until_closed()
    assert server.byes == [1]


def test_it_is_opened_again_after_it_was_closed(server: LineServer, publisher: Publisher) -> None:
    publisher.close()  # before the first use, too
    for n in range(3):
        publisher.publish("live", n)
        publisher.close()
        publisher.close()
        assert portals() == []
    server.wait_until_closed()
    assert (server.said(), sorted(server.byes)) == ([0, 1, 2], [1, 2, 3])


def test_many_threads_at_once(server: LineServer, publisher: Publisher) -> None:
    """And none of them waits for the others' publications."""
    barrier = threading.Barrier(16)

    def work(n: int) -> None:
        barrier.wait(PATIENCE)
        for m in range(10):
            publisher.publish("live", [n, m])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert sorted(server.said()) == [[n, m] for n in range(16) for m in range(10)]
    for n in range(16):
        assert [said for said in server.said() if said[0] == n] == [[n, m] for m in range(10)]
    assert (server.connections, len(portals())) == (1, 1)
    server.hold()
    with in_a_thread(lambda: publisher.publish("live", "held")) as first:
        server.wait_for(161)
        with in_a_thread(lambda: publisher.publish("live", "held as well")) as second:
            server.wait_for(162)
            server.release()
            first()
            second()


# -- misuse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broker", ["memory://", "Memory://?dedupe_window=5", MemoryBroker()])
def test_memory_is_refused(broker: Any) -> None:
    """API 1."""
    with pytest.raises(UsageError, match="reaches nobody.*anyio.from_thread.run"):
        Publisher(broker, declare())


def test_what_is_wrong_is_said_before_anything_is_opened(server: LineServer, publisher: Publisher) -> None:
    with pytest.raises(UnknownRoom, match="matches 'chat:a'"):
        publisher.publish("chat:a", 1)
    with pytest.raises(InvalidMessage, match="publishes Notice, not str"):
        publisher.publish("user:ann", "x")
    with pytest.raises(UsageError, match="no broker for nothing://"):
        Publisher("nothing://", declare())
    for wrong in (0, -1, float("nan")):
        with pytest.raises(UsageError, match=r"timeout=…\) is a number of seconds above 0 or None, not "):
            Publisher(server.broker(), declare(), timeout=wrong)
    assert (server.connections, portals()) == (0, [])
    with pytest.raises(NotSupported, match="LineBroker keeps no history"):
        publisher.publish("kept", 1)
    publisher.publish("live", 1)


async def test_where_an_event_loop_runs_it_is_refused(server: LineServer, publisher: Publisher) -> None:
    """It would block that. In a thread of its own it does not."""
    with pytest.raises(UsageError, match=r"publish of .* would block the event loop.*rtkit.Publisher"):
        publisher.publish("live", 1)
    with pytest.raises(UsageError, match=r"would block the event loop"), publisher:
        pass
    assert portals() == []
    await asyncio.to_thread(publisher.publish, "live", 2)
    assert server.said() == [2]
    await asyncio.to_thread(publisher.close)


# -- when things fail -------------------------------------------------------------------------------------


def test_a_broker_that_is_away_at_first() -> None:
    """B4."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    publisher = Publisher(LineBroker("127.0.0.1", port), declare())
    with pytest.raises(BrokerUnavailable):
        publisher.publish("live", 1)
    with pytest.raises(BrokerUnavailable), publisher:
        pass
    with LineServer(port) as server:
        publisher.publish("live", 2)
        assert server.said() == [2]
        publisher.close()


@contextlib.contextmanager
def nobody_accepts() -> Generator[int]:
    """A port with a queue of those who wait that is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def test_the_time_limit(server: LineServer) -> None:
    """Nothing was stored while there was no connection; after that, nobody knows."""
    with nobody_accepts() as port:
        away = Publisher(LineBroker("127.0.0.1", port), declare(), timeout=0.05)
        with pytest.raises(BrokerUnavailable, match=r"could not be reached within 0\.05 s"):
            away.publish("live", 1)
        away.close()
    server.hold()
    silent = Publisher(server.broker(), declare(), timeout=0.05)
    with pytest.raises(PublishUnknown, match=r"did not answer within 0\.05 s"):
        silent.publish("live", 1)
    silent.close()


def test_closing_waits_for_what_others_publish(server: LineServer, publisher: Publisher) -> None:
    publisher.publish("live", 0)
    server.hold()
    with in_a_thread(lambda: publisher.publish("live", 1)) as published:
        server.wait_for(2)
        with in_a_thread(publisher.close) as closed:
            server.release()
            assert published().duplicate is False
            closed()
    server.wait_until_closed()
    assert server.byes == [1]


def test_closing_waits_for_what_has_not_begun(server: LineServer) -> None:
    """Somebody opens it, and somebody else closes it before its thread has had a turn."""
    model = rtkit.Publisher(server.broker(), declare())
    portal = rtkit.sync._Portal(model)
    future = portal.submit(rtkit.Publisher.publish, "live", 1)
    portal.end()
    portal.start()
    assert future.result(PATIENCE).duplicate is False
    portal.join()
    server.wait_until_closed()
    assert (server.said(), server.byes) == ([1], [1])


def test_closing_does_not_wait_for_ever(
    server: LineServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtkit.sync, "GRACE", 0.05)
    server.hold()

    def publish() -> None:
        with pytest.raises(PublishUnknown, match="the publisher was closed"):
            publisher.publish("live", 1)

    with in_a_thread(publish) as published:
        server.wait_for(1)
        publisher.close()
        published()
    assert portals() == []


class Ending(LineBroker):
    """Its every publication ends the thread."""

    async def publish(self, topic: str, payload: bytes) -> None:
        raise SystemExit


def test_a_thread_that_has_died_is_replaced(server: LineServer, caplog: pytest.LogCaptureFixture) -> None:
    publisher = Publisher(Ending("127.0.0.1", server.port), declare())
    for _ in range(2):
        with pytest.raises(SystemExit):
            publisher.publish("live", 1)
        assert publisher._portal is not None
        publisher._portal.join()
    server.wait_until_closed(2)
    assert (server.connections, sorted(server.byes)) == (2, [1, 2])
    assert [each.message for each in caplog.records] == [
        "the thread of a publisher has ended; the next publication starts another"
    ] * 2
    publisher.close()


def test_one_that_is_garbage_ends_its_thread(server: LineServer) -> None:
    publisher = Publisher(server.broker(), declare())
    publisher.publish("live", 1)
    [thread] = portals()
    holder = [publisher]
    del publisher
    with pytest.warns(ResourceWarning, match="unclosed <rtkit.sync.Publisher open on"):
        holder.clear()
    thread.join(PATIENCE)
    server.wait_until_closed()
    assert server.byes == [1]


def test_who_publishes_while_it_is_being_opened_in_the_same_thread(
    server: LineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler. No thread is left over."""
    start = rtkit.sync._Portal.start
    made: list[Publisher] = []
    handled: list[str] = []

    def interrupted(portal: Any) -> None:
        start(portal)
        if not handled:
            handled.append("once")
            made[0].publish("live", "from the handler")

    monkeypatch.setattr("rtkit.publisher.open_url", lambda url, *, clock: LineBroker.from_url(url))
    monkeypatch.setattr(rtkit.sync._Portal, "start", interrupted)
    made.append(Publisher(server.url, declare()))
    made[0].publish("live", "from below")
    assert server.said() == ["from the handler", "from below"]
    made[0].close()
    for thread in portals():  # the one that was made in vain is ending
        thread.join(PATIENCE)


def test_no_thread_can_be_started_any_more(
    server: LineServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NotRunning, match="cannot have a thread: can't create new thread"):
            publisher.publish("live", 1)
    publisher.publish("live", 2)


# -- whole processes --------------------------------------------------------------------------------------

Run = Callable[[str], "subprocess.Popen[str]"]

PRELUDE = """
import os, signal, sys, threading
import rtkit.sync
from rtkit import Grant, Router
from rtkit.sync import Publisher

router = Router()
router.rooms("live", publishes=object, grant=Grant())
publisher = Publisher(sys.argv[1], router)
"""


@pytest.fixture
def run(server: LineServer, tmp_path: Path) -> Iterator[Run]:
    """Start a program that has a ``publisher``. It shows every warning, once."""
    install_line_broker(tmp_path)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    started: list[subprocess.Popen[str]] = []

    def start(source: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "default", "-c", PRELUDE + textwrap.dedent(source), server.url],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:  # the test has failed; its children go too
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def end(process: subprocess.Popen[str]) -> str:
    """What it has written; it must end well and silently."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"it hangs\n{out}\n{err}", pytrace=False)
    assert (process.returncode, err) == (0, ""), out
    return out


@pytest.mark.parametrize("how", ["", "sys.exit()", "warnings.simplefilter('ignore'); del publisher"])
def test_a_program_that_does_not_close_it_ends(server: LineServer, run: Run, how: str) -> None:
    """And the connection is closed as it should be, even if that takes a while."""
    process = run(
        f"""
        import asyncio, warnings
        from tests.support.linebroker import LineBroker
        class Slow(LineBroker):
            async def aclose(self):
                await asyncio.sleep(0.2)
                await super().aclose()
        publisher = Publisher(Slow.from_url(sys.argv[1]), router)
        publisher.publish('live', 1)
        {how}
        """
    )
    end(process)
    server.wait_until_closed()
    assert (server.said(), server.byes) == ([1], [1])


def test_a_program_ends_while_its_daemons_publish(server: LineServer, run: Run) -> None:
    server.hold()
    process = run(
        """
        rtkit.sync.GRACE = 0.05
        def publish():
            try:
                publisher.publish("live", 1)
            except rtkit.PublishUnknown as error:
                print(error, flush=True)
                unknown.set()
        unknown = threading.Event()
        threading.Thread(target=publish, daemon=True).start()
        import atexit
        atexit._clear()  # what was registered first runs last
        atexit.register(unknown.wait, 10)
        atexit.register(rtkit.sync._close_all)
        sys.stdin.readline()
        """
    )
    server.wait_for(1)
    assert end(process) == "the publisher was closed while this was being published\n"


def test_a_program_that_publishes_in_an_exit_handler(server: LineServer, run: Run) -> None:
    end(run("import atexit; atexit.register(publisher.publish, 'live', 'goodbye')"))
    server.wait_until_closed()
    assert (server.said(), server.byes) == (["goodbye"], [1])


def test_an_interrupt(server: LineServer, run: Run) -> None:
    """Who waits is free at once, what it waited for is given up, and the next publication goes well."""
    server.hold()
    process = run(
        """
        # Who is started in the background inherits that it is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        publisher = Publisher(sys.argv[1], router, timeout=None)

        def is_waiting():
            frame = sys._current_frames()[threading.main_thread().ident]
            while frame is not None and frame.f_code.co_name != "result":
                frame = frame.f_back
            return frame is not None

        def interrupt():
            sys.stdin.readline()
            while not is_waiting():
                pass
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            publisher.publish("live", 1)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        while publisher._portal._busy:
            pass
        publisher.publish("live", 2)
        """
    )
    server.wait_for(1)
    assert process.stdin is not None
    process.stdin.write("now\n")
    process.stdin.flush()
    server.wait_for(2)
    server.release()
    assert end(process) == "interrupted\n"
    assert server.connections == 1


WORKERS = """
import gc

def work(name):
    def publish(n):
        for m in range(5):
            publisher.publish("live", [name, n, m])
    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

def fork(n):
    pid = os.fork()
    if pid:
        return pid
    work(n)
    gc.collect()
    sys.exit()  # as gunicorn's workers end: with exit handlers, and everything finalized

def wait(pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
"""


def test_prefork(server: LineServer, run: Run) -> None:
    """The parent has published, and its workers do: each over a connection of its own, and the parent's lives on."""
    process = run(
        WORKERS
        + textwrap.dedent(
            """
            import warnings; warnings.simplefilter("ignore")  # of forking while there are threads
            publisher.publish("live", ["parent", 0, 0])
            pids = [fork(n) for n in range(4)]
            publisher.publish("live", ["parent", 0, 1])
            wait(pids)
            publisher.publish("live", ["parent", 0, 2])
            wait([fork(n) for n in range(4, 6)])
            work("parent at last")
            """
        )
    )
    end(process)
    server.wait_until_closed()
    workers = [*range(6), "parent at last"]
    assert sorted(server.said(), key=str) == sorted(
        [["parent", 0, m] for m in range(3)]
        + [[w, n, m] for w in workers for n in range(4) for m in range(5)],
        key=str,
    )
    assert all(len(processes) == 1 for processes in server.users().values())
    assert len(server.users()) == server.connections == 7
    assert sorted(server.byes) == [1, 2, 3, 4, 5, 6, 7]


def test_a_fork_in_the_middle_of_everything(server: LineServer, run: Run) -> None:
    """Whatever other threads hold at that moment."""
    process = run(
        WORKERS
        + textwrap.dedent(
            """
            import warnings; warnings.simplefilter("ignore")
            ending = threading.Event()
            def publish():
                while not ending.is_set():
                    publisher.publish("live", "busy")
            def reopen():
                while not ending.is_set():
                    publisher.close()
                    publisher.publish("live", "busy")
            threads = [threading.Thread(target=each) for each in (publish, publish, reopen)]
            for thread in threads: thread.start()
            for n in range(6):
                wait([fork(n)])
            ending.set()
            for thread in threads: thread.join()
            """
        )
    )
    end(process)
    server.wait_until_closed()
    said = [each for each in server.said() if each != "busy"]
    assert sorted(said) == [[w, n, m] for w in range(6) for n in range(4) for m in range(5)]
    assert all(len(processes) == 1 for processes in server.users().values())
    assert sorted(server.byes) == list(range(1, server.connections + 1))


def test_a_broker_of_ones_own_is_the_parents(server: LineServer, run: Run) -> None:
    """Unless it was opened after the fork."""
    process = run(
        """
        import warnings; warnings.simplefilter("ignore")
        from tests.support.linebroker import LineBroker
        from rtkit.errors import WrongProcess
        publisher = Publisher(LineBroker.from_url(sys.argv[1]), router)
        if not os.fork():
            publisher.publish("live", "child")
            publisher.close()
            os._exit(0)
        assert os.wait()[1] == 0
        publisher.publish("live", "parent")
        if not os.fork():
            for _ in range(2):
                try:
                    publisher.publish("live", "child")
                except WrongProcess as error:
                    assert f"opened in process {os.getppid()}" in str(error)
                    print(error, flush=True)
            sys.exit()
        assert os.wait()[1] == 0
        publisher.publish("live", "parent again")
        """
    )
    assert "give it a URL" in end(process)
    server.wait_until_closed()
    assert (server.said(), sorted(server.byes)) == (["child", "parent", "parent again"], [1, 2])
