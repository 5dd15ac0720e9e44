"""Does a broker keep its promises? One short test for each promise of :mod:`rtkit.brokers.base`.

A plug-in subclasses the suites of the protocols it implements, and says how to make it, and how to take its backend
away::

    class TestMine(StreamBrokerSuite, StateBrokerSuite):
        left_out = {"lose": "my_server has no way to forget"}

        @asynccontextmanager
        async def cluster(self):
            async with my_server() as self.server:
                yield lambda: MyBroker(self.server.url)

        def outage(self):
            return self.server.unplugged()

        async def restart(self):
            await self.server.restart()

That is all for a broker that has a clock of its own. One whose time can be moved overrides :meth:`.Suite.advance`
and waits for nothing. The tests run under anyio's pytest plugin, on asyncio; rtkit's own (:mod:`rtkit.testing.plugin`)
adds a line to pytest's summary, and writes a certificate with ``--rtkit-certify FILE``.

A broker is held to exactly what it implements: a suite too many fails, and so does one that is missing, and a test
that was taken out. What a broker cannot keep is said aloud::

        @pytest.mark.xfail(reason="this server has no echo")
        async def test_echo(self, nodes, topic):
            await super().test_echo(nodes, topic)

Each test gets a cluster and topics of its own, so several may share one server; but those in which it is taken away
have it for themselves. One test makes up stories and compares what happens in them with what the memory broker does;
it runs in an event loop of its own, in which it enters ``cluster()``.
"""

from typing import Final

from .brokers import BrokerSuite, promises
from .sinks import Delivery, Node, RecordingSink
from .states import StateBrokerSuite
from .streams import StreamBrokerSuite
from .suite import Suite

__all__ = [
    # suites
    "BrokerSuite",
    "StreamBrokerSuite",
    "StateBrokerSuite",
    # what they work with
    "Node",
    "RecordingSink",
    "Delivery",
    "Suite",
    # about the kit
    "VERSION",
    "promises",
    "protocols",
]

#: Counts up whenever a promise is added or tightened, which may fail a broker that passed before.
VERSION: Final = 1


def protocols(suite: type) -> list[str]:
    """The protocols that a suite holds its broker to."""
    kinds = {"Broker": BrokerSuite, "StreamBroker": StreamBrokerSuite, "StateBroker": StateBrokerSuite}
    return [name for name, kind in kinds.items() if issubclass(suite, kind)]
