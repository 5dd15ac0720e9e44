"""What an operator of granian has to set, as docs/how-to/hosts/servers.md says.

That connections are limited, and not requests, is said in granian's own README, under Backpressure. That it waits for
open connections when it ends is meant so (emmett-framework/granian#548); a limit to that of its own was offered and not
taken (#813). Versions up to 2.8.1 could miss the signal altogether, for some of their connections (#903).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from tests.hosts.servers import serve_granian
from tests.support.rawsession import StreamSession
from tests.support.rawsocket import Peer, RawSocket
from tests.support.rawstream import RawStream, request

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


async def test_its_backpressure_is_a_number_of_connections_and_websockets_are_none() -> None:
    """Who is one too many waits without a word, also who asks whether it is ready, or for a drain."""
    async with (
        serve_granian("alone:club", HERE, "--backpressure", "2") as port,
        AsyncExitStack() as stack,
    ):
        sockets = [await Peer.connect(port, "/ws") for _ in range(4)]
        for peer in sockets:
            stack.callback(peer.close)
            await peer.connect_as("")
        streams = [StreamSession(port, "") for _ in range(2)]
        for session in streams:
            stack.callback(session.close)
            await session.connect_as("")
        async with await RawSocket.open(port) as one_too_many:
            await one_too_many.send(request("GET", "/ready"))
            for peer in sockets * 20:  # all this is answered later
                assert "error" not in await peer.call("publish", channel="club", data=1)
            assert not one_too_many.speaks
            streams[0].close()
            assert (await one_too_many.response()).status == 204


async def test_a_client_that_takes_nothing_keeps_it_no_longer_than_it_was_told() -> None:
    async with serve_granian("tests.hosts.puppet:app", ROOT, "--workers-kill-timeout", "1") as port:
        stream = await RawStream.begin(port, "/rt/sse", receive_buffer=4096)
        async with await RawSocket.open(port) as sock:
            for what in (b'{"do": "write", "text": "%s", "times": 200}' % (b"x" * 50_000), b'{"do": "end"}'):
                assert (await sock.get("/rt/emulation", method="POST", body=what)).status == 200
    stream.close()  # only now: serve_granian has seen it end
