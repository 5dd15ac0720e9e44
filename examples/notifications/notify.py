"""Notify somebody, from a plain script: python examples/notifications/notify.py ann "Your export is ready"

With --broker it publishes by itself, whether or not a server is running: that is how cron jobs and workers do it. With
--url it asks the server, for which `memory://` is good enough.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request

from rooms import Notice, inbox, router

from rtkit.errors import PublishUnknown, RtkitError
from rtkit.sync import Publisher


def by_broker(broker: str, user: str, notice: Notice, key: str | None) -> None:
    with Publisher(broker, router, timeout=5) as publisher:
        try:
            publisher.publish(inbox.name(user=user), notice, key=key)
        except PublishUnknown:
            if key is None:
                raise
            publisher.publish(inbox.name(user=user), notice, key=key)  # once more; the key makes it safe


def by_server(url: str, user: str, notice: Notice, key: str | None) -> None:
    body = json.dumps({"user": user, "text": notice.text, "link": notice.link, "key": key}).encode()
    request = urllib.request.Request(f"{url}/notify", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("user")
    parser.add_argument("text")
    parser.add_argument("--link", default="", help="where on the site it leads, such as /exports/1.csv")
    parser.add_argument("--key", help="said again with the same key within 5 minutes, it is one notification")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--broker", default=os.environ.get("BROKER"), help="such as redis://localhost")
    where.add_argument(
        "--url", default="http://127.0.0.1:8000", help="of the server, where there is no broker"
    )
    args = parser.parse_args()
    notice = Notice(args.text, args.link)
    try:
        if args.broker:
            by_broker(args.broker, args.user, notice, args.key)
        else:
            by_server(args.url, args.user, notice, args.key)
    except (RtkitError, OSError) as error:
        sys.exit(f"not sent: {error}")


if __name__ == "__main__":
    main()
