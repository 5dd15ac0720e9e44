"""The numbers, and what their bands tell a client (protocol, Codes)."""

from __future__ import annotations

import json

import pytest

from rtkit import codes

CLOSE = {
    name: value
    for name, value in vars(codes).items()
    if isinstance(value, int) and not isinstance(value, bool) and value >= 3000
}
UNSUBSCRIBE = {"UNSUBSCRIBED": 2000, "ROOM_CONTINUITY_LOST": 2500, "ROOM_EXPIRED": 2501}
ERRORS = {name: value for name, value in vars(codes).items() if isinstance(value, int) and 100 <= value < 400}


def test_every_number_is_there_once() -> None:
    assert len(set(CLOSE.values())) == len(CLOSE)
    assert len(set(ERRORS.values())) == len(ERRORS)
    assert {name: getattr(codes, name) for name in UNSUBSCRIBE} == UNSUBSCRIBE
    assert sorted(ERRORS.values()) == list(range(100, 113))


def test_every_close_code_has_words() -> None:
    """Protocol: plain words, never JSON: a deployed client parses the reason and takes `.reconnect` from it."""
    for code in (*CLOSE.values(), 1000, 1001, 1006, 1009):
        words = codes.describe_close(code)
        assert words
        assert len(words.encode()) <= 123
        with pytest.raises(json.JSONDecodeError):
            json.loads(words)
    assert codes.describe_close(4242) == ""


@pytest.mark.parametrize(
    ("low", "high", "terminal"),
    [(3000, 3499, False), (3500, 3999, True), (4000, 4499, False), (4500, 4999, True), (5000, 5100, False)],
)
def test_the_bands_of_close_codes(low: int, high: int, terminal: bool) -> None:
    assert codes.is_terminal(low) is codes.is_terminal(high) is terminal
    for name, code in CLOSE.items():
        if low <= code <= high:
            assert codes.is_terminal(code) is terminal, name


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1010])
def test_what_a_client_would_only_repeat(code: int) -> None:
    assert codes.is_terminal(code)


@pytest.mark.parametrize("code", [0, 1000, 1001, 1005, 1006, 1011, 1012, 1013, 1015])
def test_what_passes(code: int) -> None:
    assert not codes.is_terminal(code)


@pytest.mark.parametrize("code", [1000, 3000, 3999, 4000, 4999])
def test_codes_that_can_close(code: int) -> None:
    """RFC 6455, section 7.4."""
    assert codes.is_valid_close(code)


@pytest.mark.parametrize("code", [-1, 0, 999, 1001, 1005, 1006, 1015, 2000, 2999, 5000, 65536])
def test_codes_that_cannot(code: int) -> None:
    assert not codes.is_valid_close(code)


def test_unsubscribe_codes() -> None:
    """From 2500 join again."""
    assert [codes.may_resubscribe(code) for code in (2000, 2499, 2500, 2501)] == [False, False, True, True]


def test_temporary_errors() -> None:
    assert frozenset({100, 111}) == codes.TEMPORARY
    assert codes.APPLICATION == 400
