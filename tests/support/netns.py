"""A second network on this machine, and the cable to it: what is inside it can be parted from what is outside.

Linux network namespaces, so root only. A cut cable swallows packets: no connection is reset, nobody is told.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from typing import Self

from tests.support.services import require

__all__ = ["Apart"]


class Apart:
    """A network of its own: a context manager.

    :ivar outside: the address of this side, for who is inside.
    :ivar inside: and of the other one.
    :ivar within: put before a command, it runs inside.
    """

    def __init__(self) -> None:
        if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
            require("netns", "no network namespaces", "as root: apt-get install iproute2")
        name = secrets.token_hex(4)
        self._name, self._here, self._there = f"rtkit-{name}", f"rt{name}a", f"rt{name}b"
        net = f"10.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
        self.outside, self.inside = f"{net}.1", f"{net}.2"
        self.within = ("ip", "netns", "exec", self._name)
        self._addresses = ("", "")

    def __enter__(self) -> Self:
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", self._here, "type", "veth", "peer", "name", self._there, "netns", self._name)
            _ip("addr", "add", f"{self.outside}/24", "dev", self._here)
            _ip("-n", self._name, "addr", "add", f"{self.inside}/24", "dev", self._there)
            _ip("link", "set", self._here, "up")
            _ip("-n", self._name, "link", "set", "lo", "up")
            self.mend()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever runs inside has to be gone by now."""
        _ip("netns", "delete", self._name)  # the cable goes with it
        subprocess.run(["ip", "link", "delete", self._here], capture_output=True, check=False)

    def cut(self) -> None:
        """Part them."""
        _ip("-n", self._name, "link", "set", self._there, "down")

    def mend(self) -> None:
        """Join them again."""
        _ip("-n", self._name, "link", "set", self._there, "up")
        # Each knows where the other is, and never asks: with nobody to answer, the system would say "no route".
        here, there = (
            _address(_ip("link", "show", self._here)),
            _address(_ip("-n", self._name, "link", "show", self._there)),
        )
        forever = ("nud", "permanent")
        _ip("neigh", "replace", self.inside, "lladdr", there, "dev", self._here, *forever)
        _ip("-n", self._name, "neigh", "replace", self.outside, "lladdr", here, "dev", self._there, *forever)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _address(shown: str) -> str:
    return shown.partition("link/ether ")[2].split()[0]
