"""Serve the chat on 127.0.0.1:8000 (or the port given) and say how to join."""

import socket
import sys

import uvicorn
from server import app

port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
print(
    f"""
The chat is at http://127.0.0.1:{port}. Join it from two other terminals:

    .venv/bin/python examples/chat/terminal.py ann --url http://127.0.0.1:{port}
    .venv/bin/python examples/chat/terminal.py bob --url http://127.0.0.1:{port}

Suspend one of them with Ctrl-Z, talk on in the other, wait a minute, resume it with fg: it reconnects and
has everything. Stop this server and start it again: its memory is gone, and the terminals say so.
"""
)


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print("* ready", flush=True)


Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")).run()
