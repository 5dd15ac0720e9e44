import assert from "node:assert/strict";
import { test } from "node:test";
import {
  CallError,
  ConnectionClosed,
  InvalidMessage,
  NotRunning,
  PublishUnknown,
  QueueFull,
  TimeoutError,
  UsageError,
} from "../../../src/rtkit/browser/client.js";
import { MUTE, Refuse, client, fate, joined, settle, watch } from "./harness.mjs";

const CHANNEL = "chat:lobby";

async function inRoom(t, options = {}) {
  const it = await client(t, options);
  it.server.on("subscribe", joined("e", 0, { recovered: true }));
  const room = it.rt.join(CHANNEL);
  await settle();
  return { ...it, room };
}

const published = (server) => server.sockets.flatMap((socket) => socket.got("publish"));

test("send is answered with the handler's acknowledgement", async (t) => {
  const { server, room } = await inRoom(t);
  server.on("publish", { data: { offset: 7 } }, {}, { epoch: "e", offset: 8 });
  assert.deepEqual(await room.send("Say", { text: "hi" }), { offset: 7 });
  assert.equal(await room.send("Say"), null);
  assert.deepEqual(await room.publish([1.07]), { epoch: "e", offset: 8 });
  const [first, second, third] = published(server);
  assert.deepEqual(first, { channel: CHANNEL, data: { event: "Say", data: { text: "hi" } }, key: first.key });
  assert.deepEqual(second.data, { event: "Say", data: null });
  assert.deepEqual(third.data, [1.07]);
  assert.equal(new Set([first, second, third].map(({ key }) => key)).size, 3);
  assert.ok(first.key.length <= 128);
});

test("an error is a CallError, with all that the server said", async (t) => {
  const { server, room } = await inRoom(t);
  server.on("publish", new Refuse(455, "sold out", { temporary: true, retry_after: 3 }));
  const { error } = await fate(room.send("Buy", {}));
  assert.ok(error instanceof CallError);
  assert.deepEqual(
    [error.name, error.code, error.text, error.temporary, error.retryAfter],
    ["CallError", 455, "sold out", true, 3],
  );
});

test("a call", async (t) => {
  const { rt, server } = await client(t);
  server.on("rpc", { data: 3 }, {});
  assert.equal(await rt.call("Add", { a: 1, b: 2 }, { key: "mine" }), 3);
  assert.equal(await rt.call("Nothing"), null);
  const [add, nothing] = server.socket.got("rpc");
  assert.deepEqual(add, { method: "Add", data: { a: 1, b: 2 }, key: "mine" });
  assert.ok(!("data" in nothing) && nothing.key);
});

test("history, both ways", async (t) => {
  const { server, room } = await inRoom(t);
  const page = (offsets, top) => ({
    publications: offsets.map((n) => ({ data: n, offset: n })),
    epoch: "e",
    offset: top,
  });
  server.on(
    "history",
    page([3, 4], 9),
    page([2, 1], 9),
    page([5], 9),
    page([], 4),
    page([], 9),
    page([4], 9),
    page([], 9),
    { epoch: "e" },
  );
  const { messages, top, complete } = await room.history({ limit: 2, since: { epoch: "e", offset: 2 } });
  assert.deepEqual(
    messages.map(({ data, position }) => [data, position.offset]),
    [
      [3, 3],
      [4, 4],
    ],
  );
  assert.deepEqual([top, complete], [{ epoch: "e", offset: 9 }, true]);
  assert.equal((await room.history({ since: { epoch: "e", offset: 3 }, reverse: true })).complete, true);
  assert.equal((await room.history({ since: { epoch: "e", offset: 2 } })).complete, false);
  assert.equal((await room.history({ since: { epoch: "e", offset: 4 } })).complete, true);
  assert.equal((await room.history({ since: { epoch: "e", offset: 4 } })).complete, false);
  assert.equal((await room.history({ since: { epoch: "d", offset: 5 }, reverse: true })).complete, false);
  assert.equal((await room.history({ since: { epoch: "e", offset: 1 }, reverse: true })).complete, true);
  assert.deepEqual(await room.history({ limit: 0 }), {
    messages: [],
    top: { epoch: "e", offset: 0 },
    complete: true,
  });
  assert.deepEqual(server.socket.got("history").slice(0, 2), [
    { channel: CHANNEL, limit: 2, since: { epoch: "e", offset: 2 } },
    { channel: CHANNEL, limit: 100, since: { epoch: "e", offset: 3 }, reverse: true },
  ]);
});

test("what JSON cannot hold, or the server would close for, never leaves", async (t) => {
  const { rt, server, room } = await inRoom(t);
  const loop = {};
  loop.loop = loop;
  for (const data of [
    loop,
    1n,
    "\ud800",
    { "\udc00": 1 },
    ["a\\\ud800"],
    {
      toJSON: () => {
        throw new Error("no");
      },
    },
  ]) {
    await assert.rejects(room.send("Say", data), InvalidMessage);
    await assert.rejects(rt.call("Say", data), InvalidMessage);
    assert.throws(() => room.signal("typing", data), InvalidMessage);
  }
  await assert.rejects(room.publish(undefined), InvalidMessage);
  await assert.rejects(
    room.publish(() => {}),
    InvalidMessage,
  );
  assert.deepEqual(published(server), []);
  await room.send("Say", "\ud83d\ude00 \\ud800 \\\\ud800"); // a whole character, and words about half of one
  assert.equal(published(server)[0].data.data, "😀 \\ud800 \\\\ud800");
});

test("names and keys are checked", async (t) => {
  const { rt, room } = await inRoom(t);
  for (const key of ["", "k".repeat(129), "\ud800", 5, null])
    await assert.rejects(room.send("Say", {}, { key }), UsageError);
  for (const name of ["", undefined, "é".repeat(128), 5]) {
    await assert.rejects(room.send(name, {}), UsageError);
    await assert.rejects(rt.call(name, {}), UsageError);
  }
  await assert.rejects(room.history({ limit: -1 }), UsageError);
  await assert.rejects(room.history({ since: 5 }), UsageError);
});

test("what is sent is what it was when it was sent", async (t) => {
  const { server, rt } = client(t, { connected: false });
  const data = { text: "before" };
  const call = rt.call("Say", data);
  data.text = "after";
  await call;
  assert.equal(server.socket.got("rpc")[0].data.text, "before");
});

// Offline.

test("commands wait for the connection and for their room, and go out oldest first, in few frames", async (t) => {
  const { rt, server } = client(t, { connected: false });
  server.on("subscribe", joined("e", 0));
  const room = rt.join(CHANNEL);
  const answers = [room.send("Say", 1), rt.call("Add", 2), room.send("Say", 3), rt.call("Add", 4)];
  assert.equal(rt.pending, 4);
  await Promise.all(answers);
  assert.equal(rt.pending, 0);
  const order = server.socket.commands.filter((command) => command.publish || command.rpc);
  assert.deepEqual(
    order.map(({ publish, rpc }) => publish?.data.data ?? rpc.data),
    [2, 4, 1, 3],
  );
  assert.ok(server.socket.frames.length <= 4);
});

test("the queue is bounded in commands and in bytes; one command always fits", async (t) => {
  const { rt } = client(t, { connected: false, maxOffline: 2, maxOfflineBytes: 104 });
  const big = watch(rt.call("Big", "x".repeat(100)));
  const [second, small, third] = ["x", undefined, undefined].map((data) => watch(rt.call("Add", data)));
  assert.equal(rt.pending, 2);
  await settle();
  assert.ok(second.error instanceof QueueFull);
  assert.ok(third.error instanceof QueueFull);
  assert.ok("value" in big && "value" in small);
});

test("one command always fits, and an answer makes room again", async (t) => {
  const { rt } = client(t, { connected: false, maxOfflineBytes: 10 });
  const big = rt.call("Big", "x".repeat(100));
  await assert.rejects(rt.call("Add", "x"), QueueFull);
  await big;
  const small = [rt.call("Add", "x"), rt.call("Add", "yyyyy")];
  await assert.rejects(rt.call("Add", "x"), QueueFull);
  await Promise.all(small);
});

test("what was not answered is written again with the same key, before anything newer", async (t) => {
  const { rt, server, clock, room } = await inRoom(t);
  server.on("publish", MUTE, { data: "done" });
  const first = room.send("Say", 1);
  await settle();
  await server.socket.drop();
  const second = room.send("Say", 2);
  await clock.advance(1);
  assert.equal(await first, "done");
  assert.equal(await second, "done");
  const [a, b, c] = published(server);
  assert.deepEqual([a.data.data, b.data.data, c.data.data], [1, 1, 2]);
  assert.equal(a.key, b.key);
  assert.notEqual(b.key, c.key);
  assert.equal(rt.pending, 0);
});

test("a server that is not rtkit's knows no keys: nothing is written twice", async (t) => {
  const it = client(t, { connected: false });
  delete it.server.welcome.rt;
  it.server.on("rpc", MUTE);
  it.server.on("history", MUTE, { epoch: "e" });
  it.server.on("subscribe", joined("e", 0));
  const room = it.rt.join(CHANNEL);
  await room.joined();
  const call = watch(it.rt.call("Add"));
  const page = room.history();
  assert.equal(room.signal("typing"), false);
  await settle();
  await it.server.socket.drop();
  assert.ok(call.error instanceof PublishUnknown);
  await it.clock.advance(1);
  assert.deepEqual((await page).messages, []); // reading again harms nobody
});

test("after half of the server's window a command that may have been taken is given up, by a clock that counts sleep", async (t) => {
  for (const pass of ["advance", "sleep"]) {
    const { server, clock, room, rt } = await inRoom(t);
    server.on("publish", MUTE, { data: "done" });
    const taken = watch(room.send("Say", 1));
    await settle();
    server.opens = false;
    await server.socket.drop();
    const queued = room.send("Say", 2); // never written: it may wait as long as it likes
    await clock[pass](149);
    assert.equal(rt.pending, 2);
    await clock[pass](1.1);
    server.opens = true;
    await clock.advance(30);
    assert.ok(taken.error instanceof PublishUnknown, pass);
    assert.equal(await queued, "done");
    assert.deepEqual(
      published(server).map(({ data }) => data.data),
      [1, 2],
    );
  }
});

test("within the window it is written again, whatever the wall clock is set back to", async (t) => {
  const { server, clock, room } = await inRoom(t);
  server.on("publish", MUTE, { data: "done" });
  const sent = room.send("Say", 1);
  await settle();
  await server.socket.drop();
  clock.set(-3600);
  await clock.advance(100);
  assert.equal(await sent, "done");
});

test("the wall clock set back does not make the window longer", async (t) => {
  const { server, clock, room } = await inRoom(t);
  server.on("publish", MUTE);
  const sent = watch(room.send("Say", 1));
  await settle();
  server.opens = false;
  await server.socket.drop();
  await clock.advance(75);
  clock.set(-3600);
  await clock.advance(85);
  await settle();
  assert.ok(sent.error instanceof PublishUnknown);
});

test("the age counts from the first writing", async (t) => {
  const { server, clock, room } = await inRoom(t);
  server.on("publish", MUTE);
  const sent = watch(room.send("Say", 1));
  await settle();
  for (let n = 0; n < 3; n++) {
    await clock.advance(30);
    server.socket.say({});
    await clock.advance(20);
    server.socket.say({});
    await server.socket.drop();
  }
  await clock.advance(5);
  await settle();
  assert.ok(sent.error instanceof PublishUnknown);
  assert.equal(published(server).length, 3);
});

test("a command in flight waits for its answer as long as the connection lives", async (t) => {
  const { server, clock, room } = await inRoom(t);
  server.on("publish", MUTE);
  const sent = room.send("Say", 1);
  for (let n = 0; n < 20; n++) {
    await clock.advance(20);
    server.socket.say({});
  }
  assert.ok((await fate(sent)).pending);
  const { id } = server.socket.commands.at(-1);
  server.socket.say({ id, publish: { data: "at last" } });
  assert.equal(await sent, "at last");
});

// Giving up.

test("a timeout: unknown if it was sent, and withdrawn if it was not", async (t) => {
  const { server, clock, room, rt } = await inRoom(t);
  server.on("publish", MUTE);
  server.on("history", MUTE);
  const sent = watch(room.send("Say", 1, { timeout: 2 }));
  const read = watch(room.history({ timeout: 2 }));
  await clock.advance(1.9);
  assert.equal(rt.pending, 2);
  await clock.advance(0.2);
  await settle();
  assert.ok(sent.error instanceof PublishUnknown);
  await settle();
  assert.ok(read.error instanceof TimeoutError); // reading is never unknown
  server.opens = false;
  await server.socket.drop();
  const queued = watch(room.send("Say", 2, { timeout: 2 }));
  await clock.advance(2.1);
  await settle();
  assert.ok(queued.error instanceof TimeoutError);
  server.opens = true;
  await clock.advance(30);
  assert.deepEqual(
    published(server).map(({ data }) => data.data),
    [1],
  );
});

test("an AbortSignal withdraws what was not sent; late answers are nobody's", async (t) => {
  const { server, clock, room, rt } = await inRoom(t);
  server.on("publish", MUTE, { data: "done" });
  const stop = new AbortController();
  const sent = room.send("Say", 1, { signal: stop.signal });
  await settle();
  const { id } = server.socket.commands.at(-1);
  stop.abort(new Error("changed my mind"));
  await assert.rejects(sent, /changed my mind/);
  server.socket.say({ id, publish: { data: "late" } });
  await assert.rejects(room.send("Say", 2, { signal: stop.signal }), /changed my mind/);
  await server.socket.drop();
  const other = new AbortController();
  const queued = room.send("Say", 3, { signal: other.signal });
  other.abort();
  await assert.rejects(queued, { name: "AbortError" });
  await clock.advance(5);
  assert.deepEqual(
    published(server).map(({ data }) => data.data),
    [1],
  );
  assert.equal(rt.pending, 0);
});

test("an answer leaves neither timer nor listener behind", async (t) => {
  const { room, clock } = await inRoom(t);
  const { signal } = new AbortController();
  const removed = t.mock.method(signal, "removeEventListener");
  const before = clock.timers;
  await room.send("Say", 1, { timeout: 60, signal });
  assert.equal(clock.timers, before);
  assert.equal(removed.mock.callCount(), 1);
});

test("closing: unknown if it was sent, closed if it was not", async (t) => {
  const { server, room, rt } = await inRoom(t);
  server.on("publish", MUTE);
  const sent = watch(room.send("Say", 1));
  await settle();
  const queued = watch(room.send("Say", 2)); // not written yet: that happens in a microtask
  rt.close();
  await settle();
  assert.ok(sent.error instanceof PublishUnknown);
  assert.ok(queued.error instanceof ConnectionClosed);
  assert.equal(published(server).length, 1);
});

test("leaving the room: what was not sent fails, what was sent may still be answered", async (t) => {
  const { server, room } = await inRoom(t);
  server.on("publish", MUTE);
  const sent = room.send("Say", 1);
  await settle();
  const { id } = server.socket.commands.at(-1);
  const queued = watch(room.send("Say", 2));
  room.leave();
  await settle();
  assert.ok(queued.error instanceof NotRunning);
  server.socket.say({ id, publish: { data: "done" } });
  assert.equal(await sent, "done");
});

test("sent, then left, then cut: unknown, since nobody will join again to send it", async (t) => {
  const { server, room } = await inRoom(t);
  server.on("publish", MUTE);
  const sent = watch(room.send("Say", 1));
  await settle();
  await room.leave();
  await server.socket.drop();
  await settle();
  assert.ok(sent.error instanceof PublishUnknown);
});

// The server's limits (decision 13).

test("keeps to nine tenths of the server's rate", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.welcome.rt.limits = { rate: 10, burst: 20 };
  await rt.connected();
  const calls = Array.from({ length: 40 }, () => rt.call("Add"));
  await settle();
  const sent = () => server.socket.got("rpc").length;
  assert.equal(sent(), 17); // 0.9 * 20, less the connect command
  await clock.advance(1);
  assert.equal(sent(), 26);
  await clock.advance(2);
  assert.equal(sent(), 40);
  await Promise.all(calls);
});

test("too many requests: everything is held back as long as the server said, and keeps its order", async (t) => {
  const { rt, server, clock } = await client(t);
  server.on("rpc", new Refuse(111, "too many", { temporary: true, retry_after: 3 }), { data: "ok" });
  const calls = [1, 2].map((n) => rt.call("Add", n));
  await settle();
  assert.deepEqual(
    server.socket.got("rpc").map(({ data }) => data),
    [1, 2],
  );
  calls.push(rt.call("Add", 3));
  await clock.advance(2.9);
  assert.equal(server.socket.got("rpc").length, 2);
  await clock.advance(0.2);
  assert.deepEqual(
    server.socket.got("rpc").map(({ data }) => data),
    [1, 2, 1, 3],
  );
  assert.deepEqual(await Promise.all(calls), ["ok", "ok", "ok"]);
});

test("refused as too many it was not taken, unless an earlier writing may have been", async (t) => {
  const { rt, server, clock } = await client(t);
  server.on("rpc", new Refuse(111, "", { retry_after: 1000 }));
  const fresh = watch(rt.call("Add"));
  await settle();
  rt.close();
  await settle();
  assert.ok(fresh.error instanceof ConnectionClosed);

  const other = await client(t);
  other.server.on("rpc", MUTE, new Refuse(111, "", { retry_after: 1000 }));
  const old = watch(other.rt.call("Add"));
  await settle();
  await other.server.socket.drop();
  await other.clock.advance(2);
  assert.equal(other.server.socket.got("rpc").length, 1);
  other.rt.close();
  await settle();
  assert.ok(old.error instanceof PublishUnknown);
  assert.equal(clock.timers, 0);
});

test("what is too large for the server is refused at home", async (t) => {
  const { rt, server } = client(t, { connected: false });
  server.welcome.rt.limits = { unit: 3000, message: 1000 };
  server.on("subscribe", joined("e", 0));
  const room = rt.join(CHANNEL, { raw: true });
  await rt.connected();
  await room.publish("x".repeat(998));
  await assert.rejects(room.publish("x".repeat(999)), InvalidMessage);
  await assert.rejects(room.publish("é".repeat(500)), InvalidMessage);
  await rt.call("Add", "x".repeat(2800));
  await assert.rejects(rt.call("Add", "x".repeat(2990)), InvalidMessage);
  for (const frame of server.socket.frames) assert.ok(frame.length <= 3000);
});

test("small units share a frame, up to 16 KiB and the server's limit", async (t) => {
  const { rt, server } = client(t, { connected: false });
  server.welcome.rt.limits = { unit: 8000, message: 8000 };
  await rt.connected();
  await Promise.all(Array.from({ length: 50 }, () => rt.call("Add", "é".repeat(500))));
  const frames = server.socket.frames.slice(1);
  assert.ok(frames.length > 5 && frames.length < 10, `${frames.length} frames`);
  for (const frame of frames) assert.ok(new TextEncoder().encode(frame).length <= 8000);
});

// Signals (D5).

test("of signals that wait only the newest of each room and event is sent", async (t) => {
  const { room, server } = await inRoom(t);
  assert.equal(room.signal("typing", 1), true);
  assert.equal(room.signal("typing", 2), true);
  assert.equal(room.signal("cursor", 3), true);
  await settle();
  assert.deepEqual(server.socket.got("signal"), [
    { channel: CHANNEL, event: "typing", data: 2 },
    { channel: CHANNEL, event: "cursor", data: 3 },
  ]);
});

test("a signal goes out now or not at all", async (t) => {
  const { room, server, clock, rt } = await inRoom(t);
  assert.equal(rt.join("other").signal("typing"), false);
  for (let n = 0; n < 64; n++) assert.equal(room.signal(`kind ${n}`), true);
  assert.equal(room.signal("one more"), false);
  await server.socket.drop();
  assert.equal(room.signal("typing"), false);
  await clock.advance(2);
  assert.deepEqual(server.socket.got("signal"), []);
});
