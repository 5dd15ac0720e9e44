"""Run every framework and every client on every server, in full, and write into the README what works where:
``./dev matrix``.

    python tests/hosts/matrix.py             run, and write the tables
    python tests/hosts/matrix.py --check     run, and fail if the tables are other ones
    python tests/hosts/matrix.py --short     only what ``./dev test`` runs as well

A cell has a mark for each transport: a tick when the conversation of ``test_matrix.py`` (and the transport suite of
``test_suite.py`` and ``test_suite_over_http.py``), or that of ``test_clients.py``, passes; a dash where there is
nothing of the kind, and a cross for a failure. A number leads to what is known to be otherwise, which a strict xfail
holds on to.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.hosts.conftest import KNOWN  # noqa: E402
from tests.hosts.examples import ALONE, NAMES  # noqa: E402
from tests.hosts.guests import GUESTS, TRANSPORTS  # noqa: E402
from tests.hosts.hosts import EVERY_SERVER, SERVERS  # noqa: E402

FRAMEWORKS: Final = (*NAMES, ALONE)
COLUMNS: Final = (*SERVERS, "granian")
#: Those that are a server of their own.
OWN: Final = ("aiohttp", "websockets", ALONE)
BEGIN: Final = "<!-- matrix: written by ./dev matrix -->"
END: Final = "<!-- matrix end -->"
#: What a framework is looked at with, as in the names of tests.
BASIC: Final = {name: TRANSPORTS[name] for name in ("websocket", "sse", "poll")}
GRANIAN: Final = "a conversation in a process of its own; the transport suite needs the hub at hand"

Place = tuple[str, str, str]
"""A framework or client, a server, a transport."""


def run(short: bool) -> dict[Place, list[str]]:
    """Outcomes (``passed``, ``failed``, ``xfailed: why``)."""
    files = ["tests/hosts/test_matrix.py", "tests/hosts/test_clients.py"]
    env = {**os.environ}
    if not short:
        files += ["tests/hosts/test_suite.py", "tests/hosts/test_suite_over_http.py"]
        env["RTKIT_MATRIX"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *files, f"--junit-xml={report}", "-n", "2"]
        subprocess.run(command, cwd=ROOT, env=env, check=False)
        return outcomes(ElementTree.parse(report).iter("testcase"))


def outcomes(cases: Iterable[ElementTree.Element]) -> dict[Place, list[str]]:
    found: dict[Place, list[str]] = {}
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif (skipped := case.find("skipped")) is not None:
            outcome = f"{skipped.get('type', '').removeprefix('pytest.')}ed: {skipped.get('message')}"
        else:
            outcome = "passed"
        for place in places_of(case.get("name") or "", case.get("classname") or ""):
            found.setdefault(place, []).append(outcome)
    return found


def places_of(name: str, module: str) -> Iterator[Place]:
    """What a test is about, by its name."""
    parameters = name.partition("[")[2].rstrip("]")
    for client in GUESTS:
        for server in EVERY_SERVER:
            for transport in TRANSPORTS:
                if parameters == f"{client} on {server}, {transport}":
                    yield client, server, transport
                    return
    if (pair := pair_of(parameters)) is None:
        return
    transports = [each for each in parameters.split("-") if each in BASIC]
    # The suite over HTTP has tests about no transport in particular.
    for transport in transports or (("sse", "poll") if "over_http" in module else ("websocket",)):
        yield *pair, transport


def pair_of(parameters: str) -> tuple[str, str] | None:
    """A framework and a server."""
    for framework in FRAMEWORKS:
        for server in sorted(COLUMNS, key=len, reverse=True):
            if re.match(rf"{framework}( on |, |-){server}(-|$)", parameters):
                return framework, server
        if framework in OWN and re.match(rf"{framework}(-|$| on {framework}(-|$))", parameters):
            return framework, framework
    return None


class Tables:
    """Both tables, with the notes below them."""

    def __init__(self, found: Mapping[Place, Sequence[str]]) -> None:
        self._found = found
        self._notes: list[str] = []

    def render(self) -> str:
        columns = [*COLUMNS, "its own server"]
        lines = self._table(
            BASIC,
            ["framework", *columns],
            {
                name: [(name, name if column == columns[-1] else column) for column in columns]
                for name in FRAMEWORKS
            },
        )
        lines += ["", "Each client, when it is cut off and comes back:", ""]
        lines += self._table(
            TRANSPORTS,
            ["client", *EVERY_SERVER],
            {name: [(name, server) for server in EVERY_SERVER] for name in GUESTS},
        )
        return "\n".join([*lines, "", *(f"{n}. {note}" for n, note in enumerate(self._notes, 1))])

    def _table(
        self,
        transports: Mapping[str, str],
        heads: Sequence[str],
        rows: Mapping[str, Sequence[tuple[str, str]]],
    ) -> list[str]:
        lines = [f"{', '.join(transports.values())}:", ""]
        lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for name, pairs in rows.items():
            cells = [self._cell(*pair, transports) for pair in pairs]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return lines

    def _cell(self, name: str, server: str, transports: Iterable[str]) -> str:
        marks = [self._mark(name, server, transport) for transport in transports]
        return "–" if set(marks) == {"–"} else " ".join(marks)

    def _mark(self, name: str, server: str, transport: str) -> str:
        results = self._found.get((name, server, transport))
        if results is None:
            return "–"
        # What was left out because something is missing here does not work here.
        if any(not each.startswith(("passed", "xfailed")) for each in results):
            return "✗"
        reasons = {each.partition(": ")[2] for each in results if each.startswith("xfailed")}
        marks = [self._number(why) for host, _, why in KNOWN if host in server and why in reasons]
        if server == "granian" and name in FRAMEWORKS:
            marks.append(self._number(GRANIAN))
        return "✓" + "".join(dict.fromkeys(marks))

    def _number(self, note: str) -> str:
        if note not in self._notes:
            self._notes.append(note)
        return f"<sup>{self._notes.index(note) + 1}</sup>"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    found = run(options.short)
    text = Tables(found).render()
    sys.stdout.write(f"{text}\n")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        sys.exit(f"README.md has no {BEGIN} … {END}")
    new = f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
    if options.check and new != readme.read_text():
        sys.exit("the tables in README.md are other ones; run ./dev matrix")
    if not options.check and not options.short:
        readme.write_text(new)
    if any("failed" in results for results in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
