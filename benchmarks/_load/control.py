"""Starts servers and load processes, pins them to cores, and ends them."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["Load", "Server", "Trouble", "cores", "merged", "raise_open_files", "sources"]

_FOLDER: Final = Path(__file__).parents[1]


class Trouble(Exception):
    """A server or load process did not do what it should."""


def cores() -> tuple[int, int]:
    """One core for the server and one for the load; the same one twice where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1], usable[0]


def raise_open_files(wanted: int) -> int:
    """Raise the limit of open files, which our children inherit; it has to do for *wanted* connections."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < wanted + 100:
        raise SystemExit(
            f"at most {hard} files may be open here (ulimit -Hn), which is too few for {wanted} members"
        )
    return hard


def sources(count: int) -> list[str]:
    """Local addresses for so many connections to one port: 20,000 from each, so that ports do not run out."""
    return [f"127.0.0.{number}" for number in range(1, 2 + count // 20_000)]


class _Child:
    """A Python process on a core of its own, that talks in lines."""

    def __init__(self, *command: str, core: int | None, stdin: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=stdin, stdout=subprocess.PIPE, bufsize=0, env={**os.environ}
        )
        self.pid = self.process.pid
        if core is not None:
            os.sched_setaffinity(self.pid, {core})
        assert self.process.stdout is not None
        self._out = self.process.stdout.fileno()
        self._said = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)

    def line(self, timeout: float) -> str:
        """The next line it says.

        :raises Trouble: when it says none in time, or ends.
        """
        until = time.monotonic() + timeout
        while b"\n" not in self._said:
            if not self._selector.select(max(0.0, until - time.monotonic())):
                raise Trouble(f"{self.process.args!r} said nothing for {timeout} s")
            data = os.read(self._out, 1 << 20)
            if not data:
                raise Trouble(f"{self.process.args!r} ended with {self.process.wait()}")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        self._selector.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class Server(_Child):
    """A server of this folder on a free port, ready to be connected to.

    :param program: a file of ``benchmarks/`` that prints ``listening on ws://address:port/…``.
    :param core: that it is pinned to.
    """

    def __init__(self, program: str, *args: str, core: int | None = None) -> None:
        super().__init__(str(_FOLDER / program), "--port", "0", *args, core=core)
        self.program = program
        try:
            while not (line := self.line(20)).startswith("listening on "):
                pass
        except BaseException:
            self.end()
            raise
        self.said = line
        self.port = int(line.split("/")[2].rpartition(":")[2])

    @classmethod
    @contextlib.contextmanager
    def running(cls, program: str, *args: str, core: int | None = None) -> "Generator[Server]":
        """For the length of a with statement."""
        server = cls(program, *args, core=core)
        try:
            yield server
        finally:
            server.end()


class Load(_Child):
    """A load process; see ``_worker.py`` for the orders it takes.

    :param program: a file of ``benchmarks/`` that takes orders, and what it is called with.
    """

    def __init__(
        self, port: int, *, core: int | None = None, program: Sequence[str] = ("_worker.py",), **options: Any
    ) -> None:
        name, *args = program
        super().__init__(str(_FOLDER / name), *args, core=core, stdin=subprocess.PIPE)
        self.ask("start", port=port, **options)

    def tell(self, do: str, **order: Any) -> None:
        """Give an order, to be answered later."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")

    def answer(self, timeout: float = 300.0) -> dict[str, Any]:
        """What became of the oldest order."""
        found: dict[str, Any] = json.loads(self.line(timeout))
        return found

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Give an order and wait for what becomes of it."""
        self.tell(do, **order)
        return self.answer()

    @classmethod
    @contextlib.contextmanager
    def running(cls, port: int, *, core: int | None = None, **options: Any) -> "Generator[Load]":
        """For the length of a with statement."""
        load = cls(port, core=core, **options)
        try:
            yield load
        finally:
            load.end()


def merged(histograms: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Percentiles of several processes' microseconds together, in milliseconds."""
    counts: dict[int, int] = {}
    for each in histograms:
        for value, count in each.items():
            counts[int(value)] = counts.get(int(value), 0) + count
    total = sum(counts.values())
    if not total:
        return {}
    found: dict[str, float] = {}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        seen = 0
        for micros in sorted(counts):
            seen += counts[micros]
            if seen > share * total or micros == max(counts):
                found[name] = micros / 1000
                break
    return found | {"max": max(counts) / 1000}
