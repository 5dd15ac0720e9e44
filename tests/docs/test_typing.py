"""The page on typing and signals runs."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from rtkit import Identity
from rtkit.client import RoomClient
from rtkit.features import Signals, Typing
from rtkit.features.typing.typist import CHANGES
from rtkit.testing import TestHub
from tests.docs.blocks import blocks, prose

PAGE = "docs/how-to/typing-and-signals.md"


def page() -> Any:
    module = types.ModuleType("page")
    for block in blocks(PAGE, "python", "typing"):
        source: Any = block.code()
        exec(source, vars(module))
    return module


async def test_it_is_shown_who_types() -> None:
    found = page()
    shown: list[str] = []
    found.print = lambda *words: shown.append(" ".join(words))
    typists: Callable[[RoomClient[Any]], Sequence[str]] = attrgetter("typists")
    async with TestHub(found.hub) as t:
        ann, bob = await t.connect(Identity("ann")), await t.connect(Identity("bob"))
        async with ann.join("chat:lobby") as hers, bob.join("chat:lobby") as his:
            showing = asyncio.create_task(found.show_typists(his))
            await t.settle()
            hers.typing()
            await t.settle()
            assert typists(his) == ("ann",)
            assert typists(hers) == ()
            await t.clock.advance(1)
            composing = asyncio.create_task(found.compose(hers, "hello"))
            await t.settle()
            assert composing.done()
            assert typists(his) == ()
            assert (await t.next(his)).data == "hello"
            hers.typing()
            await t.settle()
            assert typists(his) == ("ann",)
            await t.clock.advance(Typing().expires + 0.1)
            assert typists(his) == ()
            showing.cancel()
            await asyncio.wait([showing])
    assert shown == ["ann types", "nobody types", "ann types", "nobody types"]


async def test_cursors_are_followed() -> None:
    found = page()
    cursors: dict[str, Any] = {}
    async with TestHub(found.hub) as t:
        ann, bob = await t.connect(Identity("ann")), await t.connect(Identity("bob"))
        async with ann.join("board:1") as hers, bob.join("board:1") as his:
            following = asyncio.create_task(found.follow(his, cursors))
            await t.settle()
            for n in range(50):
                await found.move(hers, n, -n)
                await t.clock.advance(0.01)
            await t.clock.advance(0.1)
            assert list(cursors.values()) == [{"x": 49, "y": -49}]
            following.cancel()
            await asyncio.wait([following])


def test_the_numbers_are_the_code() -> None:
    text = prose(PAGE)
    assert f"every {Typing().expires / 2:g} s at most" in text
    assert f"called it for {Typing().expires:g} s" in text
    assert CHANGES == 4 and "more than four changes" in text
    assert f"each client sends {Signals().rate:g} signals" in text
