"""A whole cluster in one process, under virtual time and a seed: real hubs, servers and clients; simulated machines,
network and broker.

What asyncio runs is the code that runs in production. What is simulated is what it stands on: time, chance, and bytes
between machines. Machines crash and freeze, links delay and go silent, the broker loses what brokers lose; a seed that
showed a fault shows it again, each time.
"""

from .broker import BrokerServer, SimulatedBroker
from .loop import Livelock, Machine, SimulatedLoop, Stuck
from .network import Link, Network
from .running import Simulation, simulate

__all__ = [
    "BrokerServer",
    "Link",
    "Livelock",
    "Machine",
    "Network",
    "SimulatedBroker",
    "SimulatedLoop",
    "Simulation",
    "Stuck",
    "simulate",
]
