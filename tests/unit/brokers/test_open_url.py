"""A broker is found by the scheme of its URL (B1)."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import rtkit.brokers
from rtkit.brokers import MemoryBroker, open_url
from rtkit.clock import Clock
from rtkit.errors import UsageError
from rtkit.testing import ManualClock

ROOT = Path(__file__).parents[3]


class Plug(MemoryBroker):
    """What a plug-in might bring."""

    asked: tuple[str, Clock | None]

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None) -> Plug:
        made = cls()
        made.asked = (url, clock)
        return made


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plug-ins for plug://, broken:// and odd://, one for redis:// that lacks its library, and a false memory://."""
    module = ModuleType("a_plug_in")
    module.Plug = Plug  # type: ignore[attr-defined]
    module.Odd = SimpleNamespace(from_url=lambda url, *, clock: "no broker")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_plug_in", module)
    found = EntryPoints(
        EntryPoint(name, value, "rtkit.brokers")
        for name, value in {
            "plug": "a_plug_in:Plug",
            "odd": "a_plug_in:Odd",
            "broken": "a_plug_in_that_is_not_there:Broker",
            "redis": "a_plug_in_that_is_not_there:RedisBroker",
            "memory": "a_plug_in:Odd",
        }.items()
    )

    def entry_points(*, group: str) -> Any:
        assert group == "rtkit.brokers"
        return found

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    yield
    assert "a_plug_in_that_is_not_there" not in sys.modules


def test_memory_is_built_in() -> None:
    broker = open_url("memory://")
    assert isinstance(broker, MemoryBroker)
    assert repr(broker) == "<MemoryBroker closed on <MemoryBackend 0 streams, 0 hubs>>"


@pytest.mark.usefixtures("installed")
def test_memory_cannot_be_replaced() -> None:
    assert isinstance(open_url("MEMORY:"), MemoryBroker)


def test_two_urls_are_two_backends() -> None:
    first, second = open_url("memory://"), open_url("memory://")
    assert isinstance(first, MemoryBroker)
    assert isinstance(second, MemoryBroker)
    assert first.backend is not second.backend


def test_the_clock_is_handed_on() -> None:
    clock = ManualClock()
    broker = open_url("memory://", clock=clock)
    assert isinstance(broker, MemoryBroker)
    assert broker.backend.clock is clock


def test_memory_takes_options() -> None:
    broker = open_url("memory://?dedupe_window=7.5&max_streams=3")
    assert isinstance(broker, MemoryBroker)
    assert (broker.backend.dedupe_window, broker.backend.max_streams) == (7.5, 3)


@pytest.mark.parametrize(
    "url, complaint",
    [
        ("memory://host", "no host"),
        ("memory:///path", "path"),
        ("memory://#x", "fragment"),
        ("memory://?max_streams=0", "at least 1"),
        ("memory://?max_streams=many", "max_streams"),
        ("memory://?max_streams=", "max_streams"),
        ("memory://?dedupe_window=-1", "positive seconds"),
        ("memory://?window=3", "no option 'window'"),
    ],
)
def test_memory_refuses_what_it_does_not_know(url: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        open_url(url)


@pytest.mark.usefixtures("installed")
def test_any_other_scheme_is_a_plug_in() -> None:
    clock = ManualClock()
    broker = open_url("Plug://host/1", clock=clock)
    assert isinstance(broker, Plug)
    assert broker.asked == ("Plug://host/1", clock)


@pytest.mark.usefixtures("installed")
def test_an_unknown_scheme_is_told_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        open_url("amqp://user:secret@host")
    assert str(caught.value) == (
        "no broker for amqp:// is installed; there are broken://, memory://, odd://, plug://, redis://"
    )


REDIS = ["redis", "rediss", "redis+sentinel", "redis+cluster", "valkey", "valkeys"]


@pytest.mark.parametrize("scheme", REDIS)
def test_a_known_scheme_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: EntryPoints())
    with pytest.raises(UsageError) as caught:
        open_url(f"{scheme}://:secret@host")
    assert str(caught.value) == (
        f'no broker for {scheme}:// is installed; there are memory://; pip install "rtkit[redis]" brings it'
    )


def test_who_asks_for_nats_is_led_to_the_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: EntryPoints())
    with pytest.raises(UsageError, match="rtkit-nats in examples/broker_plugin brings it") as caught:
        open_url("nats://:secret@host")
    assert "secret" not in str(caught.value)
    assert (ROOT / "examples" / "broker_plugin" / "pyproject.toml").is_file()


def test_the_advice_can_be_followed() -> None:
    """What it says to install is something that can be installed, and brings what was asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "redis" in project["optional-dependencies"]
    assert set(project["entry-points"]["rtkit.brokers"]) == {"memory", *REDIS}


@pytest.mark.usefixtures("installed")
def test_a_plug_in_that_cannot_be_loaded_says_why() -> None:
    with pytest.raises(UsageError, match="No module named 'a_plug_in_that_is_not_there'") as caught:
        open_url("broken://")
    assert isinstance(caught.value.__cause__, ImportError)
    with pytest.raises(UsageError, match=r'pip install "rtkit\[redis\]" brings it'):
        open_url("redis://")


@pytest.mark.usefixtures("installed")
def test_a_plug_in_has_to_make_a_broker() -> None:
    with pytest.raises(UsageError, match="no rtkit Broker"):
        open_url("odd://")


@pytest.mark.parametrize("url", ["", "memory", "://", "localhost/0", "1x://"])
def test_a_url_has_a_scheme(url: str) -> None:
    with pytest.raises(UsageError, match="is named by a URL"):
        open_url(url)


def test_every_public_name_is_there() -> None:
    assert len(rtkit.brokers.__all__) == len(set(rtkit.brokers.__all__))
    for name in rtkit.brokers.__all__:
        assert getattr(rtkit.brokers, name) is not None
