"""What rooms can have besides their messages. Each is independent of the others, and the hub knows none of them."""

from __future__ import annotations

from .presence import Presence
from .receipts import Receipts
from .signals import Signals
from .typing import Typing

__all__ = ["Presence", "Receipts", "Signals", "Typing"]
