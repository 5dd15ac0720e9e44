"""The outbox: order, gates, resending, expiry, bounds."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from rtkit.client.commands import NO_ROOM, Outbox, Sending
from rtkit.errors import QueueFull
from rtkit.wire import HistoryCommand, Publish, Rpc, decode_command


def publish(room: str = "r", size: int = 1) -> Sending:
    return Sending(Publish(room, msgspec.Raw(b"1"), "k"), size=size, settle=lambda outcome: None)


def call() -> Sending:
    return Sending(Rpc("m", key="k"), size=1, settle=lambda outcome: None)


def history() -> Sending:
    return Sending(HistoryCommand("r"), size=1, settle=lambda outcome: None)


def filled(*sendings: Sending, lanes: tuple[str, ...] = (NO_ROOM, "r"), **options: Any) -> Outbox:
    outbox = Outbox(**options)
    for sending in sendings:
        outbox.add(sending)
    for lane in lanes:
        outbox.open(lane)
    return outbox


def write_all(outbox: Outbox, boot: float = 0.0, start: int = 2) -> list[Sending]:
    out: list[Sending] = []
    while (sending := outbox.next()) is not None:
        outbox.wrote(sending, start + len(out), boot)
        out.append(sending)
    return out


def test_oldest_first_across_lanes() -> None:
    a, b, c = publish(), call(), publish()
    assert write_all(filled(a, b, c)) == [a, b, c]


def test_a_shut_lane_holds_up_nobody_else() -> None:
    a, b, c = publish("r"), publish("s"), call()
    outbox = filled(a, b, c, lanes=(NO_ROOM, "s"))
    assert write_all(outbox) == [b, c]
    assert outbox.waits("r")
    outbox.open("r")
    assert outbox.next() is a
    outbox.shut("r")
    assert outbox.next() is None


def test_unanswered_ones_are_written_again_before_newer_ones() -> None:
    a, b, c = publish(), call(), publish()
    outbox = filled(a, b, c)
    write_all(outbox)
    assert outbox.answered(2) is a
    d = publish()
    outbox.add(d)
    assert outbox.lost({"r"}) == []
    assert outbox.next() is None, "all gates are shut"
    outbox.open(NO_ROOM)
    outbox.open("r")
    assert write_all(outbox) == [b, c, d]
    assert (b.written, d.written) == (2, 1)


def test_a_late_reply_under_an_old_id_is_nobodys() -> None:
    a = publish()
    outbox = filled(a)
    write_all(outbox)
    outbox.lost({"r"})
    assert outbox.answered(2) is None


def test_commands_of_rooms_that_are_gone_are_given_up() -> None:
    a, b = publish("gone"), publish("r")
    outbox = filled(a, b, lanes=("gone", "r"))
    write_all(outbox)
    assert outbox.lost({"r"}) == [a]
    assert a.may_be_taken
    assert len(outbox) == 1


def test_without_keys_nothing_is_written_twice_but_reads() -> None:
    a, b = publish(), history()
    outbox = filled(a, b)
    write_all(outbox)
    assert outbox.lost({"r"}, resend=False) == [a]
    assert list(outbox) == [b]


def test_old_ones_expire_by_the_time_of_their_first_writing() -> None:
    a, b, h = publish(), publish(), history()
    outbox = filled(a, b, h, resend_within=150)
    outbox.wrote(a, 2, 1000.0)
    assert outbox.next_expiry() == math.inf, "in flight"
    outbox.lost({"r"})
    outbox.open("r")
    outbox.wrote(a, 2, 1100.0)
    outbox.lost({"r"})
    assert outbox.next_expiry() == 1150.0
    assert outbox.expire(1149.0) == []
    assert outbox.expire(1150.0) == [a]
    assert outbox.expire(9999.0) == [], "never written, or only reads"
    assert len(outbox) == 2


def test_too_many_requests_takes_it_back_in_order() -> None:
    a, b, c = publish(), publish(), publish()
    outbox = filled(a, b, c)
    write_all(outbox)
    assert outbox.answered(3) is b
    assert outbox.refused(4)
    assert outbox.refused(2)
    assert not outbox.refused(99)
    assert not a.may_be_taken, "refused means not taken"
    assert write_all(outbox, start=10) == [a, c]


def test_too_many_requests_after_a_loss_leaves_doubt() -> None:
    a = publish()
    outbox = filled(a)
    write_all(outbox, 1000.0)
    outbox.lost({"r"})
    outbox.open("r")
    write_all(outbox, 1010.0, start=5)
    outbox.refused(5)
    assert a.may_be_taken
    assert outbox.next_expiry() == 1150.0


def test_withdrawing() -> None:
    a, b, c = publish(), publish(), publish()
    outbox = filled(a, b, c)
    outbox.wrote(a, 2, 0.0)
    assert outbox.withdraw(a)
    assert a.may_be_taken
    assert outbox.withdraw(c)
    assert not c.may_be_taken
    assert not outbox.withdraw(c)
    assert outbox.answered(2) is None
    assert list(outbox) == [b]
    assert outbox.bytes == 1


def test_abandoning_a_room_leaves_what_is_in_flight() -> None:
    a, b, c = publish(), publish(), call()
    outbox = filled(a, b, c)
    outbox.wrote(a, 2, 0.0)
    assert outbox.abandon("r") == [b]
    assert outbox.answered(2) is a
    assert list(outbox) == [c]


def test_clear_is_everything_in_order() -> None:
    a, b, c = publish(), call(), publish("s")
    outbox = filled(a, b, c)
    outbox.wrote(a, 2, 0.0)
    assert outbox.clear() == [a, b, c]
    assert not outbox
    assert outbox.bytes == 0


def test_it_is_bounded_in_number_and_bytes() -> None:
    outbox = filled(publish(), publish(), max_commands=2)
    with pytest.raises(QueueFull, match="2 commands"):
        outbox.add(publish())
    outbox = filled(publish(size=60), max_bytes=100)
    with pytest.raises(QueueFull, match="60 bytes"):
        outbox.add(publish(size=60))
    assert len(filled(publish(size=1000), max_bytes=100)) == 1, "one always fits"


def test_units_and_reprs() -> None:
    for sending in (publish(), call(), history()):
        assert decode_command(sending.encode(7)).id == 7
    a = publish()
    outbox = filled(a)
    assert "waiting" in repr(a)
    write_all(outbox)
    assert "in flight" in repr(a)
    assert "1 in flight" in repr(outbox)
