"""The load: clients that cost so little that the server is what is measured, and check every message.

- ``frames``: RFC 6455 as a client needs it here, and what is in our units.
- ``swarm``: thousands of connections in one process, on epoll, without asyncio; ``state``: what it knows of them.
- ``control``: starts servers and workers, pins them to cores, ends them.
- ``proc``: what processes and cores have used.

``../_worker.py`` is a swarm as a process of its own, told what to do in lines of JSON. Only for Linux: it uses
epoll, CPU affinity and ``/proc``.
"""
