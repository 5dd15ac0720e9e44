"""Typed messages: what a class is called on the wire, and how its values become bytes and back.

Messages are dataclasses, msgspec Structs, TypedDicts or pydantic models; ``object`` stands for any JSON. In rooms
that declare types, application data is ``{"event": name, "data": …}``; in raw rooms it is the data itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, Generic, cast, is_typeddict

import msgspec
from msgspec import UNSET, Raw, UnsetType
from typing_extensions import TypeVar

from .errors import BadUnit, DeclarationError, InvalidMessage
from .wire.codec import dumps, loads

__all__ = ["Codec", "Schema", "encode_value", "event_of", "message_name", "split_event"]

T = TypeVar("T", default=Any)


class _Event(msgspec.Struct, omit_defaults=True):
    event: str = ""
    data: Raw | UnsetType = UNSET


_event = msgspec.json.Decoder(_Event)
_any = msgspec.json.Decoder(Any)
_NULL = b"null"


def message_name(type_: type[Any], name: str = "") -> str:
    """The wire name of a message type: *name*, else its msgspec tag, else the class name.

    :raises DeclarationError: for one that has none, as a union.
    """
    if name:
        return name
    config = getattr(type_, "__struct_config__", None)
    found = getattr(config, "tag", None)
    if not isinstance(found, str):
        found = getattr(type_, "__name__", None)
    if not isinstance(found, str):
        raise DeclarationError(f"{type_!r} has no name of its own; if it is a type of message, pass name=")
    return found


def event_of(value: object) -> str:
    """The event of a message outside the rooms that declare types: its wire name; a plain JSON value has none."""
    plain = isinstance(value, str | int | float | bool | list | tuple | dict | None)
    return "" if plain else message_name(type(value))


def _is_pydantic(type_: Any) -> bool:
    return (
        isinstance(type_, type)
        and hasattr(type_, "model_validate_json")
        and hasattr(type_, "model_dump_json")
    )


class Codec(Generic[T]):
    """Values of one type to JSON and back.

    :param type_: a dataclass, Struct, TypedDict, pydantic model, ``object``, or anything msgspec can decode.
    :raises DeclarationError: for a type that cannot be decoded from JSON.
    """

    __slots__ = ("_decoder", "_pydantic", "type")

    def __init__(self, type_: type[T]) -> None:
        self.type = type_
        self._pydantic: Any = type_ if _is_pydantic(type_) else None
        self._decoder: msgspec.json.Decoder[Any] = _any
        if self._pydantic is None and type_ is not object:
            try:
                self._decoder = msgspec.json.Decoder(type_)
                if isinstance(msgspec.inspect.type_info(type_), msgspec.inspect.CustomType):
                    raise TypeError("it says nothing of its fields")
            except (TypeError, NameError) as error:
                raise DeclarationError(
                    f"{getattr(type_, '__name__', type_)!s} cannot be a message: {error}. Use a dataclass, a "
                    f"msgspec Struct, a TypedDict or a pydantic model whose fields have JSON types"
                ) from None

    def decode(self, data: bytes | Raw | UnsetType) -> T:
        """A value from untrusted JSON; absent data is ``null``.

        :raises BadUnit: with the path of the fault (107).
        """
        raw = _NULL if isinstance(data, UnsetType) else bytes(data)
        if self._pydantic is None:
            return cast(T, loads(raw, self._decoder))
        loads(raw, _any)  # poison that pydantic would let through
        try:
            return cast(T, self._pydantic.model_validate_json(raw))
        except ValueError as error:
            raise BadUnit(_explain_pydantic(error)) from None

    def encode(self, value: T) -> bytes:
        """A value as canonical JSON.

        :raises InvalidMessage: for one that JSON cannot hold.
        """
        return encode_value(value)

    def __repr__(self) -> str:
        return f"Codec({getattr(self.type, '__name__', self.type)!s})"


def encode_value(value: Any) -> bytes:
    """Any value as canonical JSON in one line; pydantic models and what they are nested in included.

    :raises InvalidMessage: for one that JSON cannot hold.
    """
    try:
        if _is_pydantic(type(value)):
            return cast(str, value.model_dump_json()).encode()
        return _dumps_with_models(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidMessage(f"{type(value).__name__} cannot be encoded as JSON: {error}") from error


def _dumps_with_models(value: Any) -> bytes:
    try:
        return dumps(value)
    except TypeError:
        # Something inside is no JSON type; a pydantic model knows how to become one.
        return msgspec.json.encode(value, enc_hook=_model_to_json)


def _model_to_json(value: Any) -> Any:
    if _is_pydantic(type(value)):
        return Raw(cast(str, value.model_dump_json()).encode())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _explain_pydantic(error: ValueError) -> str:
    details: Any = getattr(error, "errors", None)
    if callable(details):
        first: Any = next(iter(cast("Iterable[Any]", details())), None)
        if first is not None:
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            return f"{first['msg']} - at `${path}`"
    return "does not validate"


class Schema:
    """The messages of one room family.

    :param types: what the room publishes; ``object`` alone makes it raw: any JSON, no events.
    :param where: for error messages.
    :raises DeclarationError: when two types share a name, or more than one of them has no class at
        run time (a TypedDict's values are plain dicts).
    """

    __slots__ = ("_by_name", "_by_type", "_dicts", "raw", "where")

    def __init__(self, types: Iterable[type[Any]], *, where: str = "the room") -> None:
        self.where = where
        self._by_name: dict[str, Codec[Any]] = {}
        self._by_type: dict[type[Any], str] = {}
        self._dicts = ""
        types = tuple(types)
        self.raw = types == (object,)
        if not types:
            raise DeclarationError(f"{where}: publishes= names at least one type, or object for any JSON")
        if self.raw:
            return
        for type_ in types:
            if type_ is object:
                raise DeclarationError(f"{where}: object means any JSON and cannot stand beside other types")
            name = self._add(type_)
            if is_typeddict(type_):
                if self._dicts:
                    raise DeclarationError(
                        f"{where}: {self._dicts} and {name} are both TypedDicts, whose values are plain dicts and "
                        f"cannot be told apart; make one of them a dataclass"
                    )
                self._dicts = name

    def _add(self, type_: type[Any]) -> str:
        known = (
            is_dataclass(type_)
            or is_typeddict(type_)
            or hasattr(type_, "__struct_config__")
            or _is_pydantic(type_)
        )
        if not (known and isinstance(cast(object, type_), type)):
            raise DeclarationError(
                f"{self.where}: a message is a dataclass, msgspec Struct, TypedDict or pydantic model, "
                f"not {type_!r}; for several types pass a "
                f"tuple, (A, B), and for any JSON object"
            )
        name = message_name(type_)
        if name in self._by_name:
            raise DeclarationError(
                f"{self.where}: two message types are called {name!r} on the wire; rename one, or give it a tag"
            )
        self._by_name[name] = Codec(type_)
        self._by_type[type_] = name
        return name

    @property
    def names(self) -> tuple[str, ...]:
        """The wire names, in the order declared."""
        return tuple(self._by_name)

    def encode(self, message: object) -> bytes:
        """A message as it will stand in the publication's ``data``.

        :raises InvalidMessage: for a type the room does not publish, or a value JSON cannot hold.
        """
        if self.raw:
            # Decoding what a server publishes would cost every publication; encoding anew checks enough.
            return encode_value(message)
        name = self._by_type.get(type(message)) or (self._dicts if isinstance(message, dict) else "")
        if not name:
            raise InvalidMessage(
                f"{self.where} publishes {', '.join(self._by_name)}, not {type(message).__name__}; "
                f"declare it in publishes="
            )
        return b'{"event":%b,"data":%b}' % (dumps(name), encode_value(message))

    def decode(self, data: bytes | Raw | UnsetType) -> Any:
        """A message from the ``data`` of a publication.

        :raises BadUnit: when it is not one of the room's messages.
        """
        if self.raw:
            return loads(_NULL if isinstance(data, UnsetType) else bytes(data), _any)
        event, inner = split_event(data)
        codec = self._by_name.get(event)
        if codec is None:
            raise BadUnit(f"unknown event {event[:60]!r}")
        return codec.decode(inner)

    def __repr__(self) -> str:
        return f"Schema({'object' if self.raw else ', '.join(self._by_name)})"


def split_event(data: bytes | Raw | UnsetType) -> tuple[str, Raw | UnsetType]:
    """Event and inner data of a typed message.

    :raises BadUnit: when it is not ``{"event": name, "data": …}``.
    """
    if isinstance(data, UnsetType):
        raise BadUnit('expected {"event": name, "data": …}')
    found = loads(bytes(data), _event)
    if not found.event:
        raise BadUnit('expected {"event": name, "data": …}: the event is missing')
    return found.event, found.data
