"""rtkit hubs talk to each other through NATS, and JetStream keeps what their rooms remember.

::

    Hub(broker="nats://127.0.0.1:4222", …)

Read it from the bottom up: :mod:`.subjects` names things, :mod:`.records` writes them down, :mod:`.log` and
:mod:`.fields` say what a row of records means, without any I/O; :mod:`.connection` and :mod:`.link` speak to the
server; :mod:`.streams` and :mod:`.state` bring the two together, and :mod:`.broker` is what a hub sees.
"""

from .broker import NatsBroker
from .settings import Settings

__all__ = ["NatsBroker", "Settings"]
