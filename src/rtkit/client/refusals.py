"""What an HTTP status means for a client that wanted a pipe."""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime
from typing import Final

from .. import codes
from ..clock import Clock
from .options import without_secrets
from .transport import DialFailed

__all__ = ["UNUSABLE", "refusal", "retry_window"]

#: Answers for which trying again may help, beside all of 500 and up.
_PASSING: Final = frozenset({408, 425, 429})
#: Answers of something on the way that does not let this kind of pipe through; another kind may pass (T7).
UNUSABLE: Final = frozenset({400, 404, 405, 426, 501, 502})
_LONGEST_RETRY: Final = 3600.0

_ADVICE: Final = {
    401: "the server wants other credentials",
    403: "the server does not permit it; is the Origin header, if one is sent, allowed there?",
    404: "there is no such path; is the hub mounted there?",
    426: "a proxy on the way does not pass WebSockets on",
}


def refusal(
    url: str,
    what: str,
    status: int,
    *,
    clock: Clock,
    location: str | None = None,
    retry_after: str | None = None,
) -> DialFailed:
    """The failure that an answer with *status* amounts to.

    :param url: shown without what is secret in it.
    :param what: was refused, in plain words.
    :param location: value of the header of that name,
    :param retry_after: and of this.
    """
    text = f"{without_secrets(url)} refused {what} with HTTP {status}"
    unusable = status in UNUSABLE or status < 300
    if status >= 500 or status in _PASSING:
        return DialFailed(text, window=retry_window(retry_after, clock), unusable=unusable)
    if 300 <= status < 400 and location is not None:
        text += f": redirected to {without_secrets(location)}; redirects are not followed"
    elif status in _ADVICE:
        text += f": {_ADVICE[status]}"
    elif status < 300:
        text += f": no {what.removeprefix('the ')} endpoint is there, or a proxy on the way answers for it"
    code = {401: codes.BAD_TOKEN, 403: codes.NOT_PERMITTED_CLOSE}.get(status, codes.BAD_REQUEST_CLOSE)
    return DialFailed(text, terminal=True, code=code, unusable=unusable)


def retry_window(retry_after: str | None, clock: Clock) -> tuple[float, float] | None:
    """When to come back, by the value of a ``Retry-After`` header: from then on, spread over half as long again.

    :return: least and most seconds; None when the header says nothing that can be read.
    """
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - clock.time()
        except ValueError:
            return None
    if math.isnan(seconds):
        return None
    seconds = min(max(seconds, 0.0), _LONGEST_RETRY)
    return seconds, seconds * 1.5 + 0.5
