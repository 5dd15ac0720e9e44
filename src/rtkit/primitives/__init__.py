"""Parts a host can use alone: each does one thing, and none knows a hub (floor 2).

Time comes from a :class:`rtkit.clock.Clock` everywhere; chance from a function. Plain state (the
outbox, heartbeat, rate limit, back-off, registry) never awaits and takes the time as an argument.
"""

from __future__ import annotations

from .admission import Admission, AdmissionStatistics
from .attach import AttachedConnection, AttachedConnectionStatistics, AttachPolicy, attach
from .backoff import Backoff, BackoffStatistics
from .clocks import LoopClock, Timeout, sleep, sleep_until, timeout
from .deadlines import Deadline, Deadlines, DeadlinesStatistics
from .heartbeat import (
    Action,
    Heartbeat,
    HeartbeatState,
    HeartbeatStatistics,
    SilenceWatch,
    SilenceWatchStatistics,
)
from .keyed import KeyedLimit, KeyedLimitStatistics
from .outbox import Outbox, OutboxStatistics, Overflow, Spill
from .ratelimit import Rate, TokenBucket, TokenBucketStatistics
from .rooms import Membership, Receiver, RoomRegistry, RoomRegistryStatistics, TextReceiver
from .tasks import Tasks, TasksStatistics

__all__ = [
    # on a framework's socket
    "AttachPolicy",
    "AttachedConnection",
    "AttachedConnectionStatistics",
    "attach",
    # who is in which room
    "Membership",
    "Receiver",
    "RoomRegistry",
    "RoomRegistryStatistics",
    "TextReceiver",
    # bounded sending
    "Outbox",
    "OutboxStatistics",
    "Overflow",
    "Spill",
    # liveness
    "Action",
    "Heartbeat",
    "HeartbeatState",
    "HeartbeatStatistics",
    "SilenceWatch",
    "SilenceWatchStatistics",
    # limits and retries
    "Admission",
    "AdmissionStatistics",
    "Backoff",
    "BackoffStatistics",
    "KeyedLimit",
    "KeyedLimitStatistics",
    "Rate",
    "TokenBucket",
    "TokenBucketStatistics",
    # time
    "Deadline",
    "Deadlines",
    "DeadlinesStatistics",
    "LoopClock",
    "Timeout",
    "sleep",
    "sleep_until",
    "timeout",
    # tasks
    "Tasks",
    "TasksStatistics",
]
