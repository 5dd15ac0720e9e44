"""Mistakes in a program like ``programs/custom_broker.py``; both checkers must refuse each marked line."""

# What is unknown because of a mistake would be reported a second time.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable

from rtkit import Hub, Position, anonymous
from rtkit.brokers import Broker, Sink
from tests.typing.programs.custom_broker import Bus, BusBroker, make_hub


class WithoutUnsubscribe:
    """One method is missing."""

    async def open(self, sink: Sink) -> None: ...
    async def aclose(self) -> None: ...
    async def publish(self, topic: str, payload: bytes) -> None: ...
    async def subscribe(self, topics: Iterable[str]) -> None: ...


class WithWrongParameters(BusBroker):
    """Payloads are bytes."""

    # expect: mypy[override] pyright[reportIncompatibleMethodOverride]
    async def publish(self, topic: str, payload: str) -> None: ...


class OneTopicAtATime(WithoutUnsubscribe):
    """Topics come in any iterable."""

    async def unsubscribe(self, topics: list[str]) -> None: ...


class NotAsync(WithoutUnsubscribe):
    """It blocks."""

    def unsubscribe(self, topics: Iterable[str]) -> None: ...


make_hub(WithoutUnsubscribe())  # expect: mypy[arg-type] pyright[reportArgumentType]
make_hub(WithWrongParameters(Bus()))  # expect: mypy[arg-type] pyright[reportArgumentType]
make_hub(OneTopicAtATime())  # expect: mypy[arg-type] pyright[reportArgumentType]
Hub(authenticate=anonymous, broker=NotAsync())  # expect: mypy[arg-type] pyright[reportArgumentType]
Hub(authenticate=anonymous, broker=BusBroker)  # expect: mypy[arg-type] pyright[reportArgumentType]
make_hub(BusBroker())  # expect: mypy[call-arg] pyright[reportCallIssue]
fine: Broker = BusBroker(Bus())


def deliver(sink: Sink) -> None:
    sink.deliver("topic", "payload", None)  # expect: mypy[arg-type] pyright[reportArgumentType]
    sink.deliver("topic", b"payload", 7)  # expect: mypy[arg-type] pyright[reportArgumentType]
    sink.deliver("topic", b"payload", Position("epoch", 7))
    sink.interrupted(7)  # expect: mypy[arg-type] pyright[reportArgumentType]
