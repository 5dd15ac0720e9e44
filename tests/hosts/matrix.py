"""Run every framework on every server, in full, and write into the README what works where: ``./dev matrix``.

    python tests/hosts/matrix.py             run, and write the table
    python tests/hosts/matrix.py --check     run, and fail if the table is another one
    python tests/hosts/matrix.py --short     only what ``./dev test`` runs as well

A cell has a mark for WebSockets, event streams and long-polls: a tick when the conversation of ``test_matrix.py`` (and
for WebSockets the transport suite of ``test_suite.py``) passes, a dash where there is nothing of the kind, and a cross
for a failure; a number leads to what is known to be otherwise, which a strict xfail holds on to.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.hosts.conftest import KNOWN  # noqa: E402
from tests.hosts.examples import NAMES  # noqa: E402
from tests.hosts.hosts import SERVERS  # noqa: E402

COLUMNS: Final = (*SERVERS, "granian")
ALONE: Final = ("aiohttp", "websockets")
BEGIN: Final = "<!-- matrix: written by ./dev matrix -->"
END: Final = "<!-- matrix end -->"
#: As in the names of tests; those that name none are about the first.
TRANSPORTS: Final = {"websocket": "WebSocket", "sse": "event stream", "poll": "long-poll"}
GRANIAN: Final = "a conversation in a process of its own; the transport suite needs the hub at hand"


def run(short: bool) -> dict[str, list[str]]:
    """Outcomes (``passed``, ``failed``, ``xfailed``) by framework, server and transport."""
    files = ["tests/hosts/test_matrix.py", *([] if short else ["tests/hosts/test_suite.py"])]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *files, f"--junit-xml={report}", "-n", "2"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "RTKIT_MATRIX": "1"}, check=False)
        return outcomes(ElementTree.parse(report).iter("testcase"))


def outcomes(cases: Iterable[ElementTree.Element]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for case in cases:
        name = case.get("name") or ""
        if (pair := pair_of(name)) is None:
            continue
        transport = name.rpartition("-")[2].rstrip("]") if "over_http" in name else "websocket"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif (skipped := case.find("skipped")) is not None:
            outcome = f"xfailed: {skipped.get('message')}"
        else:
            outcome = "passed"
        found.setdefault(f"{pair}, {transport}", []).append(outcome)
    return found


def pair_of(name: str) -> str | None:
    """``framework, server`` of a test's name."""
    parameters = name.partition("[")[2]
    for framework in NAMES:
        for server in sorted([*COLUMNS, *ALONE], key=len, reverse=True):
            if re.match(rf"{framework}( on |, |-){server}\b", parameters) or (
                framework == server and re.match(rf"{framework}[-\]]", parameters)
            ):
                return f"{framework}, {server}"
    return None


def render(found: dict[str, list[str]]) -> str:
    """The table, with the notes below it."""
    notes: list[str] = []

    def number(note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f"<sup>{notes.index(note) + 1}</sup>"

    def cell(framework: str, server: str) -> str:
        marks = [mark(framework, server, transport) for transport in TRANSPORTS]
        return "–" if set(marks) == {"–"} else " ".join(marks)

    def mark(framework: str, server: str, transport: str) -> str:
        results = found.get(f"{framework}, {server}, {transport}")
        if results is None:
            return "–"
        if "failed" in results:
            return "✗"
        reasons = {each.partition(": ")[2] for each in results if each.startswith("xfailed")}
        marks = [number(why) for host, _, why in KNOWN if host in server and why in reasons]
        if server == "granian" and transport == "websocket":
            marks.append(number(GRANIAN))
        return "✓" + "".join(dict.fromkeys(marks))

    lines = [f"Each cell: {', '.join(TRANSPORTS.values())}.", ""]
    lines += [f"| framework | {' | '.join(COLUMNS)} | its own server |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for framework in NAMES:
        cells = [cell(framework, server) for server in COLUMNS]
        lines.append(f"| {framework} | {' | '.join(cells)} | {cell(framework, framework)} |")
    lines += ["", *(f"{n}. {note}" for n, note in enumerate(notes, 1))]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    found = run(options.short)
    text = render(found)
    sys.stdout.write(f"{text}\n")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        sys.exit(f"README.md has no {BEGIN} … {END}")
    new = f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
    if options.check and new != readme.read_text():
        sys.exit("the table in README.md is another one; run ./dev matrix")
    if not options.check and not options.short:
        readme.write_text(new)
    if any("failed" in results for results in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
