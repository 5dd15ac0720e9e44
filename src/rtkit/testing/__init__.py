"""Testing applications and plug-ins: users in memory, a clock moved by hand, conformance suites.

:mod:`rtkit.testing.conformance`, for authors of brokers, needs pytest (``pip install rtkit[testing]``).
"""

from .clock import ManualClock
from .links import Link, MemoryDialer
from .testhub import TestHub

__all__ = [
    "Link",
    "ManualClock",
    "MemoryDialer",
    "TestHub",
]
