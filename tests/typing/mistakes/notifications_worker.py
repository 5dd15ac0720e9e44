"""Mistakes in a program like ``programs/notifications_worker.py``; both checkers must refuse each marked line."""

# What is unknown because of a mistake would be reported a second time.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from rtkit import History, Publisher, Router
from rtkit.sync import Publisher as SyncPublisher
from tests.typing.programs.notifications_worker import ExportReady, Job, notifications, router

Publisher("memory://")  # expect: mypy[call-arg] pyright[reportCallIssue]
Publisher("memory://", notifications)  # expect: mypy[arg-type] pyright[reportArgumentType]
Publisher(6379, router)  # expect: mypy[arg-type] pyright[reportArgumentType]


async def work(publisher: Publisher, job: Job) -> None:
    ready = ExportReady("/x")
    publisher.publish("user:ann", ready)  # expect: mypy[unused-coroutine] pyright[reportUnusedCoroutine]
    # expect: mypy[arg-type] pyright[reportArgumentType]
    await publisher.publish("user:ann", ready, key=job.rows)
    published = await publisher.publish("user:ann", ready, key=job.id)
    _: int = published.position  # expect: mypy[assignment] pyright[reportAssignmentType]


SyncPublisher("redis://localhost")  # expect: mypy[call-arg] pyright[reportCallIssue]
# expect: mypy[arg-type] pyright[reportArgumentType]
SyncPublisher("redis://localhost", router, timeout="5")
# expect: mypy[attr-defined] pyright[reportAttributeAccessIssue]
SyncPublisher("redis://localhost", router).aclose()


async def work_in_a_loop(publisher: SyncPublisher, job: Job) -> None:
    # expect: mypy[misc] pyright[reportGeneralTypeIssues]
    await publisher.publish("user:ann", ExportReady("/x"))
    # expect: mypy[arg-type] pyright[reportArgumentType]
    publisher.publish("user:ann", ExportReady("/x"), key=job.rows)


users = Router[int]()
# expect: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
users.rooms("a:{x}", publishes=ExportReady, history=50)
# expect: mypy[call-overload] pyright[reportCallIssue]
users.rooms("b:{x}", publishes=ExportReady, histroy=History(1, ttl=1))
# expect: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
users.rooms("c:{x}", publishes="ExportReady")
# expect: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
users.rooms("d:{x}", publishes=ExportReady, overflow="drop")
# expect: mypy[list-item] pyright[reportCallIssue, reportArgumentType]
users.rooms("e:{x}", publishes=ExportReady, auto_join=lambda identity: [identity.claims])
