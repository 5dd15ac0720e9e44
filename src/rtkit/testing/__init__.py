"""Testing applications and plug-ins: users in memory, a clock moved by hand, conformance suites.

:mod:`rtkit.testing.conformance`, for authors of brokers, needs pytest (``pip install rtkit[testing]``).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clock import ManualClock
    from .links import Link, MemoryDialer
    from .testhub import TestHub
else:
    _WHERE = {"Link": ".links", "ManualClock": ".clock", "MemoryDialer": ".links", "TestHub": ".testhub"}

    def __getattr__(name):
        # pytest loads rtkit.testing.plugin wherever rtkit is installed: it shall not load a client and a hub with it.
        from importlib import import_module

        if name in _WHERE:
            return globals().setdefault(name, getattr(import_module(_WHERE[name], __name__), name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Link",
    "ManualClock",
    "MemoryDialer",
    "TestHub",
]
