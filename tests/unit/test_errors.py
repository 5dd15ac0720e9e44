"""The exceptions, drawn as the tree of who must act."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re

import pytest

import rtkit
from rtkit import errors
from rtkit.errors import BadUnit, CallError, ConnectionClosed, Reject, RtkitError

CLASSES = {name: value for name, value in vars(errors).items() if isinstance(value, type)}

#: Exceptions that are no RtkitError, because no application ever sees them.
INSIDE = {
    "rtkit.transports.base.Refused",  # a hub to its host
    "rtkit.client.http.HttpFailed",  # an exchange to the pipe that is made of it
    "rtkit.hosting.deflate.InflatesTooFar",  # an inflater to the parser of frames
    "rtkit.hosting.frames.Violation",  # a parser of frames to the one who reads them
    "rtkit.primitives._sockets.Gone",  # a socket's adapter to `attach`
    "rtkit.brokers.redis.frames.Foreign",  # a parser of frames to the broker
    "rtkit.brokers.redis.lines.Lost",  # a connection to the one who uses it
    "rtkit.brokers.redis.topology.Nowhere",  # a map of a Cluster to the one who looks for a slot
    "rtkit.testing.simulation.loop.Livelock",  # a simulation that goes on for ever, to the one who runs it
    "rtkit.testing.simulation.loop.Stuck",
    "rtkit.server.heads.RequestRefused",  # a parser of requests to the one who answers them
}


def every() -> set[type[BaseException]]:
    """All exceptions that the package defines, wherever it does."""
    found: set[type[BaseException]] = set()
    for module in [rtkit.__name__, *(info.name for info in pkgutil.walk_packages(rtkit.__path__, "rtkit."))]:
        try:
            members = vars(importlib.import_module(module)).values()
        except ModuleNotFoundError as error:
            assert error.name is not None
            assert not error.name.startswith("rtkit"), error  # else: an extra that is not installed here
            continue
        found.update(
            value
            for value in members
            if isinstance(value, type)
            and issubclass(value, BaseException)
            and value.__module__.startswith("rtkit.")
        )
    return found


def public_name(class_: type[BaseException]) -> str:
    """As an application writes it, without ``rtkit.``; those of `rtkit.errors` by their names alone."""
    if class_.__module__ == errors.__name__:
        return class_.__name__
    for depth in range(1, class_.__module__.count(".") + 1):
        package = ".".join(class_.__module__.split(".")[: depth + 1])
        if class_.__name__ in getattr(importlib.import_module(package), "__all__", ()):
            return f"{package}.{class_.__name__}".removeprefix("rtkit.")
    raise AssertionError(f"{class_} is an RtkitError, and cannot be imported from a public place")


def drawn() -> dict[str, str]:
    """Child to parent, as the docstring draws it."""
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│├└─ ]*)([\w.]+)(  |$)", line)
        if found:
            depth = len(found[1])
            path = [entry for entry in path if entry[0] < depth]
            if path:
                parents[found[2]] = path[-1][1]
            path.append((depth, found[2]))
    return parents


def test_the_tree_is_as_drawn() -> None:
    """The docstring is the documentation; it must be right and complete, wherever an exception is defined."""
    parents = drawn()
    known = {public_name(class_): class_ for class_ in every() if issubclass(class_, RtkitError)}
    assert set(parents) | {"RtkitError"} == set(known)
    for child, parent in parents.items():
        assert known[child].__bases__ == (known[parent],), child


def test_what_is_no_rtkit_error_stays_inside() -> None:
    """One `except RtkitError` catches whatever is raised to an application."""
    others = {f"{c.__module__}.{c.__qualname__}" for c in every() if not issubclass(c, RtkitError)}
    assert {name for name in others if not name.rpartition(".")[2].startswith("_")} == INSIDE


def test_everything_is_exported() -> None:
    assert sorted(CLASSES) == errors.__all__
    for name in CLASSES.keys() & set(rtkit.__all__):
        assert getattr(rtkit, name) is CLASSES[name]


def test_every_one_says_what_it_is() -> None:
    for class_ in every():
        assert class_.__doc__ or class_.__name__.startswith("_"), class_


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
