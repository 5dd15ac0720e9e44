"""Servers that are programs of their own: started in an empty folder, killed, frozen, started again, gone at the end.

Everything here blocks, most of it for a few milliseconds. In an async test whose loop must go on meanwhile:
``await asyncio.to_thread(server.start)``.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

__all__ = ["PATIENCE", "Daemon", "free_port", "wait_until"]

#: Seconds that anything may take before a test gives up. Nothing takes as long; a busy machine may.
PATIENCE = 20.0


def wait_until(true: Callable[[], Any], what: str, *, within: float = PATIENCE, every: float = 0.01) -> None:
    """Poll another program, blocking.

    :param true: asked every *every* seconds. An OSError (nobody listens, say) counts as no.
    :raises TimeoutError: it was not within *within* seconds.
    """
    end = time.monotonic() + within
    while True:
        try:
            if true():
                return
            last: object = "not yet"
        except OSError as exc:
            last = repr(exc)
        if time.monotonic() > end:
            raise TimeoutError(f"not within {within:g} s: {what} ({last})")
        time.sleep(every)


_PORTS: Final = range(15_000, 32_000)
_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody uses now, and that nobody's outgoing connection will be given.

    A server that is killed shall get its port again. One from the system's ephemeral range may be somebody's by then;
    or a client that tries to connect to it is given that very port, and finds itself connected to itself. And each of
    pytest's workers has ports of its own, and gives none twice as long as there are others.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % count
    each = (_PORTS.stop - _PORTS.start) // count
    if len(_given) > each // 2:
        _given.clear()
    while True:
        port = _PORTS.start + mine * each + random.SystemRandom().randrange(each)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        _given.add(port)
        return port


@functools.cache
def _yard() -> str:
    """The folder of this process' servers. When the process ends, however that happens, they and the folder go."""
    yard = tempfile.mkdtemp(prefix="rtkit-servers-")
    # Its standard input ends when this process does.
    watch = (
        'read never; for f in "$0"/*/pid; do kill -9 "$(cat "$f")" 2>/dev/null; done; sleep 0.1; rm -rf "$0"'
    )
    keeper = subprocess.Popen(
        ["/bin/sh", "-c", watch, yard],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is not for it
    )
    _keepers.append(keeper)
    keeper.returncode = 0  # nobody waits for it; without this a warning says so
    return yard


_keepers: list[subprocess.Popen[bytes]] = []  # the end of the pipe lives as long as they do


class Daemon(ABC):
    """A server in a folder of its own. A context manager; outside of it nothing runs and nothing is left.

    :param port: where it listens, or a free one.
    :param host: the address it listens at.
    :param within: a command that its own is put behind, such as ``("ip", "netns", "exec", "name")``.
    :ivar folder: what it keeps is in ``data`` in there.
    """

    def __init__(
        self, *, port: int | None = None, host: str = "127.0.0.1", within: Sequence[str] = ()
    ) -> None:
        self.host = host
        self.port = free_port() if port is None else port
        self._chosen = port is None
        self._within = tuple(within)
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path()
        self._kept = 0

    def __repr__(self) -> str:
        state = "running" if self.running else "down"
        return f"<{type(self).__name__} {self.host}:{self.port} {state}>"

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(dir=_yard()))
        self.data.mkdir()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def data(self) -> Path:
        """Where its data are, and nothing else."""
        return self.folder / "data"

    @property
    def running(self) -> bool:
        """Whether there is a process, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, on the same port as before and with what is in its folder; returns when it answers."""
        assert not self.running
        for tries_left in reversed(range(5)):
            command = [*self._within, *self._prepare()]
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.data
                )
            (self.folder / "pid").write_text(str(self._process.pid))
            try:
                wait_until(self._answers_or_ended, f"{self} answers")
            except BaseException:
                self.kill()
                raise
            if self.running:
                return
            if not (self._chosen and tries_left):
                break
            self.port = free_port()  # somebody was faster
        raise RuntimeError(f"it has ended:\n{self.log()[-2000:]}")

    def _answers_or_ended(self) -> bool:
        if self.running and not self._answers():
            return False
        self._chosen = not self.running  # once it was up, its port stays
        return True

    def stop(self) -> None:
        """Have it end as it does when it is asked to."""
        if self._process is None:
            return
        self.thaw()
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL. Does nothing when it is down."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            (self.folder / "pid").unlink()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""
        self._signal(signal.SIGSTOP)
        if self.running:
            wait_until(self._is_stopped, f"{self!r} stands still")  # its threads stop one by one

    def _is_stopped(self) -> bool:
        states = [
            path.read_text().rpartition(")")[2].split()[0]
            for path in Path(f"/proc/{self.pid}/task").glob("*/stat")
        ]
        return all(state in "tT" for state in states)

    def thaw(self) -> None:
        """End that."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            assert self._process is not None
            self._process.send_signal(number)

    def restart(self) -> None:
        """SIGKILL, and start with its data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """SIGKILL, and start with nothing."""
        self.kill()
        shutil.rmtree(self.data)
        self.data.mkdir()
        self.start()

    def keep(self) -> Path:
        """Copy its data as they are now, for `roll_back`."""
        self._kept += 1
        return Path(shutil.copytree(self.data, self.folder / f"kept-{self._kept}"))

    def roll_back(self, kept: Path) -> None:
        """SIGKILL, and start with older data: what an operator does with a backup."""
        self.kill()
        shutil.rmtree(self.data)
        shutil.copytree(kept, self.data)
        self.start()

    def log(self) -> str:
        """What it has written."""
        return (self.folder / "log").read_text(errors="replace")

    @abstractmethod
    def _prepare(self) -> Sequence[str]:
        """Write its configuration; the command."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it is ready; may raise OSError."""
