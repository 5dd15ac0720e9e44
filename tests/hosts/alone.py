"""A hub that no framework surrounds: it is the ASGI application, or our own server's. granian loads it by its name."""

from __future__ import annotations

from typing import Any, Final

from rtkit import Grant, History, Hub, anonymous

__all__ = ["club", "hub", "new_club"]


def new_club() -> Hub[Any]:
    """A hub for clients of every kind; a page that no site has served may come too."""
    made: Hub[Any] = Hub(authenticate=anonymous, origins=["*"])
    made.rooms("club", publishes=object, grant=Grant("publish", "history"), history=History(100, ttl=3600))
    return made


hub: Final[Hub[Any]] = Hub(authenticate=anonymous)
hub.rooms("lobby", publishes=object, grant=Grant("publish"), history=History(100, ttl=3600))

club: Final = new_club()
