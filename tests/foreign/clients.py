"""Unmodified Centrifugo clients behind one face: npm `centrifuge` in node and in Chromium, and `centrifuge-python`.

A :class:`Client` is told verbs (``open``, ``connect``, ``subscribe`` … as in ``driver.js``) and writes down what
events come, each a flat dictionary that looks the same whichever client it was: names in snake case; ``server`` is
true for rooms that the server chose; codes and reasons as the client gave them. Waiting is for an event, never for a
time; what does not come within :data:`PATIENCE` seconds fails the test.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import centrifuge
from playwright.async_api import Browser, Page

from tests.support.node import find_node, npm_packages

__all__ = [
    "PATIENCE",
    "Client",
    "Event",
    "Failed",
    "Kind",
    "PythonKind",
    "ScriptKind",
    "in_chromium",
    "in_node",
]

Event = dict[str, Any]

#: Seconds until what was waited for is given up.
PATIENCE = 15.0

NPM = {"centrifuge": "5.8.0", "ws": "8.23.0"}
NPM_PINS = {"events": "3.3.0", "protobufjs": "7.6.6"}
DRIVER = Path(__file__).with_name("driver.js")


class Failed(Exception):
    """A call that the client says has failed, with the code and message it gives."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} (code {code})")
        self.code = code
        self.message = message


class Client:
    """One client of some kind.

    :ivar log: all events, in order.
    """

    def __init__(self, kind: Kind, name: str) -> None:
        self.kind = kind
        self.name = name
        self.log: list[Event] = []
        self._seen: set[int] = set()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<{self.kind.name} {self.name}>"

    async def do(self, verb: str, **args: Any) -> Any:
        """Tell the client to do something.

        :raises Failed: when it says that this failed.
        """
        async with asyncio.timeout(PATIENCE):
            return await self.kind.tell(self, {**args, "verb": verb})

    def told(self, event: Event) -> None:
        """For the kind: an event has come."""
        self.log.append(event)
        self._changed.set()

    def heard(self, event: str, **match: Any) -> list[Event]:
        """All events of a kind so far, with these fields."""
        return [each for each in self.log if each["event"] == event and match.items() <= each.items()]

    def data(self, channel: str) -> list[Any]:
        """The data of all publications of a room so far."""
        return [each["data"] for each in self.heard("publication", channel=channel)]

    def offsets(self, channel: str) -> list[int]:
        return [each["offset"] for each in self.heard("publication", channel=channel)]

    async def until(self, event: str, **match: Any) -> Event:
        """The first event of a kind, with these fields, that was not waited for before; comes if need be."""
        wanted = {"event": event, **match}
        found: Event = {}

        def there() -> bool:
            for index, each in enumerate(self.log):
                if index not in self._seen and wanted.items() <= each.items():
                    self._seen.add(index)
                    found.update(each)
                    return True
            return False

        await self.until_true(there, wanted)
        return found

    async def until_true(self, condition: Callable[[], bool], what: object) -> None:
        """Until an event makes it true."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{self!r}: no {what} in {self.log}") from None

    # -- what most scenarios begin with

    async def connected(self) -> Event:
        """Connect, and wait until it is."""
        await self.do("connect")
        return await self.until("connected")

    async def subscribed(self, channel: str, **options: Any) -> Event:
        """Subscribe for the first time, and wait until it is."""
        await self.do("subscribe", channel=channel, options=options)
        return await self.until("subscribed", channel=channel)

    async def got(self, channel: str, *data: Any) -> None:
        """Wait until exactly these have come, and no others."""
        await self.until_true(lambda: len(self.data(channel)) >= len(data), f"{data} of {channel}")
        assert self.data(channel) == list(data)


class Kind(ABC):
    """A kind of client, and where it runs.

    :ivar sends: it has the command `send`, and hears messages outside of rooms.
    :ivar transport: what its clients connect over.
    """

    name = ""
    sends = True
    transport = "websocket"

    def where(self, port: int) -> tuple[Any, dict[str, Any]]:
        """What a client connects to, and more of its options."""
        return f"ws://127.0.0.1:{port}/connection/websocket", {}

    def client(self, name: str) -> Client:
        """A new client, not opened yet."""
        return Client(self, name)

    @abstractmethod
    async def tell(self, client: Client, command: dict[str, Any]) -> Any: ...


# -- npm `centrifuge` -----------------------------------------------------------------------------------


class ScriptKind(Kind):
    """npm `centrifuge`, somewhere that understands JSON."""

    def __init__(self, name: str, ask: Callable[[dict[str, Any]], Any]) -> None:
        self.name = name
        self._ask = ask
        self._clients: dict[str, Client] = {}
        self._made = itertools.count(1)

    def over(self, transport: str) -> ScriptKind:
        """The same, with clients that connect over another transport."""
        kind = copy.copy(self)
        kind.name, kind.transport = f"{self.name} over {transport}", transport
        return kind

    def where(self, port: int) -> tuple[Any, dict[str, Any]]:
        if self.transport == "websocket":
            return super().where(port)
        base = f"http://127.0.0.1:{port}"
        endpoint = f"{base}/connection/{self.transport}"
        options = {"emulationEndpoint": f"{base}/connection/emulation"}
        return [{"transport": self.transport, "endpoint": endpoint}], options

    def client(self, name: str) -> Client:
        client = super().client(f"{name}-{next(self._made)}")
        self._clients[client.name] = client
        return client

    def emitted(self, event: Event) -> None:
        """An event came from there."""
        client = self._clients.get(event.pop("client"))
        if client is not None:
            client.told({key: value for key, value in event.items() if value is not None})

    async def tell(self, client: Client, command: dict[str, Any]) -> Any:
        answer = await self._ask({**command, "client": client.name})
        if command["verb"] == "close":
            del self._clients[client.name]
        return _unpacked(answer)


def _unpacked(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        raise Failed(**answer["error"])
    assert "result" in answer, answer.get("broken", answer)
    return answer["result"]


@asynccontextmanager
async def in_node() -> AsyncGenerator[ScriptKind]:
    """Clients in a process of node."""
    folder = await asyncio.to_thread(npm_packages, NPM, pins=NPM_PINS)
    process = await asyncio.create_subprocess_exec(
        find_node(),
        "--eval",
        DRIVER.read_text(),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * 1024 * 1024,
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def ask(command: dict[str, Any]) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        id = id_of(command)
        waiting[id] = future
        stdin.write(json.dumps({**command, "id": id}).encode() + b"\n")
        return await future

    count = 0

    def id_of(_: object) -> int:
        nonlocal count
        count += 1
        return count

    kind = ScriptKind("centrifuge-js in node", ask)

    async def listen() -> None:
        while line := await stdout.readline():
            unit = json.loads(line)
            if "answers" in unit:
                future = waiting.pop(unit.pop("answers"))
                if not future.done():
                    future.set_result(unit)
            else:
                kind.emitted(unit)
        for future in waiting.values():
            if not future.done():
                future.set_exception(AssertionError("node has ended; its last words are on standard error"))

    listening = asyncio.create_task(listen())
    try:
        yield kind
    finally:
        stdin.close()  # upon which it ends
        await listening
        await process.wait()


@asynccontextmanager
async def in_chromium(browser: Browser) -> AsyncGenerator[ScriptKind]:
    """Clients in a page of Chromium."""
    folder = await asyncio.to_thread(npm_packages, NPM, pins=NPM_PINS)
    page: Page = await browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"{error.stack or error}"))

    async def ask(command: dict[str, Any]) -> dict[str, Any]:
        return cast("dict[str, Any]", await page.evaluate("command => driver(command)", command))

    kind = ScriptKind("centrifuge-js in Chromium", ask)
    await page.expose_function("emit", kind.emitted)
    # What the package has for browsers is a script that puts `Centrifuge` among the globals.
    await page.add_script_tag(path=folder / "node_modules/centrifuge/dist/centrifuge.js")
    await page.add_script_tag(path=DRIVER)
    await page.evaluate("() => { globalThis.driver = makeDriver(Centrifuge, {}, emit); }")
    yield kind
    await page.close()
    assert not problems, problems


# -- PyPI `centrifuge-python` ---------------------------------------------------------------------------


class PythonKind(Kind):
    """PyPI `centrifuge-python`, in this very loop."""

    name = "centrifuge-python"
    sends = False

    def __init__(self) -> None:
        self._made: dict[Client, centrifuge.Client] = {}

    async def tell(self, client: Client, command: dict[str, Any]) -> Any:
        verb = command.pop("verb")
        if verb == "batch":
            return await asyncio.gather(*(self._answered(client, each) for each in command["commands"]))
        return _unpacked(await self._answered(client, {**command, "verb": verb}))

    async def _answered(self, client: Client, command: dict[str, Any]) -> dict[str, Any]:
        verb = command.pop("verb")
        try:
            return {"result": await getattr(self, f"_{verb}")(client, **command)}
        except centrifuge.ReplyError as error:
            return {"error": {"code": error.code, "message": error.message}}

    def _sub(self, client: Client, channel: str) -> Any:
        return self._made[client].get_subscription(channel)

    async def _open(self, client: Client, url: str, options: Mapping[str, Any] | None = None) -> None:
        known = dict(options or {})
        if "maxServerPingDelay" in known:
            known["max_server_ping_delay"] = known.pop("maxServerPingDelay") / 1000
        self._made[client] = centrifuge.Client(
            url,
            events=cast("Any", _Handler(client, server=True)),
            get_token=_giving(client, known.pop("tokens", None), "get_token"),
            min_reconnect_delay=0.005,
            max_reconnect_delay=0.02,
            proxy=None,
            **known,
        )

    async def _connect(self, client: Client) -> None:
        await self._made[client].connect()

    async def _disconnect(self, client: Client) -> None:
        await self._made[client].disconnect()

    async def _subscribe(
        self, client: Client, channel: str, options: Mapping[str, Any] | None = None
    ) -> None:
        known = dict(options or {})
        if "delta" in known:
            known["delta"] = centrifuge.DeltaType(known["delta"])
        sub = self._made[client].new_subscription(
            channel,
            events=cast("Any", _Handler(client, channel=channel)),
            get_token=_giving(client, known.pop("tokens", None), "get_token", channel),
            get_state=_giving(client, known.pop("states", None), "get_state", channel),
            min_resubscribe_delay=0.005,
            max_resubscribe_delay=0.02,
            **known,
        )
        await sub.subscribe()

    async def _again(self, client: Client, channel: str) -> None:
        await self._sub(client, channel).subscribe()

    async def _unsubscribe(self, client: Client, channel: str) -> None:
        await self._sub(client, channel).unsubscribe()

    async def _unsubscribe_when_subscribed(self, client: Client, channel: str) -> None:
        sub = self._sub(client, channel)
        usual = sub.events

        class Once(_Handler):
            async def on_subscribed(self, context: Any) -> None:
                sub.events = usual
                await usual.on_subscribed(context)
                await sub.unsubscribe()

        sub.events = Once(client, channel=channel)

    async def _publish(self, client: Client, channel: str, data: Any) -> None:
        await self._made[client].publish(channel, data)

    async def _history(
        self, client: Client, channel: str, options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        known = dict(options or {})
        if "since" in known:
            known["since"] = centrifuge.StreamPosition(**known["since"])
        page = await self._made[client].history(channel, **known)
        publications = [{"data": each.data, "offset": each.offset} for each in page.publications]
        return {"publications": publications, "offset": page.offset, "epoch": page.epoch}

    async def _rpc(self, client: Client, method: str, data: Any) -> Any:
        return (await self._made[client].rpc(method, data)).data

    async def _presence(self, client: Client, channel: str) -> dict[str, Any]:
        found = await self._made[client].presence(channel)
        return {id: {"user": info.user, "client": info.client} for id, info in found.clients.items()}

    async def _presence_stats(self, client: Client, channel: str) -> dict[str, Any]:
        found = await self._made[client].presence_stats(channel)
        return {"clients": found.num_clients, "users": found.num_users}

    async def _close(self, client: Client) -> None:
        made = self._made.pop(client)
        await made.disconnect()
        # It closes its socket in a task that it does not wait for, and would leave to the next test.
        while tasks := [task for task in made._background_tasks if task is not asyncio.current_task()]:
            await asyncio.wait(tasks)


def _giving(
    client: Client, answers: Sequence[Any] | None, name: str, channel: str | None = None
) -> Callable[..., Any] | None:
    """What a list of answers gives: one after the other, the last for ever; None raises UnauthorizedError."""
    if answers is None:
        return None
    left = list(answers)

    async def give(*_: object) -> Any:
        answer = left.pop(0) if len(left) > 1 else left[0]
        client.told({"event": name, **({"channel": channel} if channel else {})})
        if answer is None:
            raise centrifuge.UnauthorizedError
        return centrifuge.StreamPosition(**answer) if isinstance(answer, dict) else answer

    return give


class _Handler:
    """Takes every event of a client, or of one of its subscriptions."""

    def __init__(self, client: Client, **more: Any) -> None:
        self._client = client
        self._more = more

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)

        async def handle(context: Any) -> None:
            event = name.removeprefix("on_")
            of_client = event in ("connecting", "connected", "disconnected", "error", "message")
            more = {} if of_client and "channel" not in self._more else self._more
            found = {"event": event, **more, **_flat(context)}
            self._client.told({key: value for key, value in found.items() if value is not None})

        return handle

    async def on_subscribed(self, context: Any) -> None:
        await self.__getattr__("on_subscribed")(context)


def _flat(context: Any) -> Event:
    """What is in the client's context, under the names of this file."""
    found = dict(vars(context))
    if "pub" in found:
        pub = found.pop("pub")
        found.update(data=pub.data, offset=pub.offset, info=pub.info)
    if "stream_position" in found:
        position = found.pop("stream_position")
        found["position"] = vars(position).copy() if position is not None else None
    if found.get("info") is not None:
        info = found["info"]
        found["info"] = {"user": info.user, "client": info.client}
    if "client" in found:
        found["id"] = found.pop("client")
    if "error" in found:
        error = found.pop("error")
        found["reason"] = str(error)
        if isinstance(error, centrifuge.ReplyError):
            found["code"] = error.code
    return found
