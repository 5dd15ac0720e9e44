"""Our own single-port server: WebSockets, plain HTTP and, for demos, files, without an ASGI server in between.

:func:`serve` runs a hub until the process is told to end; :func:`listen` serves it while a block runs.
"""

from .limits import ServerLimits
from .running import listen, serve
from .server import Server, ServerStatistics

__all__ = ["Server", "ServerLimits", "ServerStatistics", "listen", "serve"]
