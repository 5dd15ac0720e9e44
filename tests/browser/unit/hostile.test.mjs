// A server nobody can trust: whatever it sends, the client neither breaks nor lies.

import assert from "node:assert/strict";
import { test } from "node:test";
import { client, joined, recorded, settle } from "./harness.mjs";

const CHANNEL = "chat:lobby";

async function inRoom(t) {
  const it = await client(t);
  it.server.on("subscribe", joined("e", 1));
  const room = it.rt.join(CHANNEL);
  const items = recorded(room);
  await settle();
  return { ...it, room, items };
}

const push = (body) => JSON.stringify({ push: { channel: CHANNEL, ...body } });

for (const frame of [
  "not JSON",
  "{",
  "[]",
  "null",
  "5",
  '"text"',
  '{"id":-1}',
  '{"id":1.5}',
  '{"id":"2"}',
  '{"id":9007199254740992}',
  '{"push":[]}',
  '{"push":5}',
  '{"push":{"channel":5,"pub":{"data":1}}}',
  push({ pub: 5 }),
  push({ pub: { data: 1, offset: "2" } }),
  push({ pub: { data: 1, offset: -2 } }),
  push({ pub: { data: 1, offset: 1.5 } }),
  push({ pub: { data: 1, offset: null } }),
  push({ pub: { data: 1, offset: 2, info: "ann" } }),
  push({ pub: { data: 1, offset: 2, info: { user: 5 } } }),
  push({ pub: { data: 1, offset: 2, time: "now" } }),
  `{"push":{"channel":"${CHANNEL}","pub":{"data":1,"offset":9007199254740993}}}`,
  `{"push":{"channel":"${CHANNEL}","pub":{"data":1,"offset":1e999}}}`,
  push({ gap: { from: "1" } }),
  push({ gap: { to: 2 ** 53, epoch: "e" } }),
  push({ gap: { to: 2, epoch: "e".repeat(129) } }),
  push({ position: { epoch: 5 } }),
  push({ position: { epoch: "f", offset: -1 } }),
  push({ unsubscribe: { code: "2500", reason: "" } }),
  push({ signal: { event: {} } }),
  push({ subscribe: { publications: {} } }),
  push({ disconnect: { code: "x" } }),
  push({ disconnect: { code: 3001, rt: { min: "soon" } } }),
  push({ refresh: { expires: 1 } }),
  push({ message: "psst" }),
]) {
  test(`no unit: ${frame.slice(0, 90)}`, async (t) => {
    const it = await inRoom(t);
    it.server.socket.raw(frame);
    assert.equal(it.rt.state, "waiting");
    assert.ok(it.server.socket.closedBy);
    assert.deepEqual(it.items, []);
    it.server.on("subscribe", joined("e", 1, { recovered: true }));
    await it.clock.advance(1);
    assert.equal(it.rt.state, "connected"); // tried again, and not trusted less than before
    it.server.socket.pub(CHANNEL, 2);
    assert.deepEqual(it.items, ["2"]);
  });
}

test("what came before a bad unit counts, what comes behind it does not", async (t) => {
  const { server, items, room } = await inRoom(t);
  server.socket.raw(
    [push({ pub: { data: 2, offset: 2 } }), "garbage", push({ pub: { data: 3, offset: 3 } })].join("\n"),
  );
  assert.deepEqual(items, ["2"]);
  assert.deepEqual(room.position, { epoch: "e", offset: 2 });
});

for (const data of [new ArrayBuffer(2), null, undefined, 5]) {
  test(`a frame that is no text: ${data}`, async (t) => {
    const { rt, server } = await inRoom(t);
    server.socket.raw(data);
    assert.equal(rt.state, "waiting");
  });
}

test("what nobody knows is ignored", async (t) => {
  const { rt, server, items } = await inRoom(t);
  server.socket.raw("\n\n \n");
  server.socket.say(
    { push: {} },
    { push: { channel: CHANNEL, future: { a: 1 } } },
    { push: { channel: "elsewhere", pub: { data: 1, offset: 1 } } },
    { id: 999, publish: {} },
    { id: 998, error: { code: 100, message: "whose?" } },
    { more: 1 },
    { push: { channel: CHANNEL, pub: { data: 2, offset: 2, tags: {}, delta: true } } },
  );
  assert.equal(rt.state, "connected");
  assert.equal(server.socket.pongs, 0);
  assert.deepEqual(items, ["2"]);
});

test("names that objects have by themselves pollute nothing", async (t) => {
  const names = ["__proto__", "constructor", "toString", "hasOwnProperty"];
  const { rt, server } = client(t, { connected: false });
  const subs = Object.fromEntries(names.map((name) => [name, joined("e", 1)]));
  server.on("connect", undefined);
  server.welcome = { ...server.welcome, subs };
  const rooms = names.map((name) => rt.join(name));
  const items = rooms.map((room, n) => {
    const seen = [];
    room.on(names[n], (data) => seen.push(data));
    return seen;
  });
  await rt.connected();
  for (const name of names)
    server.socket.raw(
      `{"push":{"channel":"${name}","pub":{"data":{"event":"${name}","data":{"__proto__":{"polluted":1}}},"offset":2}}}`,
    );
  server.socket.raw('{"__proto__":{"push":{"channel":"__proto__"}},"constructor":5}');
  server.socket.raw('{"push":{"__proto__":{"pub":{"data":1}},"channel":"__proto__"}}');
  for (const seen of items) assert.equal(seen.length, 1);
  assert.equal({}.polluted, undefined);
  assert.equal(Object.keys(items[0][0])[0], "__proto__");
  await server.socket.drop();
  server.on("connect", { ...server.welcome, subs: {} });
  assert.equal(rt.state, "waiting");
});

test("a room called __proto__ is recovered by the connect command like any other", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.welcome.subs = JSON.parse('{"__proto__":{"recoverable":true,"epoch":"e","offset":3}}');
  await rt.connected();
  await server.socket.drop();
  await clock.advance(1);
  assert.match(server.socket.frames[0], /"subs":\{"__proto__":\{"recover":true,"epoch":"e","offset":3\}\}/);
});

test("the largest offset there is", async (t) => {
  const { rt, server, items } = await inRoom(t);
  const top = Number.MAX_SAFE_INTEGER;
  server.socket.push({ channel: CHANNEL, gap: { from: 0, to: top, epoch: "f", reason: "epoch" } });
  server.socket.pub(CHANNEL, top);
  assert.deepEqual(items, [`gap 0-${top} epoch f`]);
  assert.equal(rt.state, "connected");
});

test("deep nesting and repeated names are the application's data, nothing more", async (t) => {
  const { server, room, rt } = await inRoom(t);
  const items = [];
  room.on("message", (message) => items.push(message));
  t.mock.method(console, "error", () => {}); // the other listener cannot write it down
  const deep = "[".repeat(5000) + "]".repeat(5000);
  server.socket.raw(`{"push":{"channel":"${CHANNEL}","pub":{"data":${deep},"offset":2,"offset":2}}}`);
  assert.equal(items.length, 1);
  assert.equal(rt.state, "connected");
});

test("a hostile welcome is no welcome", async (t) => {
  for (const welcome of [
    { ping: -1 },
    { ping: "25" },
    { subs: [] },
    { subs: { a: 5 } },
    { subs: { a: { publications: [5] } } },
    { rt: { limits: { rate: "fast" } } },
    { client: 5 },
    { expires: 1 },
  ]) {
    const { rt, server, states } = client(t, { connected: false });
    server.on("connect", { client: "x", ...welcome });
    await settle();
    assert.equal(rt.state, "waiting", JSON.stringify(welcome));
    assert.ok(!states.includes("connected"));
  }
});

test("limits of nothing are no limits", async (t) => {
  const { rt, server } = client(t, { connected: false });
  server.welcome.rt.limits = { rate: 0, burst: 0, unit: 0, message: 0 };
  server.on("rpc", { data: 1 });
  assert.equal(await rt.call("Add", "x".repeat(5000)), 1);
});

test("a window without end does not stop the client for ever by overflow of a timer", async (t) => {
  const { rt, server, clock } = await client(t);
  server.socket.push({ disconnect: { code: 3001, reason: "", rt: { min: 1e12, max: 1e300 } } });
  await server.socket.drop();
  await clock.advance(100);
  assert.equal(rt.state, "waiting");
});

test("a server that ends every connection at once is not hammered", async (t) => {
  const { rt, server, clock } = await client(t);
  for (let second = 0; second < 120; second++) {
    if (rt.state === "connected") await server.socket.drop(1006);
    await clock.advance(1);
  }
  assert.ok(server.sockets.length < 25, `${server.sockets.length} attempts in two minutes`);
});
