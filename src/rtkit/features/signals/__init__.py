"""How often members of a room may send signals (D5).

::

    board = hub.rooms("board:{id}", publishes=object, grant=Grant("signal"), signals=Signals(rate=20))

Clients are told, and keep to it by themselves; the hub holds those to it that do not. Of what is too much the newest
passes as soon as it may, so that a cursor ends up where it is.

The parts: :mod:`.pace` is what passes of one client, as a pure value; :mod:`.running` is what the hub calls.
"""

from __future__ import annotations

from .policy import Signals

__all__ = ["Signals"]
