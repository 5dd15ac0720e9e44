"""The wire's page is true: its frames are units, its dialogues happen, its tables are the code's."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from rtkit import Hub, codes
from rtkit.testing import ManualClock
from rtkit.transports import Batch, Handshake, WebSocketTransport, joined
from rtkit.transports.stream import EVENT_STREAM
from rtkit.wire import decode_command, decode_reply, dumps
from tests.docs.blocks import ROOT, Block, blocks, prose, table

PAGE = "docs/reference/protocol.md"
DIALOGUES = list(blocks(PAGE, "text", "dialogue"))


def named(found: list[Block]) -> Any:
    return pytest.mark.parametrize("block", found, ids=[block.where for block in found])


def check_command(text: str) -> None:
    assert json.loads(dumps(decode_command(text.encode()))) == json.loads(text)


def check_reply(text: str) -> None:
    assert json.loads(dumps(decode_reply(text.encode()))) == json.loads(text)


@named(list(blocks(PAGE, "json", "client")))
def test_a_clients_frame_is_a_command(block: Block) -> None:
    for unit in block.text.splitlines():
        check_command(unit)


@named(list(blocks(PAGE, "json", "server")))
def test_a_servers_frame_is_a_reply(block: Block) -> None:
    for unit in block.text.splitlines():
        check_reply(unit)


def test_no_example_is_left_out() -> None:
    kinds = {block.info for block in blocks(PAGE)}
    assert kinds == {
        ("json", "client"),
        ("json", "server"),
        ("text", "dialogue"),
        ("text", "events"),
        ("text", "stream"),
        ("python", "hub"),
    }


@named(list(blocks(PAGE, "text", "stream")))
def test_a_stream_is_what_is_written(block: Block) -> None:
    """16.2: the frames that are in it, written as the hub writes them, are the very bytes."""
    hello, *frames = block.text.rstrip("\n").split("\n\n")
    assert f"{hello}\n\n".encode() == EVENT_STREAM.hello
    again = EVENT_STREAM.hello
    for frame in frames:
        units = [line.removeprefix("data: ").encode() for line in frame.split("\n")]
        for unit in units:
            check_reply(unit.decode())
        again += EVENT_STREAM.form(units)
    assert again == block.text.encode()


# -- dialogues ----------------------------------------------------------------------------------------

#: What a dialogue can only make up. The same made-up value stands for the same real one all along.
MADE_UP = {"client", "node", "version", "epoch", "time", "resume"}
LINE = re.compile(r"(?P<who>\w+) (?P<what>[→⇢←×]) (?P<rest>.*)|\((?P<deed>.*)\)")


class Peer:
    """A client's end of a pipe, and the pipe."""

    buffered = 0

    def __init__(self, hub: Hub[Any]) -> None:
        self.inbox: list[Any] = []
        self.closed = ""
        self.transport = WebSocketTransport(self, max_frame=hub.max_frame)
        self.transport.drive(hub.connect(self.transport, Handshake()))

    def write(self, data: bytes) -> None:
        self.inbox += [json.loads(line) for line in data.splitlines()]

    def write_batch(self, batch: Batch) -> None:
        self.write(batch.form(joined))

    def pause_reading(self) -> None:
        """Nobody here sends enough."""

    def resume_reading(self) -> None:
        """Likewise."""

    def close(self, code: int, reason: str) -> None:
        self.closed = f"{code} {reason}"
        self.transport.lost(code, reason)


class Stage:
    """Plays a dialogue against a hub."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.world = world
        self.hub: Hub[Any] = world["hub"]
        self.hub.clock = ManualClock()  # a ping, or a time-out, would be an actor the page does not name
        self.peers: dict[str, Peer] = {}
        self.real: dict[str, Any] = {}
        self.told: dict[str, Any] = {}

    async def play(self, lines: list[str]) -> None:
        for line in lines:
            match = LINE.fullmatch(line)
            assert match is not None, f"not a line of a dialogue: {line}"
            try:
                await self.step(match)
            except AssertionError as error:
                raise AssertionError(f"{line}\n{error}") from error
        for who, peer in self.peers.items():
            assert not peer.inbox, f"{who} also got {peer.inbox}"

    async def step(self, match: re.Match[str]) -> None:
        if match["deed"]:
            await self.do(match["deed"])
            return
        who, what, rest = match["who"], match["what"], match["rest"]
        if what in "→⇢":
            if who not in self.peers or self.peers[who].closed:
                self.peers[who] = Peer(self.hub)
            if what == "→":
                check_command(rest)
                rest = json.dumps(self.to_real(json.loads(rest)))
            for name, peer in self.peers.items():
                assert not peer.inbox, f"before that {name} also got {peer.inbox}"
            self.peers[who].transport.message(rest)
        elif what == "←":
            check_reply(rest)
            told, inbox = json.loads(rest), self.peers[who].inbox
            found = next((unit for unit in inbox if self.same(told, unit, learn=False)), None)
            assert found is not None, f"{who} got {inbox}"
            assert self.same(told, found, learn=True)
            inbox.remove(found)
        else:
            assert self.peers[who].closed == rest
        await settle()

    async def do(self, deed: str) -> None:
        if found := re.fullmatch(r"the application publishes (.*) to (\S+)", deed):
            for message in found[1].split(" and "):
                await self.hub.publish(found[2], eval(message, self.world))
        elif found := re.fullmatch(r"the application clears (\S+)", deed):
            await self.hub.room(found[1]).clear()
        else:
            raise AssertionError(f"nobody knows how {deed}")
        await settle()

    def to_real(self, unit: Any) -> Any:
        if isinstance(unit, dict):
            return {
                name: self.real.get(str(value), value) if name in MADE_UP else self.to_real(value)
                for name, value in unit.items()
            }
        return unit

    def same(self, told: Any, real: Any, *, learn: bool, name: str = "") -> bool:
        """Whether a made-up unit tells of a real one."""
        if isinstance(told, dict) and isinstance(real, dict):
            return set(told) == set(real) and all(
                self.same(told[key], real[key], learn=learn, name=key) for key in told
            )
        if isinstance(told, list) and isinstance(real, list):
            return len(told) == len(real) and all(
                self.same(*pair, learn=learn) for pair in zip(told, real, strict=True)
            )
        if name not in MADE_UP or name == "time":
            return name == "time" or told == real
        if learn:
            self.real[str(told)], self.told[str(real)] = real, told
        return self.real.get(str(told), real) == real and self.told.get(str(real), told) == told


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


@named(DIALOGUES)
async def test_a_dialogue_happens(block: Block) -> None:
    (source,) = blocks(PAGE, "python", "hub")
    world: dict[str, Any] = {"__name__": "docs"}
    exec(source.code(), world)
    stage = Stage(world)
    async with stage.hub:
        await stage.play(block.text.splitlines())


async def test_a_wrong_dialogue_is_noticed() -> None:
    """Otherwise the test above proves nothing."""
    (source,) = blocks(PAGE, "python", "hub")
    for change in (("105", "106"), ('"epoch": "K6zY6kOd"', '"epoch": "mAJCJMGH"'), ("ticks:usd", "chat:usd")):
        world: dict[str, Any] = {"__name__": "docs"}
        exec(source.code(), world)
        stage = Stage(world)
        lines = next(block.text for block in DIALOGUES if "already subscribed" in block.text)
        async with stage.hub:
            with pytest.raises(AssertionError):
                await stage.play(lines.replace(*change).splitlines())


# -- tables -------------------------------------------------------------------------------------------

CODES: dict[str, int] = {
    name: value for name, value in vars(codes).items() if name.isupper() and isinstance(value, int)
}
HUB_SOURCES = "\n".join(
    path.read_text()
    for floor in ("hub", "hosting", "transports")
    for path in sorted((ROOT / "src/rtkit" / floor).glob("*.py"))
)


def sent(code: int) -> bool:
    """Whether a constant for the code appears in what the hub is made of."""
    names = [name for name, value in CODES.items() if value == code]
    return any(re.search(rf"\b{name}\b", HUB_SOURCES) for name in names)


def test_close_codes_are_the_codes() -> None:
    rows = table(PAGE, "close code", "words", "sent", "when")
    assert {int(row["close code"]) for row in rows} == {code for code in CODES.values() if code >= 3000}
    for row in rows:
        code = int(row["close code"])
        assert row["words"] == codes.describe_close(code)
        assert (row["sent"] == "yes") == sent(code), f"{code}: {row['sent']}"


def test_close_codes_stand_under_the_right_heading() -> None:
    come_back, stay_away = re.split(r"^Closing, stay away:$", prose(PAGE), flags=re.M)
    for row in table(PAGE, "close code", "words", "sent", "when"):
        terminal = codes.is_terminal(int(row["close code"]))
        assert f"| {row['close code']} |" in (stay_away if terminal else come_back)


def test_unsubscribe_codes_are_the_codes() -> None:
    rows = table(PAGE, "unsubscribe code", "sent", "when")
    assert {int(row["unsubscribe code"]) for row in rows} == {
        code for code in CODES.values() if 2000 <= code < 3000
    }
    for row in rows:
        assert (row["sent"] == "yes") == sent(int(row["unsubscribe code"]))


def test_error_codes_are_the_codes() -> None:
    rows = table(PAGE, "error code", "meaning", "temporary", "when")
    assert {int(row["error code"]) for row in rows} == {code for code in CODES.values() if 100 <= code < 400}
    for row in rows:
        assert (row["temporary"] == "yes") == (int(row["error code"]) in codes.TEMPORARY)
        assert sent(int(row["error code"]))


def test_every_method_is_in_the_table() -> None:
    from rtkit.hub import commands

    methods = {
        name.strip(" `")
        for row in table(PAGE, "method", "body", "result", "section")
        for name in row["method"].split(",")
    }
    assert methods == {*commands._METHODS, "refresh"}


def test_the_limits_are_the_defaults() -> None:
    from rtkit import Limits

    limits = Limits()
    stated = {row["limit"]: row["default"] for row in table(PAGE, "limit", "default", "beyond it")}
    mib = 1024 * 1024
    assert stated == {
        "bytes of a frame": f"{limits.max_frame // mib} MiB",
        "bytes of a publication": f"{limits.max_publication // mib} MiB",
        "bytes of a large unit, and of all unfinished ones": f"{limits.large // mib} MiB, "
        f"{limits.assembling // mib} MiB",
        "commands a second, and at once": f"{limits.commands.rate:g}, {limits.commands.burst:g}",
        "bytes a second, and at once": f"{limits.inbound.rate // mib} MiB, {limits.inbound.burst // mib} MiB",
        "rooms": f"{limits.max_rooms}",
        "commands that wait": f"{limits.max_pending}",
        "bytes queued for the client": f"{limits.outbox // mib} MiB, and {limits.reserve // 1024} KiB for replies",
        "seconds of a handler": f"{limits.handler_timeout:g}",
    }
