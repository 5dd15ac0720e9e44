"""The exceptions, drawn as the tree of who must act."""

from __future__ import annotations

import pickle
import re

import pytest

import rtkit
from rtkit import errors
from rtkit.errors import BadUnit, CallError, ConnectionClosed, Reject, RtkitError

CLASSES = {name: value for name, value in vars(errors).items() if isinstance(value, type)}


def drawn() -> dict[str, str]:
    """Child to parent, as the docstring draws it."""
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+)(  |$)", line)
        if found:
            depth = len(found[1])
            path = [entry for entry in path if entry[0] < depth]
            if path:
                parents[found[2]] = path[-1][1]
            path.append((depth, found[2]))
    return parents


def test_the_tree_is_as_drawn() -> None:
    """The docstring is the documentation; it must be right and complete."""
    parents = drawn()
    assert set(parents) | {"RtkitError"} == set(CLASSES)
    for child, parent in parents.items():
        assert CLASSES[child].__bases__ == (CLASSES[parent],), child


def test_everything_is_exported() -> None:
    assert sorted(CLASSES) == errors.__all__
    for name in CLASSES.keys() & set(rtkit.__all__):
        assert getattr(rtkit, name) is CLASSES[name]


def test_every_one_says_what_it_is() -> None:
    for class_ in CLASSES.values():
        assert class_.__doc__


def test_reject() -> None:
    error = Reject("sold out", code=455, retry_after=3)
    assert (error.message, error.code, error.retry_after, str(error)) == ("sold out", 455, 3, "sold out")
    assert (Reject("no").code, Reject("no").retry_after) == (103, None)
    assert repr(error) == "Reject('sold out', code=455)"
    assert (BadUnit("x").code, repr(BadUnit("x"))) == (107, "BadUnit('x', code=107)")


def test_what_clients_catch() -> None:
    closed = ConnectionClosed(3503, "enough")
    assert (closed.code, closed.reason, str(closed)) == (3503, "enough", "closed with code 3503: enough")
    assert str(ConnectionClosed(3503, "")) == "closed with code 3503: closed for good"
    call = CallError(111, "slow down", temporary=True, retry_after=0.5)
    assert (call.code, call.message, call.temporary, call.retry_after) == (111, "slow down", True, 0.5)
    assert str(call) == "slow down (code 111)"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_they_are_all_of_one_root(name: str) -> None:
    assert issubclass(CLASSES[name], RtkitError)
    if issubclass(CLASSES[name], errors.UsageError):
        error = CLASSES[name]("what to do")
        assert str(pickle.loads(pickle.dumps(error))) == "what to do"
