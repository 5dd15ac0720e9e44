"""Doors to the outside: each host moves bytes between a server and a transport.

A host knows an :class:`~rtkit.transports.Acceptor`, never the hub.
"""
