"""What pytest learns from rtkit when it is installed: assertions of the kit that show what they compared, a line on how
many promises were kept, and a certificate.

It costs nobody anything: the kit is looked at only where a test file has loaded it. It sets no option of any other
plug-in; the kit's own tests are marked to run under anyio, and nothing else is.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["Conformance", "Tally", "pytest_addoption", "pytest_configure"]

KIT: Final = "rtkit.testing.conformance"

# Before anybody imports it.
pytest.register_assert_rewrite(KIT)

# What may become of a promise, the worst last: one that is tried with several parameters is as good as its worst.
_OUTCOMES: Final = ("kept", "excused", "not tried", "broken")
# What the kit is made of and run by.
_PACKAGES: Final = ("rtkit", "pytest", "anyio", "hypothesis")


class Tally:
    """What became of the promises of each suite.

    :ivar suites: by its name: its protocols, and each promise with what became of it and why.
    """

    def __init__(self) -> None:
        self.suites: dict[str, dict[str, Any]] = {}
        self.kit = 0

    def begin(self, suite: str, found: dict[str, Any]) -> None:
        """A suite was seen for the first time: none of its promises has been tried yet."""
        self.kit = found["kit"]
        promises = {name: {"outcome": "not run"} for name in found["promises"]}
        self.suites[suite] = {"protocols": found["protocols"], "promises": promises}

    def note(self, suite: str, promise: str, outcome: str, reason: str) -> None:
        """A test of a promise has ended, or failed to begin."""
        known = self.suites[suite]["promises"][promise]
        before = known["outcome"]
        if before == "not run" or _OUTCOMES.index(outcome) > _OUTCOMES.index(before):
            known["outcome"] = outcome
            if outcome != "kept" and reason:
                known["reason"] = reason

    def line(self, suite: str) -> str:
        """``84 promises kept, 1 excused``"""
        outcomes = [known["outcome"] for known in self.suites[suite]["promises"].values()]
        counts = {outcome: outcomes.count(outcome) for outcome in (*_OUTCOMES, "not run")}
        kept = counts.pop("kept")
        parts = [f"{kept} promise{'' if kept == 1 else 's'} kept"]
        parts += [f"{count} {outcome}" for outcome, count in counts.items() if count]
        return ", ".join(parts)

    def certificate(self) -> dict[str, Any]:
        """All of it, for a file."""
        suites = []
        for name, found in sorted(self.suites.items()):
            outcomes = {known["outcome"] for known in found["promises"].values()}
            suites.append({"suite": name, "certified": outcomes <= {"kept", "excused"}, **found})
        return {
            "kit": self.kit,
            "versions": {"python": platform.python_version(), **_versions()},
            "suites": suites,
        }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its sources
            found[name] = "unknown"
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rtkit-certify FILE``"""
    parser.getgroup("rtkit").addoption(
        "--rtkit-certify",
        metavar="FILE",
        default=None,
        help="write to FILE, as JSON, which promises the brokers under test keep",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.pluginmanager.register(Conformance(config), "rtkit-conformance")


class Conformance:
    """Counts what becomes of the promises in one run of pytest. Under xdist several processes run the tests, and one
    counts: what is to be counted travels with the reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.tally = Tally()
        self._told: set[str] = set()  # suites that this process has described
        # A worker of xdist writes nothing.
        self._file = None if hasattr(config, "workerinput") else config.getoption("rtkit_certify")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Say which promise a report is about."""
        report = yield
        kit: Any = sys.modules.get(KIT)
        suite = getattr(item, "cls", None)
        if kit is None or not isinstance(suite, type) or not issubclass(suite, kit.BrokerSuite):
            return report
        promises = sorted({name for name, _ in kit.promises(suite)})
        promise = getattr(item, "originalname", None) or item.name
        if promise in promises:
            name = f"{suite.__module__}.{suite.__qualname__}"
            about: dict[str, Any] = {"suite": name, "promise": promise}
            if name not in self._told:
                self._told.add(name)
                about |= {"kit": kit.VERSION, "protocols": kit.protocols(suite), "promises": promises}
            vars(report)["rtkit_promise"] = about
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count it."""
        about = getattr(report, "rtkit_promise", None)
        if about is None:
            return
        if "promises" in about and about["suite"] not in self.tally.suites:
            self.tally.begin(about["suite"], about)
        outcome, reason = _judge(report)
        if outcome is not None:
            self.tally.note(about["suite"], about["promise"], outcome, reason)

    def pytest_sessionfinish(self) -> None:
        """Write the certificate."""
        if self._file is not None:
            file = Path(self._file)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.tally.certificate(), indent=2) + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A line for each suite."""
        for suite in sorted(self.tally.suites):
            name = suite.rpartition(".")[2]
            terminalreporter.write_line(f"rtkit conformance: {name}: {self.tally.line(suite)}")
        if self._file is not None and not self.tally.suites:
            terminalreporter.write_line(
                f"rtkit conformance: no suite was run, so {self._file} certifies nothing"
            )


def _judge(report: pytest.TestReport) -> tuple[str | None, str]:
    """What a report says of its promise, and why; nothing where the test has only begun, or ended well."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = str(getattr(crash, "message", "") or report.longrepr)
        return "broken", text.partition("\n")[0][:300]
    if report.skipped:
        if hasattr(report, "wasxfail"):
            return "excused", str(report.wasxfail).removeprefix("reason: ")
        where = report.longrepr
        text = str(where[2]) if isinstance(where, tuple) else str(where)
        return "not tried", text.removeprefix("Skipped: ")
    return ("kept", "") if report.when == "call" else (None, "")
