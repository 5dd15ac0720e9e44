"""Who is typing in a room (X1).

::

    chat = hub.rooms("chat:{room}", publishes=Said, grant=Grant("publish", "signal"), typing=Typing())

A client says that its user types, again and again while that goes on; the others hear of it as of any signal, and it
is in no history. The hub sees to it that nobody types for ever: who sends a message, leaves, loses its connection or
falls silent types no more, and a flood of it is held back.

The parts: :mod:`.typist` is one client that types, as a pure value; :mod:`.running` is what the hub calls.
"""

from __future__ import annotations

from .policy import Typing

__all__ = ["Typing"]
