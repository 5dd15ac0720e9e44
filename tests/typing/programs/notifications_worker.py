"""Notifications from a worker, as a Celery task would send them: a broker and the declarations, no hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from dataclasses import dataclass

from rtkit import Grant, History, Published, Publisher, Router
from rtkit.brokers import Broker

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

# -- the worker ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One task of the queue; it may be delivered twice, as queues do."""

    id: str
    user: str
    rows: int


class Exports:
    """Runs jobs, and tells the users."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    async def run(self, job: Job) -> Published:
        # The job's id as the key: run twice, it notifies once.
        if job.rows > 1_000_000:
            failed = ExportFailed(f"{job.rows} rows are too many")
            return await self.publisher.publish(room_of(job.user), failed, key=job.id)
        ready = ExportReady(f"/exports/{job.id}.csv")
        return await self.publisher.publish(room_of(job.user), ready, key=job.id)


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
