"""What does an idle member cost, in memory and in CPU? Ten thousand of them, on real sockets.

    ./dev bench idle [--members 10000] [--rest 35] [--case room rooms history peer]

- ``room``: all in one room without history; ``history``: with; ``rooms``: spread over 100 rooms; ``peer``: the
  same number held by ``websockets.serve``.
- Memory is the server's resident memory after all have joined and it has settled, less what it was before the first
  came, by the number of members. What the kernel keeps for the sockets is not in it.
- CPU at rest is what the server used in the seconds after, in which nothing happens but heartbeats; every member has
  answered at least one when these are more than 25 s. After that every member has to be there still.
"""

import argparse
import time

from _load.control import Load, Server, cores, raise_open_files, sources
from _load.proc import environment, memory, usage

CASES = ("room", "rooms", "history", "peer")


def settled(pid: int, timeout: float) -> int:
    """The resident memory when it has not changed for two seconds, or after *timeout*."""
    now, until = memory(pid), time.monotonic() + timeout
    since = time.monotonic()
    while time.monotonic() < until and time.monotonic() - since < 2:
        time.sleep(0.2)
        if (found := memory(pid)) != now:
            now, since = found, time.monotonic()
    return now


def measure(case: str, args: argparse.Namespace) -> None:
    """One case, with a server of its own."""
    server_core, load_core = cores()
    loop = ("--loop", args.loop)
    command = ["_peer_websockets.py", *loop] if case == "peer" else ["server.py", *loop, "--host", args.host]
    names = {
        "room": ["idle"] * args.members,
        "history": ["h:idle"] * args.members,
        "rooms": [f"idle{number % 100}" for number in range(args.members)],
        "peer": ["idle"] * args.members,
    }[case]
    options = {"wire": "peer", "path": "/member"} if case == "peer" else {}
    with (
        Server.running(*command, core=server_core) as server,
        Load.running(server.port, core=load_core, sources=sources(args.members), **options) as load,
    ):
        # One that comes and goes first: what is imported and made for the first connection is not a member's.
        with Load.running(server.port, core=load_core, **options) as first:
            first.ask("join", rooms=names[:1])
        before = settled(server.pid, args.settle)
        began = usage(server.pid)
        joined = load.ask("join", rooms=names)
        joining = usage(server.pid).since(began)
        after = settled(server.pid, args.settle)
        began = usage(server.pid)
        answered = load.ask("state")["pongs"]
        time.sleep(args.rest)
        spent = usage(server.pid).since(began)
        state = load.ask("state")
        beats = state["pongs"] - answered
        rested = memory(server.pid)
    per = (after - before) / 1024 / max(1, joined["joined"])
    rested_per = (rested - before) / 1024 / max(1, joined["joined"])
    failed = f", failed: {joined['failed']}" if joined["failed"] else ""
    lost = f", lost: {state['lost']}" if state["lost"] else ""
    print(
        f"{case:8} {joined['joined']} of {args.members} joined in {joined['seconds']:.1f} s, for "
        f"{joining.total / max(1, joined['joined']) * 1e3:.2f} ms of CPU each{failed}; "
        f"resident {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after: {per:.2f} KiB each; "
        f"after {args.rest:g} s {rested_per:.2f} KiB each; "
        f"CPU at rest {spent.total / spent.at:.1%} of a core, {beats / spent.at:.0f} heartbeats a second; "
        f"{state['members']} still there{lost}",
        flush=True,
    )
    if not state["members"] == joined["joined"] == args.members:
        raise SystemExit("not every member joined and stayed")


def main(args: argparse.Namespace) -> None:
    files = raise_open_files(args.members)
    print(f"{environment()}; open files {files}")
    for case in args.case:
        measure(case, args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument(
        "--rest", type=float, default=35.0, help="seconds in which nothing happens but heartbeats"
    )
    parser.add_argument(
        "--settle", type=float, default=30.0, help="seconds that memory may take to stand still"
    )
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--host", choices=("own", "uvicorn"), default="own")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    main(parser.parse_args())
