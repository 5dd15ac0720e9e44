"""Who is in a room (P1 to P4).

::

    chat = hub.rooms("chat:{room}", publishes=Said, grant=Grant("publish", "presence"), presence=Presence())

Every client that is in a room of such a family is a member of it, with its user and a *meta*: a small JSON object in
which it says something about itself. Who has the right ``presence`` may ask who is there, and be told of changes;
``await room.presence()`` asks on the server.

The parts: :mod:`.roster` is who is there, as a pure value that follows the broker; :mod:`.watch` tells those who want
to know; :mod:`.ledger` writes down this node's own clients; :mod:`.reaper` takes away those of nodes that died;
:mod:`.entries` is how all that lies in the broker.
"""

from __future__ import annotations

from .policy import Presence

__all__ = ["Presence"]
