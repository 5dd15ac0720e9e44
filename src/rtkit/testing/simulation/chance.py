"""All chance of a program from one seed."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import uuid
from collections.abc import Generator
from typing import Any

__all__ = ["seeded"]


@contextlib.contextmanager
def seeded(seed: int) -> Generator[random.Random]:
    """Let all that is drawn in the block come from *seed*: of ``random``, ``secrets``, ``uuid`` and ``os.urandom``.

    Yields a source of its own for whoever makes the schedule, so that what the program draws does not change it.
    It is not for programs that have something to keep secret. Not safe beside threads that draw.
    """
    program = random.Random(f"program {seed}")
    # SystemRandom, and so secrets, looks at the name in random; uuid4 and most others at the one in os.
    places: list[tuple[Any, str]] = [(os, "urandom"), (random, "_urandom")]
    before = [getattr(place, name) for place, name in places]
    state = random.getstate()
    random.seed(f"global {seed}")
    for place, name in places:
        setattr(place, name, program.randbytes)
    try:
        yield random.Random(f"schedule {seed}")
    finally:
        for (place, name), what in zip(places, before, strict=True):
            setattr(place, name, what)
        random.setstate(state)


# Loaded before anybody draws, so that what they import at first use does not differ between two runs.
_LOADED = (secrets, uuid)
