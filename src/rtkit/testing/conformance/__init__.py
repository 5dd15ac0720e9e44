"""Does a broker keep its promises? One short test for each promise of :mod:`rtkit.brokers.base`.

A plug-in subclasses the suites of the protocols it implements, and says how to make it::

    # conftest.py
    pytest.register_assert_rewrite("rtkit.testing.conformance")


    # test_mine.py
    class TestMine(StreamBrokerSuite, StateBrokerSuite):
        @asynccontextmanager
        async def cluster(self):
            async with my_server() as url:
                yield lambda: MyBroker(url)

That is all for a broker that has a clock of its own. One whose time can be moved overrides :meth:`BrokerSuite.advance`
and waits for nothing. The tests run under anyio's pytest plugin, on asyncio.

A broker is held to exactly what it implements: a suite too many fails, and so does one that is missing, and a test
that was taken out. What a broker cannot keep is said aloud::

        @pytest.mark.xfail(reason="this server has no echo")
        async def test_echo(self, nodes, topic):
            await super().test_echo(nodes, topic)

Each test gets a cluster and topics of its own, so several may share one server.
"""

from .brokers import BrokerSuite
from .sinks import Delivery, Node, RecordingSink
from .states import StateBrokerSuite
from .streams import StreamBrokerSuite

__all__ = [
    # suites
    "BrokerSuite",
    "StreamBrokerSuite",
    "StateBrokerSuite",
    # what they work with
    "Node",
    "RecordingSink",
    "Delivery",
]
