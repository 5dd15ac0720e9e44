"""Mistakes in a program like ``programs/notifications_worker.py``; both checkers must refuse each marked line."""

# What is unknown because of a mistake would be reported a second time.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from rtkit import History, Publisher, Router
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
