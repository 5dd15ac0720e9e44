"""Brokers that do not stand it when their backend is out of reach for a while: each with one fault."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from rtkit.brokers import MemoryBroker, Sink
from rtkit.errors import BrokerUnavailable, PublishUnknown
from rtkit.streams import StreamPage
from tests.conformance.weather import CHANGES, LOOKS, SUBSCRIBES, OutdoorBroker

__all__ = ["BROKEN_OUTDOORS"]


class WaitsForBetterWeather(OutdoorBroker):
    """Hangs until the backend is there."""

    async def carry(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        await self.weather.wait()
        return await super().carry(name, call)


class SendsLater(OutdoorBroker):
    """Says that it is done, and means that it will be."""

    async def carry(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if self.weather.fair or name not in ("publish", "clear"):
            return await super().carry(name, call)
        self.__dict__.setdefault("later", []).append(call)
        return None

    async def come_back(self) -> None:
        await super().come_back()
        for call in self.__dict__.pop("later", ()):
            await call()


class RefusesAndSendsLater(SendsLater):
    """Says that nothing was done, and does it when it can."""

    async def carry(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if not self.weather.fair and name in CHANGES:
            self.__dict__.setdefault("later", []).append(call)
        return await OutdoorBroker.carry(self, name, call)


class StaysDeaf(OutdoorBroker):
    """Does not subscribe again."""

    def resubscribe(self) -> None:
        pass


class SaysNothing(OutdoorBroker):
    """Subscribes again, and does not say that it had to."""

    def warn(self) -> None:
        pass


class WarnsTooEarly(OutdoorBroker):
    """Says that something was missed, and goes on missing it."""

    async def come_back(self) -> None:
        self.warn()
        await asyncio.sleep(0.05)
        self.resubscribe()


class CannotCloseInTheRain(OutdoorBroker):
    """Says goodbye to the server, and waits for the answer."""

    async def aclose(self) -> None:
        await self.weather.wait()
        await super().aclose()


class IsHalfOpen(OutdoorBroker):
    """Could not be opened, and remembers the attempt."""

    async def open(self, sink: Sink) -> None:
        try:
            await super().open(sink)
        except BrokerUnavailable:
            await MemoryBroker.open(self, sink)
            raise


class SubscribesLater(OutdoorBroker):
    """Takes note of what is to be subscribed, and forgets it."""

    async def carry(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if name in SUBSCRIBES and (not self.weather.fair or self.__dict__.get("forgetful")):
            self.__dict__["forgetful"] = True
            return None
        return await super().carry(name, call)


class ShowsWhatItRemembers(OutdoorBroker):
    """Answers from a cache what it cannot ask."""

    async def carry(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if name in LOOKS and not self.weather.fair:
            return await call()
        return await super().carry(name, call)


class SaysItWasNot(OutdoorBroker):
    """Says of everything that was cut off that it was not done."""

    def cut_off(self, name: str) -> Exception:
        return BrokerUnavailable("it was cut off")


class SaysItWas(OutdoorBroker):
    """Says of what was cut off on its way there that it was done."""

    async def carry(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        with contextlib.suppress(PublishUnknown):
            return await super().carry(name, call)
        found = await MemoryBroker.read(self, "nothing", limit=0)
        return await call() if name == "clear" else self.invent(name, found)

    def invent(self, name: str, found: StreamPage) -> Any:
        from rtkit.brokers import Appended

        return Appended(found.position) if name == "append" else found.position


class SendsAgain(OutdoorBroker):
    """Repeats what was cut off, without looking whether it was done."""

    async def carry(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await super().carry(name, call)
        except PublishUnknown:
            for stream in self.backend._streams.values():
                stream.keys.clear()
            asyncio.get_running_loop().call_later(0.01, lambda: asyncio.ensure_future(call()))
            raise


class ForgetsTheLast(OutdoorBroker):
    """A server that acknowledges what it has not written: in the same epoch, others come in its place."""

    def crashed(self) -> None:
        for stream in self.backend._streams.values():
            if self.weather.__dict__.setdefault("forgot", self) is self and len(stream) > 3:
                del stream._kept[-3:]
                del stream._stamps[-3:]
        for found in self.backend._state.values():
            found.revisions = max(1, found.revisions - 3)


class KnowsTheNames(OutdoorBroker):
    """Names the epochs of an empty server as it did before."""

    async def open(self, sink: Sink) -> None:
        self.backend._new_epoch = lambda: "first"
        await super().open(sink)


class RevisesFieldByField(OutdoorBroker):
    """Needs several steps to revise, between which it may be cut off."""

    async def revise(self, key: str, changes: Any, **options: Any) -> Any:
        for field in list(changes)[1:]:
            await self.put(key, field, changes[field] or b"", ttl=options["ttl"])
        return await super().revise(key, dict(list(changes.items())[:1]), **options)


BROKEN_OUTDOORS: dict[type[MemoryBroker], str] = {
    WaitsForBetterWeather: "test_without_the_backend_publishing_fails_and_nothing_hangs"
    " test_without_the_backend_subscribing_does_not_hang test_without_the_backend_clearing_fails",
    SendsLater: "test_without_the_backend_publishing_fails_and_nothing_hangs"
    " test_without_the_backend_clearing_fails",
    RefusesAndSendsLater: "test_without_the_backend_publishing_fails_and_nothing_hangs",
    StaysDeaf: "test_after_an_outage_subscriptions_are_there_without_help"
    " test_after_a_restart_subscriptions_are_there_without_help"
    " test_after_a_loss_subscriptions_are_there_without_help"
    " test_who_is_told_that_something_was_missed_hears_what_comes",
    SaysNothing: "test_after_an_outage_it_is_said_that_something_may_have_been_missed"
    " test_after_a_restart_subscriptions_are_there_without_help",
    WarnsTooEarly: "test_who_is_told_that_something_was_missed_hears_what_comes",
    CannotCloseInTheRain: "test_it_can_be_closed_and_opened_without_the_backend",
    IsHalfOpen: "test_it_can_be_closed_and_opened_without_the_backend",
    SubscribesLater: "test_without_the_backend_subscribing_does_not_hang",
    ShowsWhatItRemembers: "test_without_the_backend_appending_and_reading_fail"
    " test_without_the_backend_state_is_neither_changed_nor_shown",
    SaysItWasNot: "test_what_was_being_appended_is_there_once_when_it_is_repeated"
    " test_a_revision_is_done_wholly_or_not_at_all",
    SaysItWas: "test_what_was_being_appended_is_there_once_when_it_is_repeated",
    SendsAgain: "test_what_was_being_appended_is_there_once_when_it_is_repeated",
    ForgetsTheLast: "test_after_a_restart_what_was_acknowledged_is_there_or_the_epoch_is_another"
    " test_after_a_restart_a_count_has_not_gone_back",
    KnowsTheNames: "test_a_stream_that_was_lost_begins_a_new_epoch"
    " test_a_count_that_was_lost_goes_on_in_a_new_epoch",
    RevisesFieldByField: "test_a_revision_is_done_wholly_or_not_at_all",
}
