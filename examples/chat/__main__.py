"""Serve the chat: python examples/chat [--port 8000] [--host 127.0.0.1]"""

import argparse
import asyncio
import errno
import socket
import sys
from pathlib import Path

from server import hub

from rtkit import serve

PAGE = Path(__file__).parent / "page"


def bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"Something else is at {host}, port {port}. Try --port {port + 1}, or 0 for a free one.")
        sys.exit(f"The chat cannot be served at {host}, port {port}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev demo", description="Serve the chat.")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one (default: 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    args = parser.parse_args()
    with bind(args.host, args.port) as sock:
        shown = f"[{args.host}]" if ":" in args.host else args.host
        # Whoever connects from here on waits until the server takes them.
        print(f"\nThe chat is at http://{shown}:{sock.getsockname()[1]}\n", flush=True)
        print("Open it in two tabs, under two names. Stop this server, write on, and start it again.")
        print("Its memory is gone then, and the page says so. Ctrl-C ends it.\n", flush=True)
        asyncio.run(serve(hub, sock=sock, static=PAGE))


if __name__ == "__main__":
    main()
