"""Large units in pieces (T8): cut here, and put together here. Pure: no clock but the *now* it is given.

A unit larger than 64 KiB leaves as *chunks*, small units with a slice of its bytes each, so that whatever else has to
be said can be said in between. The rules, for both directions:

- A sender has one large unit under way at a time. It gives it an id that it has not used before (*of*), and numbers
  the chunks from 0 (*n*). The last one says so.
- A sender that gives a unit up simply stops; its next large unit begins with chunk 0 of another id, and what was there
  of the first is forgotten. Who then goes on with the first all the same is refused.
- A receiver refuses a unit once, with a :class:`BadChunk` that says why, and passes over what still comes of it.
- Nothing is kept for ever: not more bytes or chunks than the receiver has said, and no longer than it says. Nor does
  the receiver guess: what is whole has been begun, continued and ended in order.

The whole is never copied by the sender: a :class:`Cut` holds the one buffer, whoever sends it a cursor.
"""

from __future__ import annotations

import math
from typing import Final, final

from .. import codes
from ..errors import BadUnit
from .codec import dumps
from .units import Chunk, Command, Push, Reply

__all__ = ["SLICE", "UNIT", "Assembler", "BadChunk", "Cut", "Splitter", "slice_within", "unit_limit"]

#: Bytes of a unit in one chunk: 64 KiB in base64.
SLICE: Final = 48 * 1024
#: A larger unit is sent in chunks.
UNIT: Final = 64 * 1024

_AROUND: Final = 96  # bytes of a chunk unit beside its data, at the most: braces, names, two large numbers
_ROOM: Final = 1024  # bytes a frame needs beside 64 KiB, so that a chunk of a full slice fits it


class BadChunk(BadUnit):
    """A large unit is refused: a chunk is out of order or of nothing, it grew too large, or it took too long.

    :param of: the unit's id.
    :param retry_after: seconds after which sending it again makes sense; None when it does not.
    """

    def __init__(
        self, message: str, *, of: int, code: int = codes.BAD_REQUEST, retry_after: float | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.of = of
        self.retry_after = retry_after


def unit_limit(max_frame: int) -> int:
    """What a receiver of frames of so many bytes says of units: larger ones shall come in chunks."""
    return UNIT if max_frame >= UNIT + _ROOM else min(max_frame, UNIT - 1)


def slice_within(unit: int) -> int:
    """Bytes of a slice, so that its chunk is welcome where units have at most so many bytes."""
    if unit >= UNIT:
        return SLICE
    return max(3, (unit - _AROUND) * 3 // 12 * 3)


@final
class Cut:
    """A large unit, and its chunks as units; shared by whoever sends it.

    :param unit: the bytes; they are not copied.
    :param of: its id.
    :param push: for a client, else for a server.
    :param size: bytes in one chunk.
    :raises ValueError: for an empty unit, and for a size or an id that is not positive.
    """

    __slots__ = ("_push", "_size", "_view", "of", "unit")

    def __init__(self, unit: bytes, of: int, *, push: bool, size: int = SLICE) -> None:
        if not unit:
            raise ValueError("an empty unit cannot be cut")
        if size < 1 or of < 1:
            raise ValueError(f"a slice and an id are positive, not {size!r} and {of!r}")
        self.unit = unit
        self.of = of
        self._view = memoryview(unit)
        self._push = push
        self._size = size

    def __len__(self) -> int:
        """How many chunks."""
        return (len(self.unit) + self._size - 1) // self._size

    def chunk(self, n: int) -> bytes:
        """The unit of chunk *n*.

        :raises IndexError: when there is none.
        """
        begin = n * self._size
        end = begin + self._size
        if not 0 <= begin < len(self.unit):
            raise IndexError(f"chunk {n} of {len(self)}")
        # The encoder takes any buffer for base64; so the slice is not copied before.
        piece: bytes = self._view[begin:end]  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        body = Chunk(self.of, n, end >= len(self.unit), piece)
        return dumps(Reply(push=Push(chunk=body)) if self._push else Command(chunk=body))

    def __repr__(self) -> str:
        return f"<Cut #{self.of}, {len(self.unit)} bytes in {len(self)} chunks>"


@final
class Splitter:
    """A cursor in a :class:`Cut`: yields its chunks, one each time it is asked.

    :ivar n: the number of the next chunk.
    """

    __slots__ = ("cut", "n")

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.n = 0

    def __iter__(self) -> Splitter:
        return self

    def __next__(self) -> bytes:
        if self.done:
            raise StopIteration
        self.n += 1
        return self.cut.chunk(self.n - 1)

    @property
    def done(self) -> bool:
        """Whether the last chunk has been taken."""
        return self.n >= len(self.cut)

    def __repr__(self) -> str:
        return f"<Splitter at {self.n} of {self.cut!r}>"


@final
class Assembler:
    """Puts the large units of one direction of one connection together, one after another.

    :param limit: bytes of a unit at the most.
    :param count: chunks of a unit at the most.
    :param idle: seconds between two chunks of a unit, at the most.
    :param age: seconds from its first chunk to its last, at the most.
    :raises ValueError: for a bound that is not positive.
    """

    __slots__ = (
        "_began",
        "_done",
        "_heard",
        "_n",
        "_of",
        "_passed",
        "_pieces",
        "age",
        "count",
        "idle",
        "limit",
        "size",
    )

    def __init__(self, *, limit: int, count: int = 16 * 1024, idle: float = 30.0, age: float = 300.0) -> None:
        for name, value in (("limit", limit), ("count", count), ("idle", idle), ("age", age)):
            if not value > 0:
                raise ValueError(f"Assembler({name}=…) is positive, not {value!r}")
        self.limit = limit
        self.count = count
        self.idle = idle
        self.age = age
        self.size = 0
        """Bytes of the unit under way."""
        self._of = 0
        self._n = 0
        self._pieces: list[bytes] = []
        self._began = self._heard = -math.inf
        self._passed = 0  # refused, and what still comes of it is passed over
        self._done = 0

    def passes_over(self, of: int) -> bool:
        """Whether a chunk of this unit would be passed over, for it has been refused."""
        return of == self._passed

    def add(self, chunk: Chunk, now: float) -> bytes | None:
        """Take a chunk.

        :return: the unit, when it is whole; None when more has to come, or this was of a unit refused before.
        :raises BadChunk: for the first chunk that shows that the unit cannot be taken.
        """
        of, n = chunk.of, chunk.n
        if of == self._passed:
            return None
        if of != self._of:
            if n != 0:
                raise self.refuse(of, f"chunk {n} of large unit {of}, which is not under way")
            if of == self._done:
                raise self.refuse(of, f"the id {of} was used for the large unit before")
            self._forget()  # the sender has given up another one
            self._of, self._began = of, now
        elif n != self._n:
            raise self.refuse(of, f"chunk {n} of large unit {of}, where {self._n} comes next")
        elif now >= self.expires_at:
            raise self.refuse(of, *_TOO_SLOW)
        if not chunk.data:
            raise self.refuse(of, f"chunk {n} of large unit {of} is empty")
        if self.size + len(chunk.data) > self.limit:
            raise self.refuse(of, f"a unit has at most {self.limit} bytes", codes.LIMIT_EXCEEDED)
        if n >= self.count:
            raise self.refuse(of, f"a unit has at most {self.count} chunks", codes.LIMIT_EXCEEDED)
        self._pieces.append(chunk.data)
        self.size += len(chunk.data)
        self._n = n + 1
        self._heard = now
        if not chunk.last:
            return None
        unit = b"".join(self._pieces)
        self._forget()
        self._done = of
        return unit

    def refuse(
        self, of: int, message: str, code: int = codes.BAD_REQUEST, retry_after: float | None = None
    ) -> BadChunk:
        """Refuse a unit, for a reason of the owner's: pass over what still comes of it.

        :return: what the sender is to be told.
        """
        if of == self._of:
            self._forget()
        self._passed = of
        return BadChunk(message, of=of, code=code, retry_after=retry_after)

    def expire(self, now: float) -> BadChunk | None:
        """Refuse the unit under way if its time is up."""
        return self.refuse(self._of, *_TOO_SLOW) if self._of and now >= self.expires_at else None

    def hold(self, now: float) -> None:
        """It was the receiver that made the sender wait until now."""
        self._heard = now

    @property
    def expires_at(self) -> float:
        """When :meth:`expire` has something to refuse; infinite for never."""
        return min(self._heard + self.idle, self._began + self.age) if self._of else math.inf

    def _forget(self) -> None:
        self._of = self._n = self.size = 0
        self._pieces = []

    def __bool__(self) -> bool:
        """Whether a unit is under way."""
        return self._of != 0

    def __repr__(self) -> str:
        return f"<Assembler {f'of #{self._of}, {self._n} chunks, {self.size} bytes' if self._of else 'idle'}>"


_TOO_SLOW: Final = ("the large unit took too long", codes.LIMIT_EXCEEDED)
