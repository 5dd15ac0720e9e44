"""Does every one of 2,000 members of a room get every message, in order, and how soon?

    ./dev bench room [--members 2000] [--rate 50] [--publishers 4] [--seconds 20] [--channel room h:room]

Publications go out when they are due, whatever becomes of them, and their delay counts from then. Every member is
checked for order and completeness by its publishers' sequence numbers, and by offsets in rooms with history. Ends
with status 1 when anything is missing or out of order.
"""

import argparse
import sys
from contextlib import ExitStack

from _load.control import Load, Server, cores, merged, raise_open_files, sources
from _load.proc import environment, memory, usage


def measure(server: Server, channel: str, args: argparse.Namespace) -> bool:
    """One room; whether all arrived."""
    _, load_core = cores()
    publishers = list(range(args.publishers))
    with ExitStack() as stack:
        loads = [
            stack.enter_context(
                Load.running(
                    server.port,
                    core=load_core,
                    publishers=args.publishers,
                    sources=sources(args.members),
                    path=args.path,
                )
            )
            for _ in range(args.processes + 1)
        ]
        *readers, writer = loads
        shares = [args.members // args.processes] * args.processes
        shares[0] += args.members - sum(shares)
        for reader, share in zip(readers, shares, strict=True):
            reader.tell("join", rooms=[channel] * share)
        joined = [reader.answer() for reader in readers]
        members = sum(each["joined"] for each in joined)
        seconds = max(each["seconds"] for each in joined)
        failed = [each["failed"] for each in joined if each["failed"]]
        slowest = max(each["joining"].get("max", 0.0) for each in joined)
        writer.ask("publishers", numbers=publishers, channel=channel, size=args.size)
        for reader in readers:
            reader.ask("reset")
        before = usage(server.pid)
        written = writer.ask("publish", rate=args.rate, seconds=args.seconds)
        expected = [written["sent"][str(number)] for number in publishers]
        for reader in readers:
            reader.tell("collect", expected=expected)
        read = [reader.answer() for reader in readers]
        spent = usage(server.pid).since(before)
        resident = memory(server.pid)
    deliveries = sum(each["deliveries"] for each in read)
    missing = members * written["published"] - deliveries
    unanswered = written["published"] - written["acks"]
    faults = sum(each["faults"] for each in [*read, written])
    lost = [each["lost"] for each in [*read, written] if each["lost"]]
    latency = merged([each["histogram"] for each in read])
    good = (
        members == args.members
        and not (missing or unanswered or faults or lost)
        and not any(each["missing"] for each in read)
    )
    print(f"{channel!r}: {'all there, in order' if good else 'NOT EVERYTHING ARRIVED'}")
    print(
        f"  joined {members} of {args.members} ({members / args.members:.2%}) in {seconds:.1f} s, "
        f"the slowest took {slowest:.0f} ms{f'; failed: {failed}' if failed else ''}"
    )
    print(
        f"  {written['published']} publications by {args.publishers} publishers, {args.rate:g}/s asked, "
        f"{written['published'] / written['seconds']:.0f}/s done, p99 {written['late']['p99']:.1f} ms late"
    )
    print(
        f"  {deliveries:,} deliveries, {deliveries / written['seconds']:,.0f}/s; "
        f"missing {missing}, faults {faults}, commands without an answer {unanswered}"
    )
    if latency:
        print(
            f"  from due to received: p50 {latency['p50']:.1f} ms, p90 {latency['p90']:.1f} ms, "
            f"p99 {latency['p99']:.1f} ms, max {latency['max']:.1f} ms"
        )
    print(
        f"  server: {spent.total / written['seconds']:.0%} of its core, "
        f"{spent.total / max(1, deliveries) * 1e6:.2f} us per delivery, resident {resident / 2**20:.0f} MiB"
    )
    for example in [line for each in [*read, written] for line in each["examples"]][:10] + lost:
        print(f"  ! {example}")
    return good


def main(args: argparse.Namespace) -> None:
    raise_open_files(args.members)
    server_core, _ = cores()
    print(environment())
    good = True
    for channel in args.channel:
        with Server.running(
            "server.py", "--host", args.host, "--loop", args.loop, core=server_core
        ) as server:
            good &= measure(server, channel, args)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--members", type=int, default=2000)
    parser.add_argument("--publishers", type=int, default=4)
    parser.add_argument(
        "--rate", type=float, default=30.0, help="publications a second, all publishers together"
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--size", type=int, default=100, help="bytes of padding in a publication")
    parser.add_argument("--processes", type=int, default=1, help="that hold the members")
    parser.add_argument("--channel", nargs="+", default=["room", "h:room"])
    parser.add_argument("--path", default="/connection/websocket")
    parser.add_argument("--host", choices=("own", "uvicorn"), default="own")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    main(parser.parse_args())
