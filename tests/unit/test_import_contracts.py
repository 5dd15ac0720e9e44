"""The floors of the house hold, and the contracts that guard them notice when they do not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = ROOT / "pyproject.toml"
CONTRACTS = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
NAMES = {contract["id"]: contract["name"] for contract in CONTRACTS}

# What each contract has to notice: (importer, imported).
VIOLATIONS = {
    "words": [("errors", "asyncio"), ("messages", "msgspec")],
    "pure": [("wire.json", "anyio"), ("streams", "asyncio")],
    "floors": [
        ("codes", "rtkit.wire"),
        ("wire.json", "rtkit.primitives.outbox"),
        ("primitives.outbox", "rtkit.brokers.base"),
        ("brokers.memory", "rtkit.publisher"),
        ("transports.base", "rtkit.hosting.asgi"),
        ("hub.session", "rtkit.features.presence"),
        ("ext.jwt", "rtkit.server"),
        ("client.connection", "rtkit.transports.base"),
        ("client.connection", "rtkit.brokers.base"),
        ("cli", "rtkit.testing"),
    ],
    "towers": [("hub.session", "rtkit.client.connection")],
    "transports": [("transports.stream", "rtkit.transports.websocket")],
    "features": [("features.typing", "rtkit.features.presence")],
    "ext": [("ext.jwt", "rtkit.ext.http_api"), ("ext.http_units", "rtkit.ext.http_commands")],
    "brokers": [("brokers.memory", "rtkit.brokers.redis")],
}

# A house in miniature in which every module imports all it may.
LEGAL = {
    "": ["rtkit.hub.session", "rtkit.features.presence"],
    "errors": ["rtkit.codes"],
    "codes": [],
    "messages": [],
    "streams": ["rtkit.errors"],
    "wire": [],
    "wire.json": ["msgspec", "rtkit.streams", "rtkit.messages"],
    "primitives": [],
    "primitives.outbox": ["asyncio", "rtkit.wire.json"],
    "brokers": [],
    "brokers.base": ["rtkit.errors"],
    "brokers.memory": ["asyncio", "rtkit.primitives.outbox", "rtkit.brokers.base"],
    "brokers.redis": ["rtkit.brokers.base"],
    "publisher": ["rtkit.brokers.base"],
    "transports": [],
    "transports.base": ["rtkit.primitives.outbox"],
    "transports.websocket": ["rtkit.transports.base"],
    "transports.stream": ["rtkit.transports.base"],
    "hosting": [],
    "hosting.asgi": ["rtkit.transports.stream"],
    "hub": [],
    "hub.session": ["rtkit.hosting.asgi", "rtkit.publisher"],
    "features": [],
    "features.presence": ["rtkit.hub.session"],
    "features.typing": ["rtkit.hub.session"],
    "ext": [],
    "ext.http_api": ["rtkit.hub.session", "rtkit.ext.http_commands"],
    "ext.http_commands": ["rtkit.hub.session", "rtkit.ext.http_units"],
    "ext.http_units": ["rtkit.wire.json"],
    "ext.jwt": ["rtkit.errors"],
    "server": ["rtkit.hub.session"],
    "cli": ["rtkit.server"],
    "client": [],
    "client.connection": ["anyio", "rtkit.wire.json", "rtkit.primitives.outbox"],
    "testing": ["rtkit.hub.session", "rtkit.client.connection"],
}


def lint(where: Path) -> tuple[int, str]:
    """Run import-linter as `./dev check` does, in a process of its own: it reconfigures logging for good."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=where, env=env, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def build(where: Path, house: dict[str, list[str]]) -> Path:
    """Write the modules of `house`, each with its imports, and our contracts beside them."""
    packages = {name.rpartition(".")[0] for name in house}
    for name, imports in house.items():
        path = where.joinpath("rtkit", *name.split("."))
        file = path / "__init__.py" if name in packages else path.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"import {module}\n" for module in imports))
    (where / "pyproject.toml").write_text(PYPROJECT.read_text())
    return where


def broken(output: str) -> set[str]:
    return {key for key, name in NAMES.items() if re.search(re.escape(name) + r" BROKEN", output)}


def test_rtkit_keeps_its_floors() -> None:
    status, output = lint(ROOT)
    assert status == 0, output


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    status, output = lint(build(tmp_path, LEGAL))
    assert status == 0, output


@pytest.mark.parametrize("contract", NAMES)
def test_what_is_forbidden_is_noticed(tmp_path: Path, contract: str) -> None:
    house = {name: list(imports) for name, imports in LEGAL.items()}
    for importer, imported in VIOLATIONS[contract]:
        house[importer].append(imported)
    status, output = lint(build(tmp_path, house))
    assert status != 0, output
    assert contract in broken(output), output
    for importer, imported in VIOLATIONS[contract]:
        assert f"rtkit.{importer} -> {imported} " in output, output


def test_a_new_module_needs_a_floor(tmp_path: Path) -> None:
    status, output = lint(build(tmp_path, {**LEGAL, "newcomer": []}))
    assert status != 0, output
    assert "- rtkit.newcomer" in output
    assert "gets its floor in pyproject.toml" in output


def test_a_type_only_import_counts(tmp_path: Path) -> None:
    house = build(tmp_path, LEGAL) / "rtkit"
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rtkit.hub.session\n"
    (house / "errors.py").write_text(guarded)
    status, output = lint(tmp_path)
    assert status != 0, output
    assert "floors" in broken(output), output
