"""Typed messages: names, bytes and back (api 4, W3)."""

from __future__ import annotations

import base64
import datetime
import json
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from rtkit import DeclarationError, InvalidMessage
from rtkit.errors import BadUnit
from rtkit.schema import Codec, Schema, encode_value, event_of, message_name, split_event
from rtkit.wire import recode


@dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)


class Shape(msgspec.Struct, tag="shape", omit_defaults=True):
    name: str
    at: Point | None = None


class Line(TypedDict):
    length: float


class Model(pydantic.BaseModel):
    n: Annotated[int, pydantic.Field(gt=0)]
    label: str = "m"


class Nested(pydantic.BaseModel):
    inner: Model
    items: list[Model] = []


@dataclass
class Mixed:
    title: str
    model: Model


@dataclass
class Everything:
    raw: bytes
    when: datetime.datetime
    id: uuid.UUID
    price: Decimal
    kind: Literal["a", "b"]
    maybe: int | None = None


# -- names --------------------------------------------------------------------------------------------


class Tagged(msgspec.Struct, tag=True):
    x: int


class Numbered(msgspec.Struct, tag=3):
    x: int


@pytest.mark.parametrize(
    ("type_", "name", "expected"),
    [
        (Point, "", "Point"),
        (Shape, "", "shape"),
        (Tagged, "", "Tagged"),
        (Numbered, "", "Numbered"),
        (Line, "", "Line"),
        (Model, "", "Model"),
        (Point, "dot", "dot"),
        (Shape, "dot", "dot"),
        (object, "", "object"),
    ],
)
def test_wire_names(type_: Any, name: str, expected: str) -> None:
    """API 4: name=, else the msgspec tag, else the class name."""
    assert message_name(type_, name) == expected


@pytest.mark.parametrize("nameless", [int | str, 3, None, "x"])
def test_what_has_no_name(nameless: Any) -> None:
    with pytest.raises(DeclarationError, match="has no name of its own; .* pass name="):
        message_name(nameless)


def test_events_outside_typed_rooms() -> None:
    """A plain JSON value has none."""
    assert [event_of(value) for value in ({}, [], (), "x", 1, 1.5, True, None)] == [""] * 8
    assert (event_of(Point(1)), event_of(Shape("x")), event_of(Model(n=1))) == ("Point", "shape", "Model")


# -- round trips --------------------------------------------------------------------------------------

VALUES: list[Any] = [
    Point(1, -2, ["a", "ü"]),
    Shape("circle", Point(3)),
    Shape("dot"),
    Model(n=5, label="é"),
    Nested(inner=Model(n=1), items=[Model(n=2)]),
    Everything(
        b"\x00\xff",
        datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC),
        uuid.UUID(int=7),
        Decimal("1.10"),
        "b",
    ),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_there_and_back(value: Any) -> None:
    """API 4: in the room that publishes it."""
    schema = Schema([type(value)])
    data = schema.encode(value)
    assert schema.decode(data) == value
    assert b"\n" not in data
    event, inner = split_event(data)
    assert (event, schema.names) == (message_name(type(value)), (event,))
    assert Codec(type(value)).decode(inner) == value
    assert Codec(type(value)).encode(value) == bytes(inner)  # type: ignore[arg-type]


def test_a_typed_dict() -> None:
    """API 4: its values are plain dicts, so one of them fits a room."""
    schema = Schema([Point, Line])
    data = schema.encode({"length": 1.5})
    assert json.loads(data) == {"event": "Line", "data": {"length": 1.5}}
    assert schema.decode(data) == {"length": 1.5}
    with pytest.raises(BadUnit, match=r"Object missing required field `length`"):
        schema.decode(b'{"event":"Line","data":{}}')


def test_bytes_travel_as_base64() -> None:
    """API 4."""
    data = json.loads(encode_value(VALUES[-1]))
    assert base64.b64decode(data["raw"]) == b"\x00\xff"
    assert Codec(bytes).decode(b'"AP8="') == b"\x00\xff"
    with pytest.raises(BadUnit, match="Invalid base64"):
        Codec(bytes).decode(b'"?"')


def test_models_nested_in_what_is_no_model() -> None:
    """API 4: an acknowledgement may be a dataclass that holds a pydantic model, or a list of them."""
    assert json.loads(encode_value(Mixed("t", Model(n=1)))) == {"title": "t", "model": {"n": 1, "label": "m"}}
    assert json.loads(encode_value([Model(n=1), {"x": Nested(inner=Model(n=2))}])) == [
        {"n": 1, "label": "m"},
        {"x": {"inner": {"n": 2, "label": "m"}, "items": []}},
    ]


def test_raw_rooms() -> None:
    """API 2: any JSON; no event."""
    schema = Schema([object])
    assert schema.raw
    assert schema.names == ()
    assert schema.encode({"b": [1, 2.50, None], "a": "é"}) == '{"b":[1,2.5,null],"a":"é"}'.encode()
    assert schema.decode(b"[1]") == [1]
    assert schema.decode(UNSET) is None
    assert schema.encode(Point(1)) == b'{"x":1,"y":0,"tags":[]}'
    assert repr(schema) == "Schema(object)"


def test_unknown_fields_and_events() -> None:
    """API 4: fields that nobody knows are ignored, events that nobody knows are not."""
    schema = Schema([Point, Shape], where="rooms 'x'")
    assert schema.decode(b'{"event":"Point","data":{"x":1,"z":9},"more":0}') == Point(1)
    with pytest.raises(BadUnit, match="unknown event 'Nope'"):
        schema.decode(b'{"event":"Nope"}')
    with pytest.raises(BadUnit) as caught:
        schema.decode(b'{"event":"%b"}' % (b"n" * 5000))
    assert len(caught.value.message) < 200
    assert repr(schema) == "Schema(Point, shape)"


@pytest.mark.parametrize(
    ("type_", "data", "message"),
    [
        (Point, b'{"x":"1"}', "Expected `int`, got `str` - at `$.x`"),
        (Point, b'{"x":1,"tags":[1]}', "Expected `str`, got `int` - at `$.tags[0]`"),
        (Point, b"null", "Expected `object`, got `null`"),
        (Shape, b'{"name":"x","type":"other"}', "Invalid value 'other' - at `$.type`"),
        (Model, b'{"n":0}', "Input should be greater than 0 - at `$.n`"),
        (
            Model,
            b'{"n":"x"}',
            "Input should be a valid integer, unable to parse string as an integer - at `$.n`",
        ),
        (Nested, b'{"inner":{"n":1},"items":[{"n":1},{}]}', "Field required - at `$.items[1].n`"),
        (Model, b"[]", "Input should be an object - at `$`"),
        (int, b"true", "Expected `int`, got `bool`"),
        (int, b"", "not JSON"),
        (int, b"1 1", "not JSON"),
        (str, b'"\xff"', "not UTF-8"),
        (Everything, b'{"raw":"","when":"yesterday"}', "Invalid RFC3339 encoded datetime - at `$.when`"),
    ],
)
def test_a_fault_is_named_with_its_path(type_: Any, data: bytes, message: str) -> None:
    """API 4, W3: 107; the text is the client's to see, so nothing of ours is in it."""
    with pytest.raises(BadUnit) as caught:
        Codec(type_).decode(data)
    assert caught.value.message == message
    assert caught.value.code == 107
    assert caught.value.__cause__ is None


POISON = [
    b'"\\ud800"',
    b'{"x":1,"y":1e999}',
    b"[NaN]",
    b'{"n":' + b"1" * 5000 + b"}",
    b"[" * 200 + b"]" * 200,
    b'{"label":"\xed\xa0\x80","n":1}',
    b'{"n":1,"label":"\\udfff"}',
]


@pytest.mark.parametrize(
    "type_", [object, Point, Shape, Line, Model, Nested, Any], ids=lambda t: getattr(t, "__name__", "?")
)
@pytest.mark.parametrize("data", POISON)
def test_poison_is_refused_whatever_the_type(type_: Any, data: bytes) -> None:
    """W3: pydantic's own parser would let some of it through."""
    with pytest.raises(BadUnit):
        Codec(type_).decode(data)


def test_absent_data_is_null() -> None:
    assert Codec(object).decode(UNSET) is None
    assert Codec(type(None)).decode(UNSET) is None
    with pytest.raises(BadUnit):
        Codec(Point).decode(UNSET)


# -- what the application may not publish -------------------------------------------------------------


class Endless:
    pass


LOOP: list[Any] = []
LOOP.append(LOOP)
LOOPED_MODEL: dict[str, Any] = {"model": Model(n=1)}
LOOPED_MODEL["self"] = LOOPED_MODEL


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",
        {"\udfff": 1},
        Point(1, 1, ["\ud800"]),
        Model(n=1, label="\ud800"),
        object(),
        {1, object()},
        [object()],
        Mixed("x", object()),  # type: ignore[arg-type]
        Endless(),
        LOOP,
        LOOPED_MODEL,
        lambda: 1,
        {("a", 1): 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_json_can_hold(value: Any) -> None:
    """W3: refused where it is published, before anything is stored."""
    with pytest.raises(InvalidMessage, match="cannot be encoded as JSON"):
        encode_value(value)
    with pytest.raises(InvalidMessage):
        Schema([object]).encode(value)


def test_infinite_numbers_become_null() -> None:
    """W3: JSON has none, and a `NaN` in the stream would kill every browser that reads it."""
    assert encode_value([float("inf"), float("nan"), float("-inf")]) == b"[null,null,null]"

    class Reading(pydantic.BaseModel):
        value: float

    assert encode_value(Reading(value=float("nan"))) == b'{"value":null}'


@pytest.mark.parametrize("value", [1, "x", None, [], {}, Model(n=1), Tagged(1), Point])
def test_a_type_the_room_does_not_publish(value: Any) -> None:
    """API 4: says what it publishes, and what to do."""
    with pytest.raises(
        InvalidMessage, match=r"the room publishes Point, shape, not \w+; declare it in publishes="
    ):
        Schema([Point, Shape]).encode(value)


def test_a_subclass_is_another_type() -> None:
    """API 4: its fields could not be read back."""

    @dataclass
    class Point3(Point):
        z: int = 0

    with pytest.raises(InvalidMessage):
        Schema([Point]).encode(Point3(1))


# -- declaring ----------------------------------------------------------------------------------------


def test_declarations_that_cannot_work() -> None:
    """API 4."""

    class Other(TypedDict):
        x: int

    for types, message in (
        ([], "at least one type"),
        ([object, Point], "cannot stand beside other types"),
        ([Line, Other], "both TypedDicts"),
        ([Point, Point], "two message types are called 'Point'"),
        ([int], "a message is a dataclass"),
        ([Point | Shape], "a message is a dataclass"),
    ):
        with pytest.raises(DeclarationError, match=message):
            Schema(types)  # type: ignore[arg-type]


@pytest.mark.parametrize("type_", [Endless, 3, "Nowhere", object()])
def test_what_cannot_be_decoded(type_: Any) -> None:
    with pytest.raises(DeclarationError, match="cannot be a message.*Use a dataclass"):
        Codec(type_)


def test_reprs() -> None:
    assert repr(Codec(Point)) == "Codec(Point)"
    assert repr(Codec(int | str)) == "Codec(int | str)"  # type: ignore[arg-type]


# -- events -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        UNSET,
        b"null",
        b"1",
        b'"Say"',
        b"[]",
        b"{}",
        b'{"event":""}',
        b'{"event":1}',
        b'{"data":1}',
        b"{",
        b'{"event":"\\ud800"}',
    ],
)
def test_what_is_no_typed_message(data: Any) -> None:
    with pytest.raises(BadUnit):
        split_event(data)


def test_split_event() -> None:
    event, inner = split_event(b'{"event":"Say","data":{"a":1},"more":[]}')
    assert (event, bytes(inner)) == ("Say", b'{"a":1}')  # type: ignore[arg-type]
    assert split_event(b'{"event":"Say"}') == ("Say", UNSET)
    assert bytes(split_event(b'{"event":"Say","data":null}')[1]) == b"null"  # type: ignore[arg-type]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(JSON)
def test_any_json_passes_a_raw_room_unchanged(value: Any) -> None:
    """W3: canonical, in one line, and the same value."""
    schema = Schema([object])
    spaced = json.dumps(value, indent=1, ensure_ascii=True).encode()
    data = recode(spaced)
    assert b"\n" not in data
    assert schema.decode(data) == value
    assert recode(data) == data
    assert schema.encode(value) == data


@given(st.binary(max_size=60))
def test_no_bytes_crash_a_codec(data: bytes) -> None:
    """W3: a value, or a BadUnit."""
    for type_ in (object, Point, Shape, Line, Model, Nested):
        try:
            Codec(type_).decode(data)
        except BadUnit as error:
            assert error.code == 107
