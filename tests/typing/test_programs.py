"""Programs against the public face: mypy and pyright accept them, and refuse the mistakes planted beside them.

A mistake is marked on its line, or on a line of its own before it::

    await room.publish(1)  # expect: mypy[arg-type] pyright[reportArgumentType]

Neither checker may say less there, or more anywhere else.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# One process runs both checkers for all tests of this file; cold, without mypy's cache, they take their time.
pytestmark = [pytest.mark.xdist_group("typing"), pytest.mark.timeout(240)]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAMS = sorted(path.name for path in (HERE / "programs").glob("*.py"))
MISTAKES = sorted(path.name for path in (HERE / "mistakes").glob("*.py"))
CHECKERS = ("mypy", "pyright")

Place = tuple[str, int]
"""``folder/file.py`` and a line."""


@dataclass(frozen=True)
class Finding:
    """What a checker says about a line: its word for it, and its words."""

    rule: str
    text: str


Findings = Mapping[str, Mapping[Place, list[Finding]]]
"""By checker and place."""


@pytest.fixture(scope="session")
def findings() -> Findings:
    mypy = _start(
        # Strict, and with what `./dev check` has found out about rtkit itself.
        *("mypy", f"--config-file={ROOT / 'pyproject.toml'}", "--output=json"),
        # Both folders have files of the same names.
        *("--namespace-packages", "--explicit-package-bases"),
        f"--cache-dir={ROOT / '.mypy_cache'}",
        *(str(HERE / "programs"), str(HERE / "mistakes")),
    )
    pyright = _start("pyright", "--outputjson", f"--project={HERE}", f"--pythonpath={sys.executable}")
    return {"mypy": _read_mypy(mypy), "pyright": _read_pyright(pyright)}


def _start(module: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    assert process.returncode == 1, f"{process.args!r}: exit {process.returncode}\n{out[-2000:]}{err[-2000:]}"
    return out


def _place(file: str, line: int) -> Place:
    path = (ROOT / file).resolve()
    return f"{path.parent.name}/{path.name}", line


def _read_mypy(process: subprocess.Popen[str]) -> dict[Place, list[Finding]]:
    found: dict[Place, list[Finding]] = {}
    for line in _output(process).splitlines():
        each: dict[str, Any] = json.loads(line)
        if each["severity"] == "error":
            finding = Finding(each["code"], each["message"])
            found.setdefault(_place(each["file"], each["line"]), []).append(finding)
    return found


def _read_pyright(process: subprocess.Popen[str]) -> dict[Place, list[Finding]]:
    found: dict[Place, list[Finding]] = {}
    for each in json.loads(_output(process))["generalDiagnostics"]:
        if each["severity"] in ("error", "warning"):
            finding = Finding(each.get("rule", "error"), each["message"])
            place = _place(each["file"], each["range"]["start"]["line"] + 1)
            found.setdefault(place, []).append(finding)
    return found


def expected(name: str, checker: str) -> dict[int, set[str]]:
    """The rules a checker has to name, by line."""
    lines: dict[int, set[str]] = {}
    for number, line in enumerate((HERE / "mistakes" / name).read_text().splitlines(), 1):
        code, marked, comment = line.partition("# expect:")
        if marked:
            rules = re.search(rf"{checker}\[(.*?)\]", comment)
            assert rules, f"mistakes/{name}:{number}: what is {checker} to say?"
            lines[number if code.strip() else number + 1] = set(re.split(r",\s*", rules[1]))
    return lines


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_accepted(findings: Findings, name: str, checker: str) -> None:
    problems = [
        f"{file}:{line}: {finding.rule}: {finding.text}"
        for (file, line), here in sorted(findings[checker].items())
        for finding in here
        if file == f"programs/{name}"
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("name", MISTAKES)
def test_refused(findings: Findings, name: str, checker: str) -> None:
    wanted = expected(name, checker)
    problems: list[str] = []
    found = {line: here for (file, line), here in findings[checker].items() if file == f"mistakes/{name}"}
    for line in sorted(found.keys() | wanted.keys()):
        rules = {finding.rule for finding in found.get(line, [])}
        if rules != wanted.get(line, set()):
            said = "; ".join(finding.text for finding in found.get(line, [])) or "nothing"
            problems.append(
                f"mistakes/{name}:{line}: expected {sorted(wanted.get(line, ()))}, got {sorted(rules)}: {said}"
            )
    assert not problems, "\n".join(problems)


def test_nothing_is_found_elsewhere(findings: Findings) -> None:
    ours = {f"programs/{name}" for name in PROGRAMS} | {f"mistakes/{name}" for name in MISTAKES}
    for checker in CHECKERS:
        assert {file for file, _ in findings[checker]} <= ours


def test_every_program_has_its_mistakes() -> None:
    assert len(PROGRAMS) >= 6
    assert PROGRAMS == MISTAKES
    assert sum(len(expected(name, "mypy")) for name in MISTAKES) >= 12
    for name in MISTAKES:
        assert expected(name, "mypy").keys() == expected(name, "pyright").keys()
        assert expected(name, "mypy"), name
