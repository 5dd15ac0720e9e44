"""Brokers."""
from .base import Appended, Broker, Conflict, Sink, StateBroker, StreamBroker
from .memory import MemoryBackend, MemoryBroker
from ..clock import Clock

def open_url(url: str, *, clock: Clock | None = None) -> Broker:
    return MemoryBroker(MemoryBackend(clock=clock))
