"""Processes that say how they are, and peers that fall silent in all the ways there are.

Everything is told with the moment at which it was so, by the one clock of the machine, so that no verdict depends on
when the test came to look.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

from tests.docs.blocks import ROOT
from tests.support.rawsocket import frame, upgrade
from tests.support.rawstream import request

__all__ = ["SLACK", "Peer", "Told"]

#: Seconds that something may come later than it has to, on a machine that is busy with other things.
SLACK = 15.0

Report = dict[str, Any]


class Told:
    """A process and what it has told so far: a context manager.

    :ivar reports: each line, in order; every one has the moment, ``at``.
    """

    def __init__(self, *command: str) -> None:
        self._command = command
        self.reports: list[Report] = []
        self._more = threading.Condition()
        self._stopped = False

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._more:
                self.reports.append(json.loads(line))
                self._more.notify_all()

    def order(self, **what: Any) -> None:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    # -- standing still

    def stand_still(self) -> None:
        """Stop it where it is (SIGSTOP)."""
        self._stopped = True
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """And no longer."""
        if self._stopped:
            self._stopped = False
            self._process.send_signal(signal.SIGCONT)

    # -- what it tells

    def until(self, is_so: Callable[[Report], bool], within: float, *, since: float = 0.0) -> float:
        """The moment at which it told that something is so: of all it has told by then, each thing the latest.

        :param within: seconds, of waiting here.
        :param since: what it told before that moment is known, and does not count as telling.
        :raises AssertionError: when it does not.
        """
        end = time.monotonic() + within
        known: Report = {}
        seen = 0
        with self._more:
            while True:
                for report in self.reports[seen:]:
                    known |= report
                    if report["at"] >= since and is_so(known):
                        return float(report["at"])
                seen = len(self.reports)
                left = end - time.monotonic()
                if left <= 0 or not self._more.wait(left):
                    raise AssertionError(f"not within {within:.1f} s; the last it told is {known}")

    def until_it_stays(self, is_so: Callable[[Report], bool], within: float) -> None:
        """Wait until something is so, and is so for half a second.

        :raises AssertionError: when that does not come about.
        """
        end, began = time.monotonic() + within, None
        while began is None or time.monotonic() < began + 0.5:
            if not is_so(self.known):
                began = None
                assert time.monotonic() < end, f"not within {within:.1f} s; the last it told is {self.known}"
            elif began is None:
                began = time.monotonic()
            time.sleep(0.05)

    @property
    def known(self) -> Report:
        """The latest of each thing that it told."""
        with self._more:
            known: Report = {}
            for report in self.reports:
                known |= report
        return known


class Peer:
    """A client made of bytes, connected and in a room that it hears; from then on it does what the test says.

    :param address: host and port.
    :param prefix: where the hub is mounted.
    """

    def __init__(
        self, kind: str, address: tuple[str, int], prefix: str, *, receive_buffer: int | None = None
    ) -> None:
        self.kind = kind
        self._sock = socket.socket()
        try:
            if receive_buffer is not None:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self._sock.settimeout(SLACK)
            self._sock.connect(address)
            self._come_in(kind, prefix)
        except BaseException:
            self._sock.close()
            raise

    def _come_in(self, kind: str, prefix: str) -> None:
        connect = b'{"id":1,"connect":{"rt":{"v":1}}}'
        join = b'{"id":2,"subscribe":{"channel":"news"}}'
        match kind:
            case "websocket":
                self._sock.sendall(upgrade(f"{prefix}/ws"))
                self._hear(b"\r\n\r\n")
                self._sock.sendall(frame(connect))
                self._hear(b'"connect"')
                self._sock.sendall(frame(join))
                self._hear(b'"subscribe"')
            case "events":
                self._sock.sendall(request("GET", f"{prefix}/events?room=news"))
                self._hear(b"retry:")
            case _:
                self._sock.sendall(request("POST", f"{prefix}/{kind}", body=connect))
                heard = self._hear(b'"session"')
                session = heard.partition(b'"session":"')[2].partition(b'"')[0].decode()
                self._join(prefix, session, join)
                if kind == "poll":
                    self._sock.sendall(
                        request("GET", f"{prefix}/poll?ack=1", headers={"RT-Session": session})
                    )

    def _join(self, prefix: str, session: str, join: bytes) -> None:
        with socket.create_connection(self._sock.getpeername(), SLACK) as other:
            headers = {"RT-Session": session, "RT-Seq": "1"}
            other.sendall(request("POST", f"{prefix}/send", headers=headers, body=join))
            assert b" 204 " in other.recv(4096)

    def _hear(self, what: bytes) -> bytes:
        heard = b""
        while what not in heard:
            more = self._sock.recv(4096)
            assert more, f"{self.kind}: the end, after {heard!r}"
            heard += more
        return heard

    def hang_up_half(self) -> None:
        """Say that nothing more will be said, and go on listening."""
        self._sock.shutdown(socket.SHUT_WR)

    def rest(self) -> bytes:
        """What is still to be heard, up to the end."""
        heard = b""
        with suppress(ConnectionError):
            while more := self._sock.recv(65536):
                heard += more
        return heard

    def close(self) -> None:
        """Gone."""
        self._sock.close()


def all_are(known: Report, names: Sequence[str], states: Sequence[str]) -> bool:
    """Whether each of these was told, and is in one of these states."""
    return all(known.get(name) in states for name in names)
