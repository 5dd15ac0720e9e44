"""Every exception rtkit raises, drawn as the tree of who must act.

::

    RtkitError
    ├── UsageError                 you misused the API: the message says what to do instead
    │   ├── DeclarationError       a router, room or handler was declared in a way that cannot work
    │   ├── UnknownRoom            no declared family matches this room name
    │   ├── NotEnabled             the feature was not switched on for this room
    │   ├── NotSupported           the broker does not implement what was asked for
    │   ├── NotRunning             used before start or after close
    │   ├── WrongLoop              used from an event loop other than the one it runs in
    │   ├── WrongProcess           used in a process forked after start
    │   └── InvalidMessage         a value that cannot be published or sent as declared
    ├── Reject                     the application says no; its text is shown to the client
    │   └── BadUnit                the peer sent something outside the protocol
    │       ├── wire.BadCommand    a unit from a client that is no command
    │       ├── wire.BadChunk      a chunk that does not fit what came before it
    │       └── wire.UnknownVersion  another release has written it, in a version this one cannot read
    ├── Unavailable                the world broke: retry later
    │   ├── BrokerUnavailable      the broker cannot be reached; nothing was stored
    │   └── PublishUnknown         it may or may not have been stored: retry with the same key
    ├── ConnectionClosed           the connection ended for good; carries code and reason
    ├── CallError                  the server answered a command with an error
    ├── client.Unsubscribed        the server took the client out of a room, for good
    ├── client.DialFailed          a dialer could not open a pipe; the client tries again
    ├── client.WireClosed          a pipe of a client has ended; the client opens another
    ├── brokers.Conflict           the stream does not stand where an append was to go
    ├── brokers.Repeated           some of the entries that were to be appended are there already
    └── SlowDown                   a limit was reached
        ├── QueueFull              the offline queue of a client is full
        └── Overflow               an outbox with policy ``close`` has no room left

What has a dot is in that module: ``rtkit.client.Unsubscribed``. It is what one plug-in or one side of the wire
says to another. ``transports.Refused`` stands outside: a hub raises it to its host, as the status to answer a
handshake with, and no application sees it.
"""

from __future__ import annotations

from . import codes

__all__ = [
    "BadUnit",
    "BrokerUnavailable",
    "CallError",
    "ConnectionClosed",
    "DeclarationError",
    "InvalidMessage",
    "NotEnabled",
    "NotRunning",
    "NotSupported",
    "Overflow",
    "PublishUnknown",
    "QueueFull",
    "Reject",
    "RtkitError",
    "SlowDown",
    "Unavailable",
    "UnknownRoom",
    "UsageError",
    "WrongLoop",
    "WrongProcess",
]


class RtkitError(Exception):
    """Root of all exceptions of this library."""


class UsageError(RtkitError):
    """The API was misused; the message says what to do instead."""


class DeclarationError(UsageError):
    """A room family, handler or router was declared in a way that cannot work."""


class UnknownRoom(UsageError):
    """No declared family of rooms matches the name.

    :param meant: the name of a declared room that was probably meant.
    """

    def __init__(self, message: str, *, meant: str | None = None) -> None:
        super().__init__(message)
        self.meant = meant


class NotEnabled(UsageError):
    """A feature or right was used in a room that does not have it."""


class NotSupported(UsageError):
    """The broker does not implement the protocol this needs."""


class NotRunning(UsageError):
    """The object was used before it was started or after it was closed."""


class WrongLoop(UsageError):
    """The object runs in one event loop and was used from another."""


class WrongProcess(UsageError):
    """The object was started, then the process was forked, and the child used it."""


class InvalidMessage(UsageError):
    """A value that cannot be encoded, or is not of a type the room publishes."""


class Reject(RtkitError):
    """The application says no. The client sees *message* and *code*.

    Raised from ``authenticate``, a gate, ``authorize``, ``on_join`` or a handler.

    :param message: text shown to the client.
    :param code: 103 (not permitted) unless given; an application's own codes start at 400.
    :param retry_after: seconds after which trying again makes sense; marks the error temporary.
    """

    def __init__(
        self, message: str, *, code: int = codes.NOT_PERMITTED, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retry_after = retry_after

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, code={self.code})"


class BadUnit(Reject):
    """The peer sent a unit that is malformed, of a wrong type, or out of place (W3).

    Its text names the path of the fault and never shows our insides.
    """

    def __init__(self, message: str, *, code: int = codes.BAD_REQUEST) -> None:
        super().__init__(message, code=code)


class Unavailable(RtkitError):
    """Something outside this process failed; trying again later may help."""


class BrokerUnavailable(Unavailable):
    """The broker could not be reached, and nothing was stored (B4)."""


class PublishUnknown(Unavailable):
    """Whether the message was stored is not known.

    Publishing again with the same key is safe within the broker's dedupe window (H7).
    """


class ConnectionClosed(RtkitError):
    """The connection ended and will not come back by itself.

    :param code: the close code (see :mod:`rtkit.codes`).
    :param reason: plain words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with code {code}: {reason or codes.describe_close(code)}")
        self.code = code
        self.reason = reason


class CallError(RtkitError):
    """The server answered a command of this client with an error.

    :param code: the command error code (see :mod:`rtkit.codes`).
    :param message: the server's text.
    :param temporary: whether trying again may help.
    :param retry_after: seconds to wait before that, if the server said so.
    """

    def __init__(
        self, code: int, message: str, *, temporary: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{message} (code {code})")
        self.code = code
        self.message = message
        self.temporary = temporary
        self.retry_after = retry_after


class SlowDown(RtkitError):
    """A limit was reached; do less, or do it later."""


class QueueFull(SlowDown):
    """The client is offline and its queue of unsent commands is full (K2)."""


class Overflow(SlowDown):
    """An outbox whose policy is ``close`` has no room left (D1)."""
