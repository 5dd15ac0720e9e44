"""What can go wrong, one function for each kind of :data:`.plan.KINDS`: it breaks, waits, and mends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .plan import KINDS, Fault
from .world import Node, User, World

__all__ = ["inject"]


async def inject(world: World, fault: Fault) -> None:
    """Have a fault happen, unless another one has its victim already."""
    await world.sim.sleep(fault.at)
    about, how = _FAULTS[fault.kind]
    if about == "user":
        victim: User | Node | None = world.users[fault.who % len(world.users)]
    elif about == "node":
        victim = world.nodes[fault.who % len(world.nodes)]
    else:
        victim = None
    if victim is not None and victim.busy:
        return
    if victim is None and world.server_busy:
        return
    world.faults[fault.kind] += 1
    world.sim.note(f"FAULT {fault}")
    _set_busy(world, victim, True)
    try:
        await how(world, victim, fault)  # type: ignore[arg-type] # as the table says
    finally:
        _set_busy(world, victim, False)
        world.sim.note(f"OVER {fault}")


def _set_busy(world: World, victim: User | Node | None, busy: bool) -> None:
    if victim is None:
        world.server_busy = busy
    else:
        victim.busy = busy


# -- users


async def user_freezes(world: World, user: User, fault: Fault) -> None:
    user.machine.freeze()
    await world.sim.sleep(fault.lasts)
    user.machine.thaw()


async def user_reads_nothing(world: World, user: User, fault: Fault) -> None:
    """Frozen, while more is said than its outbox holds."""
    user.machine.freeze()
    for _ in range(40):
        await world.sim.sleep(0.2)
        node = world.nodes[fault.who % len(world.nodes)]
        if node.hub is not None and node.hub.running and not node.busy:
            await node.publish_once(node.hub, "log:a", world.new_id(f"{node.name}.flood"), size=6000)
    await world.sim.sleep(min(fault.lasts, 20.0))
    user.machine.thaw()


async def user_crashes(world: World, user: User, fault: Fault) -> None:
    user.crash(dark=fault.much > 0.5)
    await world.sim.sleep(fault.lasts)
    user.boot()


async def user_is_cut(world: World, user: User, fault: Fault) -> None:
    for node in world.nodes:
        world.sim.network.cut(user.name, node.name)


async def user_is_offline(world: World, user: User, fault: Fault) -> None:
    sides = (user.name,), tuple(node.name for node in world.nodes)
    world.sim.network.partition(*sides)
    await world.sim.sleep(fault.lasts)
    world.sim.network.rejoin(*sides)


async def user_is_closed(world: World, user: User, fault: Fault) -> None:
    """By the application, wherever it is; it may come back."""
    hub = world.running_hub(fault.who)
    if hub is not None:
        await world.tolerant(hub.user(user.name).close(code=3000))


async def user_is_removed(world: World, user: User, fault: Fault) -> None:
    """From a room; it joins again, where it stood."""
    hub = world.running_hub(fault.who)
    if hub is not None and user.seats:
        name = sorted(user.seats)[fault.who % len(user.seats)]
        await world.tolerant(hub.room(name).remove(user.name, reason="for the exercise"))


async def user_is_revoked(world: World, user: User, fault: Fault) -> None:
    """It is closed for good, everywhere, and may not come back until that is lifted (A4)."""
    hub = world.running_hub(fault.who)
    if hub is None:
        return
    world.revoked.add(user.name)
    revoked = hub.user(user.name).revoke(world.server.machine.clock.time() + 3600)
    if await world.tolerant(revoked):
        await world.sim.sleep(fault.lasts)
    while True:
        hub = world.running_hub(fault.who)
        if hub is not None and await world.tolerant(hub.user(user.name).revoke(0.0)):
            return
        await world.sim.sleep(1)


# -- nodes


async def node_freezes(world: World, node: Node, fault: Fault) -> None:
    node.machine.freeze()
    await world.sim.sleep(fault.lasts)
    node.machine.thaw()


async def node_crashes(world: World, node: Node, fault: Fault) -> None:
    node.crash(dark=fault.much > 0.5)
    await world.sim.sleep(fault.lasts)
    await node.boot()


async def node_restarts(world: World, node: Node, fault: Fault) -> None:
    await node.stop()
    await world.sim.sleep(min(fault.lasts, 3.0))
    await node.boot()


async def node_without_broker(world: World, node: Node, fault: Fault) -> None:
    sides = (node.name,), (world.server.machine.name,)
    world.sim.network.partition(*sides)
    await world.sim.sleep(fault.lasts)
    world.sim.network.rejoin(*sides)


async def node_without_users(world: World, node: Node, fault: Fault) -> None:
    sides = (node.name,), tuple(user.name for user in world.users)
    world.sim.network.partition(*sides)
    await world.sim.sleep(fault.lasts)
    world.sim.network.rejoin(*sides)


async def broker_deaf(world: World, node: Node, fault: Fault) -> None:
    for port in list(world.server.ports):
        if port.client is node.broker:
            port.deaf = True  # until the node finds out


async def clock_wrong(world: World, node: Node, fault: Fault) -> None:
    node.machine.clock.wrong = (fault.much - 0.5) * 600
    await world.sim.sleep(fault.lasts)
    node.machine.clock.wrong = 0.0


# -- the broker


async def broker_away(world: World, _: None, fault: Fault) -> None:
    world.server.stop()
    await world.sim.sleep(fault.lasts)
    if fault.much > 0.5:
        world.server.start()  # its data are there, and nobody vouches for them
        world.record.another_life()
    else:
        world.server.reappear()


async def broker_silent(world: World, _: None, fault: Fault) -> None:
    """It stands still, or all ways to it are cut: nobody is told."""
    sides = (world.server.machine.name,), tuple(node.name for node in world.nodes)
    world.sim.network.partition(*sides)
    await world.sim.sleep(fault.lasts)
    world.sim.network.rejoin(*sides)


async def broker_empty(world: World, _: None, fault: Fault) -> None:
    world.server.stop()
    await world.sim.sleep(min(fault.lasts, 8.0))
    world.server.start(empty=True)
    world.record.lost(fault.kind)


async def broker_fails_over(world: World, _: None, fault: Fault) -> None:
    snapshot, since = world.server.snapshot(), world.sim.now
    await world.sim.sleep(min(fault.lasts, 8.0))
    world.server.fail_over(snapshot)
    world.record.another_life()
    world.record.lost(fault.kind, since=since)


async def broker_fails_over_and_back(world: World, _: None, fault: Fault) -> None:
    snapshot, since = world.server.snapshot(), world.sim.now
    await world.sim.sleep(min(fault.lasts, 8.0))
    world.server.fail_over(snapshot)
    world.server.fail_over(snapshot)
    world.record.another_life()
    world.record.another_life()
    world.record.lost(fault.kind, since=since)


async def broker_loses_messages(world: World, _: None, fault: Fault) -> None:
    world.server.lost = 0.1 + 0.9 * fault.much
    await world.sim.sleep(fault.lasts)
    world.server.lost = 0.0


async def links_bad(world: World, _: None, fault: Fault) -> None:
    network, before = world.sim.network, world.sim.network.link
    network.link = type(before)(delay=(0.01, 1.0 * fault.much), loss=0.1 * fault.much)
    await world.sim.sleep(fault.lasts)
    network.link = before


_USERS = (
    user_freezes,
    user_reads_nothing,
    user_crashes,
    user_is_cut,
    user_is_offline,
    user_is_closed,
    user_is_removed,
    user_is_revoked,
)
_NODES = (
    node_freezes,
    node_crashes,
    node_restarts,
    node_without_broker,
    node_without_users,
    broker_deaf,
    clock_wrong,
)
_WORLD = (
    broker_away,
    broker_silent,
    broker_empty,
    broker_fails_over,
    broker_fails_over_and_back,
    broker_loses_messages,
    links_bad,
)
_FAULTS: dict[str, tuple[str, Callable[..., Awaitable[None]]]] = {
    how.__name__.replace("_", " "): (about, how)
    for about, those in (("user", _USERS), ("node", _NODES), ("world", _WORLD))
    for how in those
}
assert set(_FAULTS) == set(KINDS)
