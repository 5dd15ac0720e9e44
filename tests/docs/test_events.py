"""The one-way streams of the wire's page happen as they stand there (T5)."""

from __future__ import annotations

import json
import re
from typing import Any

from rtkit.hub.oneway import _STATUSES
from rtkit.testing import ManualClock
from rtkit.wire.eventstream import MAX_ROOMS, Bookmark
from tests.docs.blocks import ROOT, blocks, prose, table
from tests.support.eventsource import Event, EventParser, EventSource

PAGE = "docs/reference/protocol.md"


def parsed(text: str) -> list[Event]:
    return EventParser().feed(text)


async def test_the_example_happens() -> None:
    (source,), (example,) = blocks(PAGE, "python", "hub"), blocks(PAGE, "text", "events")
    world: dict[str, Any] = {"__name__": "docs"}
    exec(source.code(), world)
    hub, clock = world["hub"], ManualClock()
    hub.clock = clock
    page = EventSource(hub, clock, "room=chat:lobby&room=ticks:usd&token=t-ann")
    async with hub:
        await page.open()
        for deed in (
            hub.publish("chat:lobby", world["Said"]("hi")),
            hub.publish("ticks:usd", 1.17),
            hub.room("chat:lobby").clear(),
        ):
            await deed
            await page.settle()
        text = page.sink.body.decode()
    told, real = example.text, re.sub(r"^(:\n\n)+", "", text)
    made_up = (r'"epoch":"[\w-]+"', r'"time":[0-9.]+', r"retry: \d+", r"id: [\w.~-]+")
    for pattern in made_up:
        told, real = (re.sub(pattern, pattern.replace("\\", ""), each) for each in (told, real))
    assert told == real
    assert len(parsed(example.text)) == 4


def test_the_examples_ids_say_what_they_stand_behind() -> None:
    (example,) = blocks(PAGE, "text", "events")
    positions = [Bookmark.read(event.id).position("chat:lobby") for event in parsed(example.text)]
    assert [str(position) for position in positions] == [
        "K6zY6kOd:0",
        "K6zY6kOd:1",
        "K6zY6kOd:1",
        "EqHpPuft:0",
    ]


def test_every_event_is_in_the_table() -> None:
    """With its fields."""
    source = (ROOT / "src/rtkit/wire/eventstream.py").read_text()
    rows = table(PAGE, "event", "data", "id", "when")
    assert {row["event"].strip("`") for row in rows} == set(re.findall(r'\bevent\("(\w+)"', source))
    (example,) = blocks(PAGE, "text", "events")
    for event in parsed(example.text):
        (row,) = (row for row in rows if row["event"] == f"`{event.type}`")
        assert set(json.loads(event.data)) <= set(re.findall(r"`(\w+)`", row["data"]))


def test_every_status_is_in_the_table() -> None:
    listed = {int(row["answer"].split(",")[0]) for row in table(PAGE, "answer", "when")}
    assert listed == {200, 204, 403, *_STATUSES.values()}
    assert f"1 to {MAX_ROOMS} rooms" in prose(PAGE)
