"""A place in a room's stream, and the statement that a part of it is gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Gap", "GapReason", "Position"]

GapReason = Literal["trimmed", "epoch", "rollback", "dropped"]


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream: just behind the message with this *offset* (H1).

    :param epoch: names one life of the stream; it changes when the stream was lost or cleared.
        Offsets of different epochs cannot be compared.
    :param offset: 1 for the first message, without holes; 0 is the place before the first.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages with ``start < offset <= end`` are not available; delivery goes on at ``end + 1`` (H3).

    On the wire ``start`` and ``end`` are called ``from`` and ``to``.

    :param epoch: the epoch that *start* and *end* belong to: the one delivery goes on in.
    :param reason: ``trimmed``: history no longer reaches back that far. ``epoch``: the stream was
        replaced by a new one; anything may be missing from the old one. ``rollback``: the broker
        lost messages it had acknowledged. ``dropped``: messages of a room without a usable history
        were dropped for a slow consumer.
    """

    start: int
    end: int
    epoch: str
    reason: GapReason

    def __str__(self) -> str:
        return f"gap ({self.reason}): {self.start} < offset <= {self.end} in epoch {self.epoch or '-'}"
