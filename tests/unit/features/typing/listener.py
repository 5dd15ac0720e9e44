"""Who types, as a client concludes it from what it is told (X1): the rule of the wire, and nothing else."""

from __future__ import annotations

from typing import Any

from tests.support.rawclient import RawClient, Unit


class Listener:
    """Reads a raw client's pushes of one room.

    :ivar typing: until when each client types.
    """

    def __init__(self, client: RawClient, room: str, expires: float) -> None:
        self.client = client
        self.room = room
        self.expires = expires
        self.typing: dict[str, float] = {}
        self.heard: list[tuple[str, bool]] = []
        self._read = len(client.pushes)

    def listen(self) -> None:
        """Take in what has come since, as of now."""
        now = self.client.clock.monotonic()
        pushes = self.client.pushes
        for push in pushes[self._read :]:
            if push.get("channel") == self.room:
                self._push(push, now)
        self._read = len(pushes)

    def _push(self, push: Unit, now: float) -> None:
        signal: Any = push.get("signal", {})
        if signal.get("event") == "typing":
            assert signal["data"] in (True, False)
            assert signal["user"]
            self.heard.append((signal["client"], signal["data"]))
            if signal["data"]:
                self.typing[signal["client"]] = now + self.expires
            else:
                self.typing.pop(signal["client"], None)
        elif "pub" in push:
            self.typing.pop(push["pub"].get("info", {}).get("client", ""), None)

    @property
    def typists(self) -> set[str]:
        """The clients that type now."""
        self.listen()
        now = self.client.clock.monotonic()
        return {client for client, until in self.typing.items() if now < until}
