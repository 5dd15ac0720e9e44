"""Autobahn's test suite for WebSockets: fetched once, and run in a Python 2.7 of its own.

It is Python 2 code and stays that (PyPI `autobahntestsuite` 25.10.1, the last there is), so it needs an old interpreter
and the libraries of its time. They are installed, to the version, into a folder of the virtual environment that is
named after what is in it; nothing of them is in the repository, and nothing of them is imported by us. What it says of
a case is read from the report it writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["CASES", "Suite", "find_suite"]

#: What it needs and what that needs, but for what only its other modes use.
_PACKAGES: Final = (
    "autobahntestsuite==25.10.1",
    "attrs==21.4.0",
    "autobahn==0.10.9",
    "Automat==20.2.0",
    "cffi==1.15.1",
    "constantly==15.1.0",
    "cryptography==3.3.2",
    "enum34==1.1.10",
    "hyperlink==19.0.0",
    "idna==2.10",
    "incremental==16.10.1",
    "ipaddress==1.0.23",
    "Jinja2==2.11.3",
    "klein==17.10.0",
    "MarkupSafe==1.1.1",
    "pycparser==2.21",
    "PyHamcrest==1.10.1",
    "pyOpenSSL==19.1.0",
    "setuptools==44.0.0",
    "six==1.16.0",
    "Twisted==19.10.0",
    "txaio==2.1.0",
    "typing==3.10.0.0",
    "Werkzeug==1.0.1",
    "zope.interface==4.6.0",
)
#: Makes the suite's masks and looks at its UTF-8 a hundred times faster, where there is a C compiler.
_FASTER: Final = "wsaccel==0.6.2"

#: `zope` is a namespace, and only a site folder makes it whole; unittest2 is wanted by a mode that is not used.
_RUN: Final = """\
import site, sys, unittest, warnings
warnings.simplefilter("ignore")
site.addsitedir(sys.argv.pop(1))
sys.modules["unittest2"] = unittest
from autobahntestsuite.wstest import run
run()
"""

#: How long the installation may take: it asks a registry and compiles a little.
_INSTALLING: Final = 50.0

#: Names of cases, as the suite has them: all of the protocol; what takes long; compression.
CASES: Final = {
    "protocol": ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"),
    "limits": ("9.*",),
    "compression": ("12.*", "13.*"),
}


class Suite:
    """The suite, installed.

    :param python: a Python 2.7.
    :param folder: where its packages are.
    """

    def __init__(self, python: str, folder: Path) -> None:
        self._python = python
        self._folder = folder

    async def try_servers(
        self, servers: Sequence[tuple[str, str]], cases: Iterable[str], *, seconds: float
    ) -> dict[str, dict[str, str]]:
        """Have the suite's client try what echoes; the verdicts, by name of the server and case.

        :param servers: names and URLs.
        :param seconds: that it may take.
        """
        with tempfile.TemporaryDirectory() as temporary:
            spec = {
                "outdir": f"{temporary}/report",
                "servers": [{"agent": name, "url": url} for name, url in servers],
                "cases": list(cases),
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
            async with self._running("fuzzingclient", spec, Path(temporary)) as running:
                async with asyncio.timeout(seconds):
                    code = await running.wait()
            assert code == 0, (Path(temporary) / "log").read_text()[-2000:]
            return verdicts(Path(temporary) / "report" / "index.json")

    @contextlib.asynccontextmanager
    async def server(self, port: int, cases: Iterable[str]) -> AsyncGenerator[Path]:
        """The suite's server, which tries whatever connects; yields where its report will be.

        A client asks ``/getCaseCount``, connects to ``/runCase?case=1&agent=NAME`` and so on, and in the end to
        ``/updateReports?agent=NAME``.
        """
        with tempfile.TemporaryDirectory() as temporary:
            spec = {
                "url": f"ws://127.0.0.1:{port}",
                "outdir": f"{temporary}/report",
                "cases": list(cases),
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
            async with self._running("fuzzingserver", spec, Path(temporary), "--webport=0") as running:
                async with asyncio.timeout(30):
                    while not await _accepts(port):
                        assert running.returncode is None, (Path(temporary) / "log").read_text()[-2000:]
                        await asyncio.sleep(0.1)
                yield Path(temporary) / "report" / "index.json"

    @contextlib.asynccontextmanager
    async def _running(
        self, mode: str, spec: dict[str, Any], folder: Path, *more: str
    ) -> AsyncGenerator[asyncio.subprocess.Process]:
        file, log = folder / "spec.json", folder / "log"
        file.write_text(json.dumps(spec))
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with log.open("wb") as output:
            running = await asyncio.create_subprocess_exec(
                *(self._python, "-c", _RUN, str(self._folder), f"--mode={mode}", f"--spec={file}", *more),
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield running
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()


def verdicts(report: Path) -> dict[str, dict[str, str]]:
    """What a report says: by name of who was tried and case, how it went.

    Two verdicts are made one where they differ: how messages were handled, and how the connection was closed.
    """
    found: dict[str, dict[str, str]] = {}
    for name, cases in json.loads(report.read_text()).items():
        found[name] = {}
        for case, result in cases.items():
            handled, closed = str(result["behavior"]), str(result["behaviorClose"])
            found[name][case] = (
                handled if closed in (handled, "OK", "INFORMATIONAL") else f"{handled}, close {closed}"
            )
    return found


def find_suite() -> Suite:
    """The suite; skips the test where there is no Python 2.7, or no way to get its packages."""
    python = _python()
    if python is None:
        pytest.skip("no Python 2.7, in which Autobahn's test suite runs (pyenv install 2.7.18)")
    text = "\n".join((python, *_PACKAGES, _FASTER))
    cache = Path(sys.prefix) / "autobahn"
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:12]
    if not folder.is_dir():
        cache.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            made = Path(temporary) / "made"
            _install(python, made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker
                    raise
    return Suite(python, folder)


def _install(python: str, folder: Path) -> None:
    done = _pip(python, folder, *_PACKAGES)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "WARNING" not in line and line.strip()]
        pytest.skip(f"Autobahn's test suite cannot be installed: {(said or ['pip says nothing'])[-1][:200]}")
    _pip(python, folder, _FASTER)  # it does without as well


def _pip(python: str, folder: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *packages]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSTALLING,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"Autobahn's test suite could not be installed within {_INSTALLING:.0f} s")


def _python() -> str | None:
    """A Python 2.7 that has pip."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        shutil.which("python2.7"),
        *map(str, sorted(root.glob("2.7.*/bin/python2.7"), reverse=True)),
    ]
    for candidate in candidates:
        if candidate is None:
            continue
        # Run it: pyenv puts names on PATH for versions that are not switched on.
        try:
            said = subprocess.run(
                [candidate, "-m", "pip", "--version"], capture_output=True, text=True, check=False, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if said.returncode == 0 and re.search(r"python 2\.7\)", said.stdout):
            return candidate
    return None


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
