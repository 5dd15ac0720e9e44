"""Notifications from workers, with an event loop and, as Celery's, without: a broker and the declarations, no hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass

from rtkit import Grant, History, Published, Publisher, Router
from rtkit.brokers import Broker
from rtkit.errors import Unavailable
from rtkit.sync import Publisher as SyncPublisher

# -- what the web application and the worker both import ------------------------------------------------


@dataclass
class ExportReady:
    """The file can be fetched."""

    url: str


@dataclass
class ExportFailed:
    """It cannot."""

    why: str


def room_of(user: str) -> str:
    """The room of a user, whatever characters the id is made of."""
    return notifications.name(user=user)


router = Router[None]()
notifications = router.rooms(
    "user:{user}",
    publishes=(ExportReady, ExportFailed),
    history=History(50, ttl=7 * 86400),
    grant=Grant("history"),
    auto_join=lambda identity: [room_of(identity.user)],
)

# -- a worker -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One task of the queue; it may be delivered twice, as queues do."""

    id: str
    user: str
    rows: int


def outcome(job: Job) -> ExportReady | ExportFailed:
    """What there is to tell."""
    if job.rows > 1_000_000:
        return ExportFailed(f"{job.rows} rows are too many")
    return ExportReady(f"/exports/{job.id}.csv")


class Exports:
    """Runs jobs, and tells the users."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    async def run(self, job: Job) -> Published:
        # The job's id as the key: run twice, it notifies once.
        return await self.publisher.publish(room_of(job.user), outcome(job), key=job.id)


async def work(jobs: AsyncIterable[Job], broker: str | Broker) -> list[Published]:
    """The life of a worker process."""
    async with Publisher(broker, router) as publisher:
        exports = Exports(publisher)
        return [await exports.run(job) async for job in jobs]


async def demo_jobs() -> AsyncIterable[Job]:
    for job in (Job("a", "org:7/ann", 10), Job("b", "org:7/ann", 10_000_000), Job("a", "org:7/ann", 10)):
        await asyncio.sleep(0)
        yield job


async def main(broker: str | Broker = "memory://") -> list[Published]:
    return await work(demo_jobs(), broker)


# -- a worker without an event loop, as Celery's are --------------------------------------------------


class Tasks:
    """What a module of tasks has. It is imported once, before the pool forks its workers."""

    def __init__(self, broker: str) -> None:
        self.publisher = SyncPublisher(broker, router, timeout=5)  # opens nothing

    def export(self, job: Job, *, attempts: int = 3) -> Published:
        """A task; Celery would do the repeating."""
        for _ in range(attempts - 1):
            try:
                return self.publisher.publish(room_of(job.user), outcome(job), key=job.id)
            except Unavailable:
                pass  # with the same key, it is safe
        return self.publisher.publish(room_of(job.user), outcome(job), key=job.id)


def cron(broker: str, jobs: Iterable[Job]) -> list[Published]:
    """A script: it opens the connection at once, and closes it."""
    with SyncPublisher(broker, router) as publisher:
        return [publisher.publish(room_of(job.user), outcome(job), key=job.id) for job in jobs]
