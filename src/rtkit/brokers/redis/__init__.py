"""The broker on Redis or Valkey (B3); ``pip install "rtkit[redis]"`` brings what it needs.

How it works is told where it is done: what is atomic in :mod:`.scripts` and ``lua/``, what things are called in
:mod:`.names`, how commands are run and what becomes of them in :mod:`.commands`, how subscriptions are kept in
:mod:`.listener`, and where servers are found in :mod:`.topology`.
"""

from __future__ import annotations

from .broker import RedisBroker
from .commands import RedisStatistics

__all__ = ["RedisBroker", "RedisStatistics"]
