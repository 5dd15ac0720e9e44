"""How far users have got and read in a room (X2).

::

    chat = hub.rooms("chat:{room}", publishes=Said, history=History(1000, ttl=86400), receipts=Receipts(), …)

Each user has two marks in a room, ``delivered`` and ``read``: everything up to there. They belong to the user, not to a
device, outlive connections and nodes, and only move forward. Members who ask are told of them;
``await room.marks()`` asks on the server.

The parts: :mod:`.board` is who is how far, as a pure value that follows the broker; :mod:`.watch` tells those who want
to know; :mod:`.ledger` writes down what this node's own clients say; :mod:`.epochs` finds out where a position of a
former epoch is in the present stream; :mod:`.entries` is how all that lies in the broker.
"""

from __future__ import annotations

from .policy import Receipts

__all__ = ["Receipts"]
