"""The NATS servers of the tests: real, with JetStream, and gone at the end."""

from __future__ import annotations

import nats

from tests.support.natses import NatsServer


async def test_it_keeps_what_was_acknowledged_over_a_kill_until_it_is_wiped() -> None:
    with NatsServer() as server:
        async with await nats.connect(server.url) as client:
            await client.jetstream().add_stream(name="s", subjects=["s.*"])
            await client.jetstream().publish("s.a", b"1")
            await client.close()
        server.restart()
        async with await nats.connect(server.url) as client:
            assert (await client.jetstream().stream_info("s")).state.messages == 1
            await client.close()
        server.wipe()
        async with await nats.connect(server.url) as client:
            assert await client.jetstream().streams_info() == []
            await client.close()
    assert not server.folder.exists()
