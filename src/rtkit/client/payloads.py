"""Application data: from values to what is sent, and from what came to values. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import Any, Final

from msgspec import UNSET, Raw, UnsetType

from ..errors import BadUnit, InvalidMessage, UsageError
from ..messages import Message
from ..position import Gap, Position
from ..schema import Codec, Schema, encode_value, message_name, split_event
from ..wire import PublishResult, Reply, dumps
from .roomqueue import Item

__all__ = [
    "IGNORED",
    "Reader",
    "Unpack",
    "event_of",
    "is_utf8",
    "pack",
    "pack_call",
    "unpack_ack",
    "unpack_answer",
]

#: What :meth:`Reader.decode` answers for an event that is none of the types wanted.
IGNORED: Final = object()


def _is_typed(value: object) -> bool:
    """Whether a value's class is a declared message type, with a name of its own."""
    kind = type(value)
    return is_dataclass(kind) or hasattr(kind, "__struct_config__") or hasattr(kind, "model_dump_json")


def is_utf8(text: str) -> bool:
    """Whether text can be sent at all: lone surrogates cannot (W3)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def event_of(message: object, name: str) -> str:
    """The event a message goes by: *name*, else that of its type; empty for plain JSON without a name."""
    if not is_utf8(name):
        raise InvalidMessage(f"an event is text that UTF-8 can hold, not {name!r:.80}")
    if name or not _is_typed(message):
        return name
    return message_name(type(message))


def pack(message: object, name: str) -> Raw:
    """The ``data`` of a publish command.

    :raises InvalidMessage: for a value that JSON cannot hold.
    """
    event, data = event_of(message, name), encode_value(message)
    return Raw(b'{"event":%b,"data":%b}' % (dumps(event), data) if event else data)


def pack_call(params: object, name: str) -> tuple[str, Raw | UnsetType]:
    """Method and ``data`` of a call; None as params sends no data.

    :raises UsageError: when there is no name to call by.
    :raises InvalidMessage: for a value that JSON cannot hold.
    """
    method = event_of(params, name)
    if not method:
        raise UsageError(
            f"what is {type(params).__name__} to call? Pass name=…, or params of a declared type"
        )
    if len(method.encode()) > 255:
        raise InvalidMessage("the name of a procedure has at most 255 bytes")
    return method, UNSET if params is None else Raw(encode_value(params))


#: Makes what the sender gets out of the reply.
Unpack = Callable[[Reply], Any]


def unpack_ack(returns: type[Any]) -> Unpack:
    """For the reply to a publish: the acknowledgement, or the position of a plain publish.

    Without a type (``object``) it is any JSON, and None where there is none.
    """
    codec: Codec[Any] = Codec(returns)

    def unpack(reply: Reply) -> Any:
        result = reply.publish or PublishResult()
        if isinstance(result.data, UnsetType) and returns is Position and result.epoch:
            return Position(result.epoch, result.offset)
        return codec.decode(result.data)

    return unpack


def unpack_answer(returns: type[Any]) -> Unpack:
    """For the reply to a call."""
    codec: Codec[Any] = Codec(returns)
    return lambda reply: codec.decode(reply.rpc.data if reply.rpc is not None else UNSET)


class Reader:
    """Decodes what a room, or anything else with events, brings.

    :param types: what is wanted; ``object`` alone takes everything as plain JSON, events included.
    :param where: for error messages.
    :raises DeclarationError: for types that cannot be messages, or that share a name.
    """

    __slots__ = ("_any", "_codecs", "where")

    def __init__(self, types: Iterable[type[Any]], *, where: str) -> None:
        types = tuple(types)
        self.where = where
        Schema(types, where=where)  # validates
        self._any: Codec[Any] | None = Codec(object) if types == (object,) else None
        self._codecs: dict[str, Codec[Any]] = {}
        if self._any is None:
            self._codecs = {message_name(type_): Codec(type_) for type_ in types}

    def decode(self, data: bytes | Raw | UnsetType) -> Any:
        """A value, or :data:`IGNORED`.

        :raises BadUnit: for data that does not fit its type.
        """
        if self._any is not None:
            return self._any.decode(data)
        event, inner = split_event(data)
        return self.decode_event(event, inner)

    def decode_event(self, event: str, data: bytes | Raw | UnsetType) -> Any:
        """Likewise, with the event known."""
        if self._any is not None:
            return self._any.decode(data)
        codec = self._codecs.get(event)
        return IGNORED if codec is None else codec.decode(data)

    def message(self, item: Item) -> Message[Any] | Gap | None:
        """An item of a room's queue as the application gets it; None for one it does not want.

        :raises BadUnit: for data that does not fit its type.
        """
        if isinstance(item, Gap):
            return item
        try:
            data = self.decode(item.data)
        except BadUnit as error:
            place = f" at {item.position}" if item.position is not None else ""
            raise BadUnit(f"{self.where}: a message{place} cannot be read: {error.message}") from None
        if data is IGNORED:
            return None
        return Message(data, item.position, item.sender, item.published_at, item.client)

    def __repr__(self) -> str:
        return f"Reader({', '.join(self._codecs) or 'object'})"
