"""The shared vectors: what our own codec, and with it the Python client, makes of them (W1, K1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw, UnsetType

from rtkit import codes
from rtkit.wire import BadCommand, decode_command, decode_reply, dumps, split
from rtkit.wire.units import Command, Reply

VECTORS = Path(__file__).parents[2] / "vectors"
UNITS: list[dict[str, Any]] = json.loads((VECTORS / "units.json").read_text("utf-8"))["vectors"]
CODES: dict[str, Any] = json.loads((VECTORS / "codes.json").read_text("utf-8"))


def of(*kinds: str) -> Any:
    found = [pytest.param(vector, id=vector["name"]) for vector in UNITS if vector["kind"] in kinds]
    return pytest.mark.parametrize("vector", found)


def plain(value: Any) -> Any:
    """A decoded value as JSON has it."""
    if isinstance(value, UnsetType):
        return None
    if isinstance(value, Raw):
        return json.loads(bytes(value))
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return json.loads(msgspec.json.encode(value))
    return value


def at(unit: Any, path: str) -> Any:
    """The value at a path; names of fields are those of the wire."""
    rest = path
    while rest:
        if isinstance(unit, dict):
            # A room's name may have dots of its own; here none has.
            name, _, rest = rest.partition(".")
            unit = unit[name]
        elif isinstance(unit, list):
            name, _, rest = rest.partition(".")
            unit = unit[int(name)]
        else:
            name, _, rest = rest.partition(".")
            names = {field.encode_name: field.name for field in msgspec.structs.fields(unit)}
            unit = getattr(unit, names[name])
    return plain(unit)


def check(unit: Any, expected: dict[str, Any]) -> None:
    for path, value in expected.items():
        found = at(unit, path)
        assert found == value, path
        assert type(found) is type(value), path


@of("command")
def test_commands(vector: dict[str, Any]) -> None:
    command = decode_command(vector["unit"].encode())
    check(command, vector["expected"])
    canonical = vector.get("canonical", vector["unit"])
    assert dumps(command).decode() == canonical
    assert dumps(decode_command(canonical.encode())).decode() == canonical


@of("bad command")
def test_bad_commands(vector: dict[str, Any]) -> None:
    with pytest.raises(BadCommand) as caught:
        decode_command(vector["unit"].encode())
    assert caught.value.id == vector["expected"]["id"]
    assert caught.value.code == 107


@of("reply", "push", "error")
def test_replies_and_pushes(vector: dict[str, Any]) -> None:
    reply = decode_reply(vector["unit"].encode())
    check(reply, vector["expected"])
    assert dumps(reply).decode() == vector["unit"]


@of("frame")
def test_frames(vector: dict[str, Any]) -> None:
    assert [unit.decode() for unit in split(vector["frame"].encode())] == vector["expected"]["units"]


@pytest.mark.parametrize("entry", CODES["codes"], ids=lambda entry: f"{entry['kind']} {entry['code']}")
def test_codes(entry: dict[str, Any]) -> None:
    code = entry["code"]
    if entry["kind"] == "close":
        assert codes.describe_close(code) == entry["words"]
        assert codes.is_terminal(code) is not entry["reconnect"]
    elif entry["kind"] == "unsubscribe":
        assert codes.may_resubscribe(code) is entry["resubscribe"]
    else:
        assert (code in codes.TEMPORARY) is entry["temporary"]


def test_the_codes_are_in_their_bands() -> None:
    for entry in CODES["codes"]:
        for band in CODES["bands"]:
            if band["kind"] == entry["kind"] and band["from"] <= entry["code"] <= band["to"]:
                for word in ("reconnect", "resubscribe"):
                    assert band.get(word) == entry.get(word), entry


def test_every_code_of_ours_is_there() -> None:
    ours = {v for k, v in vars(codes).items() if isinstance(v, int) and not isinstance(v, bool)}
    assert ours - {codes.APPLICATION} <= {entry["code"] for entry in CODES["codes"]}


def test_every_method_and_push_is_there() -> None:
    """A unit that is added without a vector is a unit the other SDKs will not know."""
    said = " ".join(vector["unit"] for vector in UNITS if "unit" in vector)
    for unit in (Command, Reply):
        for field in msgspec.structs.fields(unit):
            assert f'"{field.encode_name}":' in said, field.name
    pushes = [json.loads(v["unit"])["push"] for v in UNITS if v["kind"] == "push"]
    kinds = {name for push in pushes for name in push} - {"channel"}
    push_type = next(f.type for f in msgspec.structs.fields(Reply) if f.name == "push").__args__[0]
    assert kinds == {f.encode_name for f in msgspec.structs.fields(push_type)} - {"channel"}


def test_names_are_told_apart() -> None:
    names = [(vector["kind"], vector["name"]) for vector in UNITS]
    assert len(set(names)) == len(names) > 80
