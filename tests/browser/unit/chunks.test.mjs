// Units that are too large to go whole (T8).

import assert from "node:assert/strict";
import { test } from "node:test";
import "../../../src/rtkit/browser/chunks.js"; // so that loading it takes no time
import { CallError, InvalidMessage } from "../../../src/rtkit/browser/client.js";
import { client, fate, joined, recorded, settle, watch } from "./harness.mjs";

const CHANNEL = "chat:lobby";
const LIMITS = { unit: 65536, message: 1 << 20, large: 1 << 20, rate: 0, burst: 0 };

async function limited(t, limits = {}, options = {}) {
  const it = client(t, { connected: false, ...options });
  it.server.welcome.rt.limits = { ...LIMITS, ...limits };
  await it.rt.connected();
  return it;
}

/** A unit's chunks, as pushes. */
function cut(unit, of, slice = 1000) {
  const bytes = Buffer.from(JSON.stringify(unit));
  const pushes = [];
  for (let n = 0; n * slice < bytes.length; n++) {
    const data = bytes.subarray(n * slice, (n + 1) * slice).toString("base64");
    pushes.push({ chunk: { of, n: n || undefined, last: (n + 1) * slice >= bytes.length || undefined, data } });
  }
  return pushes;
}

const whole = (chunks) => JSON.parse(Buffer.concat(chunks.map(({ data }) => Buffer.from(data, "base64"))).toString());

for (const transport of ["websocket", "sse", "poll"]) {
  test(`${transport}: a publication that comes in chunks is one, in its place`, async (t) => {
    const { rt, server } = await limited(t, {}, { transports: [transport] });
    server.on("subscribe", joined("e", 0));
    const room = rt.join(CHANNEL);
    const items = recorded(room);
    await room.joined();
    const text = "Ä😀".repeat(1000);
    server.socket.pub(CHANNEL, 1, "one");
    for (const push of cut({ push: { channel: CHANNEL, pub: { data: text, offset: 2 } } }, 7)) {
      server.socket.push(push);
      server.socket.push({ message: { data: "between" } });
    }
    await settle();
    server.socket.pub(CHANNEL, 3, "three");
    await settle();
    assert.deepEqual(items, ['"one"', JSON.stringify(text), '"three"']);
  });

  test(`${transport}: what we send goes in chunks, and small commands in between`, async (t) => {
    const { rt, server, clock } = await limited(t, { bytes: 100_000, surge: 100_000 }, { transports: [transport] });
    const call = watch(rt.call("Big", "ä".repeat(200_000)));
    await settle();
    rt.call("Small").catch(() => {});
    await settle();
    assert.equal(server.socket.got("rpc").length, 1);
    assert.equal(server.socket.got("rpc")[0].method, "Small");
    await clock.advance(10);
    const chunks = server.socket.got("chunk");
    assert.deepEqual(
      chunks.map(({ n }) => n),
      [...chunks.keys()],
    );
    assert.ok(chunks.every(({ data }) => data.length <= 65536));
    assert.deepEqual(
      chunks.map(({ last }) => last ?? false),
      [...chunks.keys()].map((n) => n === chunks.length - 1),
    );
    const unit = whole(chunks);
    assert.equal(unit.rpc.data, "ä".repeat(200_000));
    assert.equal(unit.id, chunks[0].of);
    server.socket.say({ id: unit.id, rpc: { data: "done" } });
    await settle();
    assert.equal(call.value, "done");
  });
}

test("keeps to the bytes a second that the server takes", async (t) => {
  const { rt, server, clock } = await limited(t, { bytes: 65536, surge: 131072 });
  rt.call("Big", "x".repeat(600_000)).catch(() => {});
  await settle();
  const bytes = () => server.socket.frames.reduce((sum, frame) => sum + frame.length, 0);
  for (let second = 0; second < 30; second++) {
    assert.ok(bytes() <= 131072 + second * 65536, `${bytes()} after ${second} s`);
    await clock.advance(1);
  }
  assert.ok(server.socket.got("chunk").at(-1).last);
});

/** Bytes that were written by now. */
const written = (server) => server.socket.frames.reduce((sum, frame) => sum + frame.length, 0);

test("one large command after the other: the bytes a second are those of all of them", async (t) => {
  const { rt, server, clock } = await limited(t, { bytes: 65536, surge: 131072 });
  for (let n = 1; n < 9; n++) {
    rt.call("Big", "x".repeat(70_000)).catch(() => {});
    await clock.advance(0.5);
    assert.ok(written(server) <= 131072 + n * 32768, `${written(server)} after ${n / 2} s`);
  }
});

test("what goes whole keeps to the bytes a second as well", async (t) => {
  const { rt, server, clock } = await limited(t, { bytes: 65536, surge: 131072 });
  for (let n = 0; n < 20; n++) rt.call("Put", "x".repeat(30_000)).catch(() => {});
  await settle();
  for (let second = 0; second < 9; second++) {
    assert.ok(written(server) <= 131072 + second * 65536, `${written(server)} after ${second} s`);
    await clock.advance(1);
  }
  assert.equal(server.socket.got("rpc").length, 20);
});

test("what follows something large in its room waits for its answer; other rooms and calls do not", async (t) => {
  const { rt, server, clock } = await limited(t, { bytes: 100_000, surge: 100_000 });
  const [room, other] = [rt.join(CHANNEL), rt.join("chat:other")];
  await Promise.all([room.joined(), other.joined()]);
  const large = watch(room.send("Say", "x".repeat(200_000)));
  room.send("Say", "behind it");
  other.send("Say", "elsewhere");
  rt.call("Add");
  await clock.advance(20);
  const chunks = server.socket.got("chunk");
  assert.ok(chunks.at(-1).last);
  assert.deepEqual(server.socket.got("publish").map(({ data }) => data.data), ["elsewhere"]);
  assert.equal(server.socket.got("rpc").length, 1);
  server.socket.say({ id: chunks[0].of, publish: {} });
  await settle();
  assert.equal(large.pending, false);
  assert.deepEqual(server.socket.got("publish").map(({ data }) => data.data), ["elsewhere", "behind it"]);
});

test("something large that nobody waits for any more holds nothing up", async (t) => {
  const { rt, server } = await limited(t);
  const room = rt.join(CHANNEL);
  await room.joined();
  const control = new AbortController();
  room.send("Say", "x".repeat(200_000), { signal: control.signal }).catch(() => {});
  room.send("Say", "behind it");
  await settle();
  control.abort();
  await settle();
  assert.deepEqual(server.socket.got("publish").map(({ data }) => data.data), ["behind it"]);
});

test("a pipe that is full is waited for", async (t) => {
  const { rt, server, clock } = await limited(t);
  server.socket.bufferedAmount = 1_000_000;
  rt.call("Big", "x".repeat(200_000)).catch(() => {});
  await clock.advance(5);
  assert.equal(server.socket.got("chunk").length, 0);
  server.socket.bufferedAmount = 0;
  await clock.advance(0.1);
  assert.ok(server.socket.got("chunk").at(-1).last);
});

test("refused by the server: the command fails, the connection stays", async (t) => {
  const { rt, server } = await limited(t);
  const call = watch(rt.call("Big", "x".repeat(200_000)));
  await settle();
  const [{ of }] = server.socket.got("chunk");
  server.socket.push({ chunk: { of, error: { code: 106, message: "too much" } } });
  await settle();
  assert.ok(call.error instanceof CallError);
  assert.equal(rt.state, "connected");
});

test("larger than any chunks may be, or where the server knows none: refused here", async (t) => {
  for (const limits of [{}, { large: undefined }]) {
    const { rt, server } = await limited(t, limits);
    const { error } = await fate(rt.call("Big", "x".repeat(limits.large === undefined && "large" in limits ? 70_000 : 2 << 20)));
    assert.ok(error instanceof InvalidMessage);
    assert.deepEqual(server.socket.got("chunk"), []);
  }
});

test("lost on the way: it is written again, whole, under the same key; and no timer is left", async (t) => {
  const { rt, server, clock } = await limited(t, { bytes: 65536, surge: 65536 });
  rt.call("Big", "x".repeat(200_000)).catch(() => {});
  await clock.advance(1);
  await server.socket.drop();
  await clock.advance(30);
  const { key } = whole(server.socket.got("chunk")).rpc;
  assert.ok(key);
  rt.call("Big", "x".repeat(500_000)).catch(() => {});
  await clock.advance(0.1); // closed in the midst of it
});

for (const [name, pushes] of [
  ["out of turn", [{ of: 1, n: 1, data: "eHg=" }]],
  ["one skipped", [{ of: 1, data: "eHg=" }, { of: 1, n: 2, data: "eHg=" }]],
  ["no base64", [{ of: 1, data: "*" }]],
  ["nothing in it", [{ of: 1, data: "" }]],
  ["no data", [{ of: 1 }]],
  ["no id", [{ data: "eHg=" }]],
  ["no UTF-8", [{ of: 1, data: "/w==", last: true }]],
  ["no JSON", [{ of: 1, data: "eHg=", last: true }]],
  ["more of what is whole", [{ of: 1, data: "e30=", last: true }, { of: 1, n: 1, data: "e30=", last: true }]],
  ["the same id again", [{ of: 1, data: "e30=", last: true }, { of: 1, data: "e30=", last: true }]],
]) {
  test(`chunks that make no sense cost the connection, not the page: ${name}`, async (t) => {
    const { rt, server, clock } = await limited(t);
    for (const chunk of pushes) server.socket.push({ chunk });
    await settle();
    assert.equal(rt.state, "waiting");
    await clock.advance(2);
    assert.equal(rt.state, "connected");
  });
}

for (const history of [true, false]) {
  test(`a large message and the next, in one frame: in their order, history: ${history}`, async (t) => {
    const { rt, server } = await limited(t);
    server.on("subscribe", history ? joined("e", 0) : {});
    const room = rt.join(CHANNEL);
    const items = recorded(room);
    await room.joined();
    const place = (offset) => (history ? { offset } : {});
    const pushes = cut({ push: { channel: CHANNEL, pub: { data: "x".repeat(3000), ...place(1) } } }, 7);
    pushes.push({ channel: CHANNEL, pub: { data: 2, ...place(2) } });
    server.socket.say(...pushes.map((push) => ({ push })));
    assert.deepEqual(items, [`"${"x".repeat(3000)}"`, "2"], "at once");
    assert.equal(server.socket.got("subscribe").length, 1);
  });
}

test("a unit that was given up is forgotten for the next", async (t) => {
  const { rt, server } = await limited(t);
  const heard = [];
  rt.on("message", ({ data }) => heard.push(data));
  server.socket.push({ chunk: { of: 1, data: "eHg=" } });
  for (const push of cut({ push: { message: { data: "x".repeat(2000) } } }, 2)) server.socket.push(push);
  await settle();
  assert.deepEqual(heard, ["x".repeat(2000)]);
});
