"""How does fan-out compare with ``websockets.broadcast``, on real sockets? Paired and interleaved.

    ./dev bench versus_websockets [--members 1000] [--inflight 4] [--seconds 4] [--pairs 8] [--channel bench]

Both servers are up throughout, on the same core, each with its own load process on another core; in a round one of
them works. A round keeps four publications in flight: the next goes out when the last member has the oldest. The load
polls without sleeping, checks every message at every member, and is the same program for both. The order within
pairs alternates: A B, B A, A B … See README.md for what is fair about it and what is not.
"""

import argparse
import os
import statistics
from typing import Any

from _load.control import Load, Server, cores, raise_open_files, sources
from _load.proc import environment


def one_round(load: Load, server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Let one server work; raises when a message was lost or out of order."""
    server_core, load_core = cores()
    found = load.ask(
        "flow",
        seconds=args.seconds,
        warmup=args.warmup,
        inflight=args.inflight,
        pid=server.pid,
        server_core=server_core,
        load_core=load_core,
    )
    if found["missing"] or found["faults"] or found["lost"] or not found["deliveries"]:
        raise SystemExit(f"{server.program}: not every member got every message in order: {found}")
    found["rate"] = found["deliveries"] / found["seconds"]
    found["each"] = found["cpu"] / found["deliveries"] * 1e6
    return found


def show(name: str, found: dict[str, Any]) -> None:
    seconds, split = found["seconds"], found["user"] + found["system"] or 1
    print(
        f"  {name:10} {found['rate']:9,.0f} deliveries/s   server {found['each']:6.2f} us CPU each "
        f"({found['user'] / split:3.0%} user), {found['received'] / found['deliveries']:4.0f} bytes each; cores: "
        f"server {found['cpu'] / seconds:4.0%}, load {found['load'] / seconds:4.0%}, "
        f"others {found['foreign'] / seconds:4.0%}; last member p50 {found['last']['p50']:.1f} ms"
    )


def summary(name: str, values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{name} {statistics.median(values):.2f} (from {low:.2f} to {high:.2f} in {len(values)} pairs)"


def main(args: argparse.Namespace) -> None:
    raise_open_files(args.members * 2)
    server_core, load_core = cores()
    if server_core == load_core:
        print("only one core: server and load share it, and deliveries/s mean little")
    print(environment())
    host = ("--host", args.host)
    loop = ("--loop", args.loop)
    with (
        Server.running("server.py", *host, *loop, core=server_core) as ours,
        Server.running("_peer_websockets.py", *loop, core=server_core) as peer,
        Load.running(ours.port, core=load_core, sources=sources(args.members)) as our_load,
        Load.running(peer.port, core=load_core, wire="peer", path="/member") as peer_load,
    ):
        print(f"ours: {ours.said}\npeer: {peer.said}")
        os.sched_setaffinity(0, {load_core})
        for load in (our_load, peer_load):
            joined = load.ask("join", rooms=[args.channel] * args.members)
            if joined["joined"] != args.members:
                raise SystemExit(f"not all could join: {joined}")
            load.ask("publishers", numbers=[0], channel=args.channel, size=args.size)
        sides = {"rtkit": (our_load, ours), "websockets": (peer_load, peer)}
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for number in range(args.pairs):
            for name in sorted(sides, reverse=number % 2 == 1):
                found = one_round(*sides[name], args)
                rounds[name].append(found)
                show(name, found)
    print(
        f"{args.members} members, {args.inflight} in flight, {args.pairs} pairs of {args.seconds:g} s, "
        f"channel {args.channel!r}"
    )
    for name, those in rounds.items():
        print(
            f"  {name:10} median {statistics.median(each['rate'] for each in those):9,.0f} deliveries/s, "
            f"{statistics.median(each['each'] for each in those):6.2f} us of server CPU each"
        )
    pairs = list(zip(rounds["rtkit"], rounds["websockets"], strict=True))
    print(summary("  deliveries/s, rtkit to websockets:", [a["rate"] / b["rate"] for a, b in pairs]))
    print(summary("  deliveries per CPU second, likewise:", [b["each"] / a["each"] for a, b in pairs]))
    noise = statistics.median(
        each["foreign"] / each["seconds"] for those in rounds.values() for each in those
    )
    if noise > 0.1:
        print(
            f"  others used {noise:.0%} of a core meanwhile: deliveries/s say little, "
            f"and CPU each is too high on both sides"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--inflight", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round")
    parser.add_argument(
        "--warmup", type=float, default=1.0, help="seconds before each round that do not count"
    )
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--size", type=int, default=100, help="bytes of padding in a publication")
    parser.add_argument("--channel", default="bench", help="begin it with h: for a room with history")
    parser.add_argument("--host", choices=("own", "uvicorn"), default="own")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    main(parser.parse_args())
