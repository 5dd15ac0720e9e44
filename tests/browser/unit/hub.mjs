// Against a real hub: started by tests/browser/test_sdk_node.py, which says where.

import assert from "node:assert/strict";
import { test } from "node:test";
import { CallError, Gap, Unsubscribed, connect, encodeParam } from "../../../src/rtkit/browser/client.js";

const url = process.env.RTKIT_TEST_URL;
const transport = process.env.RTKIT_TEST_TRANSPORT;

function client(t, name, options = {}) {
  const rt = connect(url, { token: () => `t-${name}`, minDelay: 0.01, transports: [transport], ...options });
  const states = [];
  rt.on("state", (state) => states.push(state));
  rt.on("error", (error) => console.error(error));
  t.after(() => rt.close());
  return { rt, states };
}

/** A list that can be waited for. */
function gathered() {
  const items = [];
  const waiting = [];
  return {
    items,
    add: (item) => {
      items.push(item);
      for (const wake of waiting.splice(0)) wake();
    },
    until: async (length) => {
      while (items.length < length) await new Promise((resolve) => waiting.push(resolve));
      return items;
    },
  };
}

test("join, send, listen, read back", async (t) => {
  const { rt } = client(t, "ann");
  const name = "Ärger: 100% 😀\n/";
  const room = rt.join(`chat:${encodeParam(name)}`, { data: { as: "guest" } });
  const said = gathered();
  room.on("Said", ({ text }, { sender, client, position, time }) => said.add({ text, sender, client, position, time }));
  assert.deepEqual((await room.joined()).data, { room: name, as: "guest" });
  assert.deepEqual(await room.send("Say", { text: "hi" }), { offset: 1 });
  const [first] = await said.until(1);
  assert.deepEqual([first.text, first.sender, first.client], ["hi", "ann", rt.clientId]);
  assert.ok(Math.abs(first.time - Date.now()) < 60_000);
  assert.deepEqual(room.position, first.position);
  const { messages, top, complete } = await room.history();
  assert.deepEqual(
    messages.map(({ data, event }) => [event, data.text]),
    [["Said", "hi"]],
  );
  assert.deepEqual([top, complete], [first.position, true]);
  assert.equal(await rt.call("Add", { a: 1, b: 2 }), 3);
});

test("what is too large to go whole goes in chunks, both ways, and delays nothing else", async (t) => {
  const { rt } = client(t, "joe");
  await rt.connected();
  const text = "Ä😀 ".repeat(60_000);
  const big = rt.call("Echo", { text });
  let small = 0;
  let done = false;
  big.finally(() => (done = true));
  while (!done && small < 200) small += (await rt.call("Add", { a: 1, b: 0 })) && 1;
  assert.equal(await big, text);
  assert.ok(small > 0);
});

test("what the server refuses, and why", async (t) => {
  const { rt } = client(t, "ann");
  await assert.rejects(rt.join("nowhere").joined(), (error) => error instanceof CallError && error.code === 102);
  const room = rt.join("chat:refusals");
  for (const [event, data, code] of [
    ["Shout", {}, 107],
    ["Say", { text: 1 }, 107],
    ["Say", { text: "no" }, 455],
  ]) {
    await assert.rejects(room.send(event, data), (error) => error instanceof CallError && error.code === code);
  }
  await assert.rejects(rt.call("Nothing"), (error) => error.code === 104);
});

test("cut off, it comes back, recovers, and misses nothing", async (t) => {
  const { rt, states } = client(t, "bob");
  const room = rt.join("chat:cut");
  const said = gathered();
  room.on("Said", ({ text }) => said.add(text));
  room.on("gap", (gap) => said.add(String(gap)));
  await room.send("Say", { text: "one" });
  for (let n = 0; n < 5; n++) await rt.call("Cut", { room: "cut", texts: [`${n} a`, `${n} b`] });
  const expected = ["one", ...[0, 1, 2, 3, 4].flatMap((n) => [`${n} a`, `${n} b`])];
  assert.deepEqual(await said.until(expected.length), expected);
  assert.equal(states.filter((state) => state === "connected").length, 6);
});

test("a command whose answer was lost is sent again and happens once", async (t) => {
  const { rt } = client(t, "cas");
  const room = rt.join("chat:once");
  const said = gathered();
  room.on("Said", ({ text }) => said.add(text));
  assert.deepEqual(await room.send("Say", { text: "cut me" }), { offset: 1 });
  await room.send("Say", { text: "end" });
  assert.deepEqual(await said.until(2), ["cut me", "end"]);
});

test("another life: where it left off, kept as JSON, is where it goes on", async (t) => {
  const first = client(t, "dan");
  const room = first.rt.join("chat:lives");
  await room.send("Say", { text: "one" });
  for await (const message of room) {
    assert.equal(message.data.text, "one");
    break;
  }
  const kept = JSON.stringify(room.position);
  first.rt.close();
  const other = client(t, "eve");
  await other.rt.join("chat:lives").send("Say", { text: "two" });
  const second = client(t, "dan");
  for await (const message of second.rt.join("chat:lives", { since: JSON.parse(kept) })) {
    assert.equal(message.data.text, "two");
    break;
  }
});

test("a stream that begins anew is a gap, live and on joining", async (t) => {
  const { rt } = client(t, "fay");
  const room = rt.join("chat:clear");
  const items = gathered();
  room.on("message", ({ data }) => items.add(data.text));
  room.on("gap", (gap) => items.add(gap));
  await room.send("Say", { text: "one" });
  await rt.call("Clear", { room: "clear" });
  await room.send("Say", { text: "two" });
  const [, gap, two] = await items.until(3);
  assert.ok(gap instanceof Gap && gap.reason === "epoch");
  assert.equal(two, "two");
  assert.equal(room.position.epoch, gap.epoch);
  const late = rt.join("chat:clear2", { since: { epoch: "another life", offset: 7 } });
  for await (const item of late) {
    assert.ok(item instanceof Gap);
    break;
  }
});

test("a room of the server's own, and messages to this session", async (t) => {
  const { rt } = client(t, "gus");
  const messages = gathered();
  rt.on("message", ({ data }) => messages.add(data));
  await rt.connected();
  await rt.call("Poke", {});
  assert.deepEqual(await messages.until(1), ["poked"]);
  const mine = rt.join("user:gus"); // after the server has put us in, and after it was told something
  for await (const { data } of mine) {
    assert.equal(data, "for gus");
    break;
  }
});

test("signals reach the others, not oneself", async (t) => {
  const [hal, ida] = ["hal", "ida"].map((name) => client(t, name).rt);
  const rooms = await Promise.all([hal, ida].map((rt) => rt.join("chat:signals").joined()));
  const heard = gathered();
  rooms[0].on("signal", () => assert.fail("that was oneself"));
  rooms[1].on("signal", (signal) => heard.add(signal));
  assert.equal(rooms[0].signal("typing", { on: true }), true);
  const expected = { event: "typing", data: { on: true }, sender: "hal", client: hal.clientId };
  assert.deepEqual(await heard.until(1), [expected]);
});

/** Until a check holds, which is looked at again with each event of a room. */
const until = (room, check) =>
  new Promise((resolve) => {
    const look = () => check() && resolve();
    for (const event of ["presence", "typing", "marks", "message", "joined"]) room.on(event, look);
    look();
  });

const team = (rt, name) => rt.join(`team:${name}`, { presence: true, receipts: true });

test("who is here: one comes with two clients, says something, is cut off, goes", async (t) => {
  const [ann, bob, again] = ["ann", "bob", "bob"].map((name) => client(t, name).rt);
  const room = team(ann, "presence");
  const joins = [];
  room.on("presence", (change) => joins.push(...change.joins.map(({ client }) => client)));
  const other = team(bob, "presence");
  team(again, "presence");
  await until(room, () => room.members.filter(({ user }) => user === "bob").length === 2);
  await other.joined();
  await other.updatePresence({ away: true });
  await until(room, () => room.members.some(({ client, meta }) => client === bob.clientId && meta.away));
  const lost = new Promise((resolve) => bob.on("state", (state) => state === "waiting" && resolve()));
  const cut = bob.call("Cut", { room: "presence", texts: [] });
  await Promise.all([lost, cut]);
  await other.updatePresence({ back: true });
  await until(room, () => room.members.some(({ client, meta }) => client === bob.clientId && meta.back));
  assert.equal(joins.length, new Set(joins).size, "who comes back in time has not joined again");
  again.close();
  bob.close();
  await until(room, () => room.clients === 1);
  assert.equal(room.members[0].client, ann.clientId);
});

test("who is typing: begins, sends, begins, leaves", async (t) => {
  const [ann, bob] = ["ann", "bob"].map((name) => client(t, name).rt);
  const [room, other] = await Promise.all([ann, bob].map((rt) => rt.join("team:typing").joined()));
  const told = [];
  room.on("typing", (users) => told.push(users.join()));
  const types = async () => {
    // people.js is loaded meanwhile: until then nothing can be said.
    while (!room.typists.length) {
      other.typing();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };
  await types();
  await other.send("Say", { text: "hi" });
  await until(room, () => !room.typists.length);
  await types();
  await other.leave();
  await until(room, () => !room.typists.length);
  assert.deepEqual(told, ["bob", "", "bob", ""]);
});

test("who has got and read how much: two users, two tabs of one, another life", async (t) => {
  const [ann, bob, tab] = ["ann", "bob", "bob"].map((name) => client(t, name).rt);
  const [a, b, c] = [ann, bob, tab].map((rt) => team(rt, "receipts"));
  for (const room of [b, c]) room.on("message", () => {});
  const seen = [];
  a.on("message", (message) => seen.push(message));
  await Promise.all([b.joined(), c.joined()]);
  await a.send("Say", { text: "one" });
  await a.send("Say", { text: "two" });
  await until(a, () => seen.length === 2 && a.reached(seen[1], "delivered").includes("bob"));
  assert.deepEqual(a.reached(seen[0]), []);
  await until(c, () => c.unread === 2);
  await until(b, () => b.unread === 2);
  b.markRead({ ...b.position, offset: 1 });
  await until(a, () => a.reached(seen[0]).includes("bob"));
  assert.deepEqual(a.reached(seen[1]), []);
  await until(c, () => c.unread === 1);
  b.markRead();
  bob.close(); // what waits for its turn is said before the goodbye
  await until(a, () => a.reached(seen[1]).includes("bob"));
  const later = team(client(t, "bob").rt, "receipts");
  await later.joined();
  assert.equal(later.unread, 0);
  assert.deepEqual(later.marks.get("bob"), { delivered: 2, read: 2 });
});

test("signals keep to the room's rate", async (t) => {
  const [hal, ida] = ["hal", "ida"].map((name) => client(t, name).rt);
  const [room, other] = await Promise.all([hal, ida].map((rt) => rt.join("team:signals").joined()));
  const heard = gathered();
  other.on("signal", ({ data }) => heard.add(data));
  for (let n = 1; n <= 200; n++) {
    room.signal("cursor", n);
    if (n % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  }
  while (heard.items.at(-1) !== 200) await heard.until(heard.items.length + 1);
  assert.ok(heard.items.length < 50);
  assert.deepEqual(
    heard.items,
    heard.items.toSorted((a, b) => a - b),
  );
});

test("thrown out, it stays out", async (t) => {
  const { rt } = client(t, "jon");
  const room = await rt.join("chat:out").joined();
  const left = new Promise((resolve) => room.on("left", resolve));
  await rt.call("Remove", { room: "out" });
  assert.ok((await left) instanceof Unsubscribed);
  assert.equal(room.state, "left");
});

test("asked for a new token, it shows one without reconnecting", async (t) => {
  let calls = 0;
  const asked = gathered();
  const { rt, states } = client(t, "kim", {
    token: () => {
      asked.add(++calls);
      return "t-kim";
    },
  });
  await rt.connected();
  await rt.call("Renew", {});
  await asked.until(2);
  assert.equal(await rt.call("Add", { a: 2, b: 2 }), 4);
  assert.deepEqual(states, ["connecting", "connected"]);
});

test("a bad token is the end", async (t) => {
  const { rt } = client(t, "", { token: "bad" });
  await assert.rejects(rt.connected(), (error) => error.code === 3500);
});

test("many commands at once keep to the server's rate, and none is lost", async (t) => {
  const { rt } = client(t, "lea");
  const sums = await Promise.all(Array.from({ length: 120 }, (_, n) => rt.call("Add", { a: n, b: 1 })));
  assert.deepEqual(
    sums,
    Array.from({ length: 120 }, (_, n) => n + 1),
  );
});
