"""Serve the chat on 127.0.0.1:8000 (or the port given) and say how to join."""

import sys

import uvicorn

from server import app  # type: ignore[import-not-found]

port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
print(
    f"""
The chat is at http://127.0.0.1:{port}. Join it from two other terminals:

    .venv/bin/python examples/chat/terminal.py ann --port {port}
    .venv/bin/python examples/chat/terminal.py bob --port {port}

Stop this server and start it again, or cut a terminal off with /drop: nobody misses a message.
(With the in-memory broker a restarted server begins anew, and the terminals say so.)
"""
)
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
