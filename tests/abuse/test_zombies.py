"""The dead, and who looks like it: nothing is left of either on the other side, in time (F4).

A cable that is cut, processes that stand still, peers that read nothing or have closed their half. By intervals
that are parts of a second, and as a soak by those that are the default. No verdict depends on how long something took
here: the processes tell when it was so, and the bound is what the intervals add up to, and `SLACK` for a busy machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.abuse.zombie_client import POLICIES, TRANSPORTS
from tests.abuse.zombie_server import PATIENCE
from tests.abuse.zombies import SLACK, Peer, Report, Told, all_are
from tests.support.netns import Apart
from tests.support.node import find_node

#: Where each server has the hub.
PREFIX = {"own": "/rt", "uvicorn": ""}


def kinds(*always: str) -> pytest.MarkDecorator:
    """For each kind of connection; for the others in the soak."""
    every = ("websocket", "sse", "poll", "events")
    return pytest.mark.parametrize(
        "kind", [each if each in always else pytest.param(each, marks=pytest.mark.soak) for each in every]
    )


class Graveyard:
    """A server in a network of its own, and the processes of its clients."""

    def __init__(self, how: str, apart: Apart, server: Told, stack: ExitStack) -> None:
        self.how = how
        self.patience = PATIENCE[how]
        self.apart = apart
        self.server = server
        self._stack = stack
        self._clients: list[Told] = []
        server.until(lambda known: "own" in known, SLACK)
        self._ports: dict[str, int] = server.known["ports"]
        #: What the server tells when there is nobody.
        self.nobody = {name: server.known[name] for name in PREFIX}

    # -- peers of the test's own

    def peers(self, kind: str, **options: Any) -> list[Peer]:
        """One in each server, where there is nobody else."""
        began = time.monotonic()
        found = self.more(kind, **options)
        # Else nobody could tell when it is gone.
        self.server.until(
            lambda known: all(known[host]["connections"] for host in PREFIX), SLACK, since=began
        )
        return found

    def more(self, kind: str, *, hosts: Sequence[str] = tuple(PREFIX), **options: Any) -> list[Peer]:
        """One more in each server."""
        found: list[Peer] = []
        for host in hosts:
            found.append(Peer(kind, (self.apart.inside, self._ports[host]), PREFIX[host], **options))
            self._stack.callback(found[-1].close)
        return found

    def is_empty(self, known: Report) -> bool:
        """Nothing is left in the servers: of connections, sessions, users, rooms, presence, deadlines, sockets."""
        return self.is_forgotten(known) and known["uvicorn"]["sockets"] == self.nobody["uvicorn"]["sockets"]

    def is_forgotten(self, known: Report) -> bool:
        """Likewise, but for sockets that uvicorn has."""
        mine, none = dict(known), dict(self.nobody)
        for each in (mine, none):
            each["uvicorn"] = {**each["uvicorn"], "sockets": 0}
        return all({**mine[name], "unanswered": 0} == {**none[name], "unanswered": 0} for name in PREFIX)

    def has(self, known: Report, count: int) -> bool:
        """So many clients are there, in each server, and their sessions, and are seen to be."""
        return all(
            known[name][what] == count for name in PREFIX for what in ("connections", "sessions", "present")
        )

    # -- clients

    def clients(self) -> list[Told]:
        """A process of the Python SDK and one of the browser SDK, with a client for each transport and server."""
        if not self._clients:
            urls = self.urls
            python = Told(sys.executable, "-m", "tests.abuse.zombie_client", self.how, *urls)
            node = Told(find_node(), "tests/abuse/zombie_client.mjs", self.how, *urls)
            self._clients = [self._stack.enter_context(each) for each in (python, node)]
            self.all_are_back(0.0)
        return self._clients

    @property
    def urls(self) -> list[str]:
        return [f"http://{self.apart.inside}:{self._ports[name]}{PREFIX[name]}" for name in PREFIX]

    @property
    def names(self) -> list[str]:
        return [f"{url} {transport}" for url in self.urls for transport in TRANSPORTS]

    def all_are_back(self, since: float) -> None:
        """Every client says that it is connected, and the servers know of these and of nobody else."""
        within = self.patience.bound + 2 * POLICIES[self.how].max_delay + SLACK
        for each in self._clients:
            each.until(lambda known: all_are(known, self.names, ["connected"]), within, since=since)
        count = len(self._clients) * len(TRANSPORTS)
        self.server.until_it_stays(lambda known: self.has(known, count), within)

    @property
    def client_bound(self) -> float:
        """Seconds of silence after which a client of this server takes it for gone."""
        hub = self.patience.hub
        assert hub.heartbeat is not None
        ping = max(round(hub.heartbeat.interval), round(hub.poll_wait), 1)
        return ping + POLICIES[self.how].silence


@pytest.fixture(
    scope="module",
    params=["hasty", pytest.param("default", marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
def graveyard(request: pytest.FixtureRequest) -> Iterator[Graveyard]:
    """In each patience."""
    with Apart() as apart, ExitStack() as stack:
        command = (sys.executable, "-m", "tests.abuse.zombie_server", request.param)
        server = stack.enter_context(Told(*apart.within, *command))
        yield Graveyard(request.param, apart, server, stack)


# -- peers made of bytes ---------------------------------------------------------------------------------


@kinds("websocket", "poll")
def test_who_has_closed_its_half_is_gone(graveyard: Graveyard, kind: str) -> None:
    """It goes on listening, and would for ever: it is told that it is over, and nothing is left of it."""
    peers = graveyard.peers(kind)
    began = time.monotonic()
    for peer in peers:
        peer.hang_up_half()
    gone = graveyard.server.until(graveyard.is_empty, graveyard.patience.bound + SLACK, since=began)
    assert gone - began < graveyard.patience.bound + SLACK
    for peer in peers:
        peer.rest()  # which has an end


@kinds("sse")
def test_who_answers_nothing_is_gone(graveyard: Graveyard, kind: str) -> None:
    """Its kernel confirms all that comes, and its program is dead."""
    if kind == "events":
        pytest.skip("nobody can tell the difference, on a street that goes one way")
    peers = graveyard.peers(kind)
    began = time.monotonic()
    gone = graveyard.server.until(graveyard.is_empty, graveyard.patience.bound + SLACK, since=began)
    assert gone - began < graveyard.patience.bound + SLACK
    for peer in peers:
        peer.rest()


@kinds("websocket", "events")
def test_who_takes_nothing_is_gone(graveyard: Graveyard, kind: str) -> None:
    """Its window is shut, and stays so: what the hub has of it goes, and with our own server the socket too.

    uvicorn waits for as long as the peer's kernel answers: its own connections have no bound that we could set.
    """
    peers = graveyard.peers(kind, receive_buffer=4096)
    graveyard.server.order(publish=32 * 1024, times=200)
    began = time.monotonic()
    within = graveyard.patience.bound + SLACK
    gone = graveyard.server.until(graveyard.is_forgotten, within, since=began)
    assert gone - began < within
    for peer in peers:
        peer.close()
    graveyard.server.until(graveyard.is_empty, SLACK, since=gone)


# -- clients of both SDKs, and servers, that are parted or stand still ------------------------------------


def nobody_is_connected(graveyard: Graveyard, clients: list[Told], since: float) -> None:
    """Each client has noticed, in time, that there is nobody any more."""
    for each in clients:

        def gone(known: Report) -> bool:
            return all(known[name] != "connected" for name in graveyard.names)

        noticed = each.until(gone, graveyard.client_bound + SLACK, since=since)
        assert noticed - since < graveyard.client_bound + SLACK


def test_a_cable_that_is_cut_is_noticed_at_both_ends(graveyard: Graveyard) -> None:
    """Nobody is told, and nothing is reset: half-open connections of every transport, in both servers."""
    clients = graveyard.clients()
    unanswered = {name: graveyard.server.known[name]["unanswered"] for name in PREFIX}
    pages = graveyard.more("events", hosts=["own"])
    began = time.monotonic()
    graveyard.apart.cut()
    try:
        nobody_is_connected(graveyard, clients, began)
        within = graveyard.patience.bound + SLACK
        gone = graveyard.server.until(graveyard.is_empty, within, since=began)
        assert gone - began < within
        for name in PREFIX:  # it was not the network that told
            there = graveyard.server.known[name]["unanswered"] - unanswered[name]
            assert there >= len(clients) * len([each for each in TRANSPORTS if each != "poll"])
    finally:
        healed = time.monotonic()
        graveyard.apart.mend()
    graveyard.all_are_back(healed)
    for page in pages:
        page.close()


@pytest.mark.soak
def test_a_one_way_stream_under_uvicorn_is_given_up_by_the_system(graveyard: Graveyard) -> None:
    """There is no heartbeat, and nobody but our own server tells the kernel to be less patient."""
    # After a quarter of an hour, or what it is told: here, three seconds.
    system = ("sysctl", "-qw", "net.ipv4.tcp_retries2=3")
    subprocess.run([*graveyard.apart.within, *system], check=True)
    there = graveyard.server.known["uvicorn"]["connections"]
    began = time.monotonic()
    [page] = graveyard.more("events", hosts=["uvicorn"])
    graveyard.server.until(lambda known: known["uvicorn"]["connections"] == there + 1, SLACK, since=began)
    began = time.monotonic()
    graveyard.apart.cut()
    try:
        within = 3.0 + graveyard.patience.bound + SLACK
        gone = graveyard.server.until(graveyard.is_empty, within, since=began)
        assert began + 1.5 < gone < began + within, "it was not the system"
    finally:
        graveyard.apart.mend()
    page.close()


def test_clients_that_stand_still_are_gone_and_come_back(graveyard: Graveyard) -> None:
    """SIGSTOP, as a laptop that sleeps: their kernels go on, and answer what no program has seen."""
    clients = graveyard.clients()
    began = time.monotonic()
    for each in clients:
        each.stand_still()
    within = graveyard.patience.bound + SLACK
    try:
        gone = graveyard.server.until(graveyard.is_forgotten, within, since=began)
        assert gone - began < within
    finally:
        woken = time.monotonic()
        for each in clients:
            each.go_on()
    graveyard.all_are_back(woken)


def test_a_server_that_stands_still_is_left_and_found_again(graveyard: Graveyard) -> None:
    """Clients notice, though its kernel takes in all they say; and of who was there before nobody is left."""
    clients = graveyard.clients()
    began = time.monotonic()
    graveyard.server.stand_still()
    try:
        nobody_is_connected(graveyard, clients, began)
    finally:
        woken = time.monotonic()
        graveyard.server.go_on()
    graveyard.all_are_back(woken)
