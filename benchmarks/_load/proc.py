"""What processes and cores have used, from ``/proc``."""

import contextlib
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

__all__ = ["Core", "Usage", "core", "environment", "memory", "usage"]

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds of a process since it began, all its threads together, and when that was read."""

    at: float
    total: float
    user: float
    system: float

    def since(self, before: "Usage") -> "Usage":
        """What was used between two readings; *at* is how long that was."""
        return Usage(
            self.at - before.at,
            self.total - before.total,
            self.user - before.user,
            self.system - before.system,
        )


def usage(pid: int) -> Usage:
    """CPU of a process: the total to the nanosecond from the scheduler, the split in ticks of 10 ms."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]) * _TICK, int(fields[12]) * _TICK
    return Usage(time.monotonic(), total / 1e9, user, system)


def memory(pid: int) -> int:
    """Resident bytes of a process; what the kernel keeps for its sockets is not in it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


@dataclass(frozen=True, slots=True)
class Core:
    """Seconds that a core was busy, with whatever, and when that was read."""

    at: float
    busy: float


def core(number: int) -> Core:
    """How busy a core has been since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{number}":
            ticks = [int(value) for value in values[:8]]
            return Core(time.monotonic(), (sum(ticks) - ticks[3] - ticks[4]) * _TICK)
    raise ValueError(f"there is no core {number}")


def environment() -> str:
    """What a figure has to be read with: commit, Python, packages, machine."""
    names = ("msgspec", "websockets", "uvicorn")
    packages = []
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages.append(f"{name} {metadata.version(name)}")
    commit = "unknown"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).parent
        commit = _git(here, "rev-parse", "--short", "HEAD")
        if _git(here, "status", "--porcelain", "--", "../../src"):
            commit += " and changes"
    model = "unknown CPU"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return (
        f"commit {commit}, Python {platform.python_version()}, {', '.join(packages)}, "
        f"{os.cpu_count()} x {model}, {platform.system()} {platform.release().partition('-')[0]}"
    )


def _git(where: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
