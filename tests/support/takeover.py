"""A memory backend whose primary can fail: streams go on in a new epoch, as far as the next primary has them (B6)."""

from __future__ import annotations

from rtkit.brokers import MemoryBackend
from rtkit.messages import History
from rtkit.position import Position
from rtkit.streams import StreamPage, locate

__all__ = ["SurvivingBackend"]


class SurvivingBackend(MemoryBackend):
    """:meth:`take_over` is silent: hubs learn of it from the next entry, or when they compare tops.

    :ivar takeovers: of each topic, the epochs that are over, each with the offset at which the next one took over.
    :ivar truth: of each (topic, epoch) the payloads that anybody may have been given, by offset - 1.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.takeovers: dict[str, list[tuple[str, int]]] = {}
        self.truth: dict[tuple[str, str], list[bytes]] = {}

    def take_over(self, topic: str, lost: int = 0) -> Position:
        """The primary fails, and with it the last *lost* entries: where the stream goes on."""
        stream = self._streams[topic]
        lost = min(lost, len(stream))
        if lost:
            del stream._kept[-lost:]
            del stream._stamps[-lost:]
        self.takeovers.setdefault(topic, []).append((stream.epoch, stream.top))
        old = self.truth.get((topic, stream.epoch), [])
        stream.epoch = self._new_epoch()
        self.truth[topic, stream.epoch] = old[: stream.top]
        return stream.position

    def shared(self, topic: str, old: str, new: str) -> int:
        """Up to which offset two epochs are the same stream; -1 if they are not."""
        epochs = [*self.takeovers.get(topic, ()), (self._streams[topic].epoch, -1)]
        names = [epoch for epoch, _ in epochs]
        if old not in names or new not in names or names.index(old) >= names.index(new):
            return -1
        return min(offset for _, offset in epochs[names.index(old) : names.index(new)])

    def publish(self, topic: str, payload: bytes, position: Position | None) -> None:
        if position is not None:
            stream = self.truth.setdefault((topic, position.epoch), [])
            assert len(stream) == position.offset - 1
            stream.append(payload)
        super().publish(topic, payload, position)

    def read(
        self, topic: str, since: Position | None, limit: int, reverse: bool, history: History | None
    ) -> StreamPage:
        takeovers = self.takeovers.get(topic)
        if reverse or since is None or not takeovers:
            return super().read(topic, since, limit, reverse, history)
        page = super().read(topic, None, 0, False, history)  # tidies, and says what there is
        start, lost = locate(since, epoch=page.epoch, top=page.top, floor=page.floor, takeovers=takeovers)
        entries = self._streams[topic].after(start, max(0, limit))
        return StreamPage(page.epoch, page.top, page.floor, start, entries, lost)

    def clear(self, topic: str) -> Position:
        self.takeovers.pop(topic, None)
        return super().clear(topic)
