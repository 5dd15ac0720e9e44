"""Serve the notifications: python examples/notifications [--broker redis://localhost] [--port 8000]"""

import argparse
import os

import uvicorn


def main() -> None:
    parser = argparse.ArgumentParser(prog="examples/notifications", description="Serve the notifications.")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument(
        "--broker", default=os.environ.get("BROKER", "memory://"), help="such as redis://localhost"
    )
    args = parser.parse_args()
    os.environ["BROKER"] = args.broker
    from server import app

    print(f"\nOpen http://{args.host}:{args.port} in two tabs, and then, in another terminal:\n")
    to = f"--broker {args.broker}" if args.broker != "memory://" else f"--url http://{args.host}:{args.port}"
    print(f"  python examples/notifications/notify.py {to} ann 'Your export is ready'\n", flush=True)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=3)


if __name__ == "__main__":
    main()
