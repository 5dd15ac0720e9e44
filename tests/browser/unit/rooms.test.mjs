import assert from "node:assert/strict";
import { test } from "node:test";
import {
  CallError,
  ConnectionClosed,
  Gap,
  NotRunning,
  Unsubscribed,
  UsageError,
} from "../../../src/rtkit/browser/client.js";
import { MUTE, Refuse, client, fate, joined, pub, recorded, settle, watch } from "./harness.mjs";

/** A room with history, joined at `offset` of epoch "e". */
async function inRoom(t, { offset = 0, join = {}, ...options } = {}) {
  const it = await client(t, options);
  it.server.on("subscribe", joined("e", offset));
  const room = it.rt.join("chat:lobby", join);
  const items = recorded(room);
  await settle();
  assert.equal(room.state, "joined");
  return { ...it, room, items };
}

const CHANNEL = "chat:lobby";

/** After a loss: the client is back, and the room has asked to be joined again. */
async function comeBack({ server, clock }) {
  await server.socket.drop();
  await clock.advance(1);
}

test("joins once it is connected, and says where it stands", async (t) => {
  const { rt, server } = client(t, { connected: false });
  server.on("subscribe", joined("e", 5, { data: { title: "x" } }));
  const room = rt.join(CHANNEL, { data: { as: "guest" } });
  const told = [];
  room.on("joined", (info) => told.push(info));
  assert.equal(room.state, "joining");
  assert.equal(await room.joined(), room);
  assert.equal(room.state, "joined");
  assert.equal(room.name, CHANNEL);
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: CHANNEL, data: { as: "guest" } }]);
  assert.deepEqual(room.position, { epoch: "e", offset: 5 });
  assert.deepEqual(room.data, { title: "x" });
  assert.deepEqual(told, [{ data: { title: "x" }, position: { epoch: "e", offset: 5 }, recovered: false }]);
});

test("typed messages come by event, and all of them as message", async (t) => {
  const { server, room } = await inRoom(t);
  const said = [];
  const all = [];
  room.on("Said", (data, message) => said.push([data, message.position.offset]));
  room.on("message", (message) => all.push(message));
  server.socket.pub(
    CHANNEL,
    1,
    { event: "Said", data: { text: "hi" } },
    { info: { user: "ann", client: "z" }, time: 5.5 },
  );
  server.socket.pub(CHANNEL, 2, { event: "Left" });
  server.socket.pub(CHANNEL, 3, { event: "Said", data: 1, more: 2 });
  assert.deepEqual(said, [[{ text: "hi" }, 1]]);
  assert.deepEqual(
    { ...all[0] },
    {
      data: { text: "hi" },
      event: "Said",
      position: { epoch: "e", offset: 1 },
      sender: "ann",
      client: "z",
      time: new Date(5500),
    },
  );
  assert.deepEqual(
    [all[1].event, all[1].data, all[1].sender, all[1].client, all[1].time],
    ["Left", null, null, null, null],
  );
  assert.deepEqual([all[2].event, all[2].data], ["", { event: "Said", data: 1, more: 2 }]);
});

test("a raw room takes any JSON as it is", async (t) => {
  const { server, items, room } = await inRoom(t, { join: { raw: true } });
  room.on("Said", () => assert.fail("it is no event"));
  for (const data of [1.07, null, [], { event: "Said", data: 1 }]) server.socket.pub(CHANNEL, items.length + 1, data);
  assert.deepEqual(items, ["1.07", "null", "[]", '{"event":"Said","data":1}']);
});

test("an event with the name of a room's own comes as message only", async (t) => {
  const { server, room, items } = await inRoom(t);
  room.on("left", () => assert.fail("nobody left"));
  server.socket.pub(CHANNEL, 1, { event: "left", data: 1 });
  server.socket.pub(CHANNEL, 2, { event: "gap", data: 2 });
  server.socket.pub(CHANNEL, 3, { event: "message", data: 3 });
  assert.deepEqual(items, ["1", "2", "3"]);
});

test("a room without history is at most once and has no position", async (t) => {
  const { rt, server, clock } = await client(t);
  const room = rt.join("ticks:usd");
  const items = recorded(room);
  await room.joined();
  server.socket.pub("ticks:usd", 0, "a");
  server.socket.pub("ticks:usd", 0, "a");
  await comeBack({ server, clock });
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: "ticks:usd" }]);
  server.socket.pub("ticks:usd", 0, "b");
  assert.deepEqual(items, ['"a"', '"a"', '"b"']);
  assert.equal(room.position, null);
});

// Recovery (H2, H3).

test("after a cut it recovers from where it stands, and nothing comes twice", async (t) => {
  const it = await inRoom(t, { offset: 2 });
  const { server, room, items } = it;
  const told = [];
  room.on("joined", (info) => told.push(info));
  server.socket.pub(CHANNEL, 3);
  server.on("subscribe", joined("e", 5, { recovered: true, was_recovering: true, publications: [pub(4), pub(5)] }));
  await comeBack(it);
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: CHANNEL, recover: true, epoch: "e", offset: 3 }]);
  server.socket.pub(CHANNEL, 5);
  server.socket.pub(CHANNEL, 4);
  server.socket.pub(CHANNEL, 6);
  assert.deepEqual(items, ["3", "4", "5", "6"]);
  assert.deepEqual(room.position, { epoch: "e", offset: 6 });
  assert.deepEqual(told, [{ data: undefined, position: { epoch: "e", offset: 3 }, recovered: true }]);
});

test("what the application kept is where it goes on", async (t) => {
  const { rt, server } = await client(t);
  const kept = JSON.parse(JSON.stringify({ epoch: "e", offset: 7 }));
  server.on("subscribe", joined("e", 8, { recovered: true, was_recovering: true, publications: [pub(8)] }));
  const items = recorded(rt.join(CHANNEL, { since: kept }));
  await settle();
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: CHANNEL, recover: true, epoch: "e", offset: 7 }]);
  assert.deepEqual(items, ["8"]);
});

test("rewind begins some messages back, the first time", async (t) => {
  const { rt, server, clock } = await client(t);
  server.on("subscribe", joined("e", 9, { publications: [pub(8), pub(9)] }), joined("e", 9, { recovered: true }));
  const room = rt.join(CHANNEL, { rewind: 2 });
  const items = recorded(room);
  await settle();
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: CHANNEL, rewind: 2 }]);
  assert.deepEqual(items, ["8", "9"]);
  await comeBack({ server, clock });
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: CHANNEL, recover: true, epoch: "e", offset: 9 }]);
  assert.deepEqual(items, ["8", "9"]);
});

for (const [name, reply, gap, at] of [
  [
    "trimmed, as the server says",
    { gap: { from: 3, to: 9, epoch: "e", reason: "trimmed" } },
    "gap 3-9 trimmed e",
    ["e", 9],
  ],
  ["trimmed, of a server that does not say so", {}, "gap 3-9 trimmed e", ["e", 9]],
  ["another epoch", { epoch: "f", gap: { to: 9, epoch: "f", reason: "epoch" } }, "gap 0-9 epoch f", ["f", 9]],
  ["another epoch, not said", { epoch: "f" }, "gap 0-9 epoch f", ["f", 9]],
  [
    "a rollback",
    { offset: 1, gap: { from: 1, to: 1, epoch: "e", reason: "rollback" } },
    "gap 1-1 rollback e",
    ["e", 1],
  ],
  ["a rollback, not said", { offset: 1 }, "gap 1-1 rollback e", ["e", 1]],
  ["a reason from the future", { gap: { from: 3, to: 9, epoch: "e", reason: "magic" } }, "gap 3-9 magic e", ["e", 9]],
  ["history is gone", { recoverable: false, epoch: undefined, offset: undefined }, "gap 0-0 epoch ", null],
]) {
  test(`a join that cannot recover tells one gap: ${name}`, async (t) => {
    const it = await inRoom(t, { offset: 3 });
    it.server.on("subscribe", joined("e", 9, { was_recovering: true, ...reply }));
    await comeBack(it);
    assert.deepEqual(it.items, [gap]);
    assert.deepEqual(it.room.position, at && { epoch: at[0], offset: at[1] });
    if (at) it.server.socket.pub(CHANNEL, at[1] + 1, "next");
    assert.deepEqual(it.items.slice(1), at ? ['"next"'] : []);
  });
}

test("a reply that ends beyond what it brought is not believed", async (t) => {
  const it = await inRoom(t, { offset: 3 });
  it.server.on(
    "subscribe",
    joined("e", 9, { recovered: true, publications: [pub(4)] }),
    joined("e", 9, { recovered: true, publications: [5, 6, 7, 8, 9].map((n) => pub(n)) }),
  );
  await comeBack(it);
  assert.deepEqual(it.items, ["4", "5", "6", "7", "8", "9"]);
  assert.equal(it.server.socket.got("subscribe").at(-1).offset, 4);
});

test("recovered into a new epoch: the old position holds in it", async (t) => {
  const it = await inRoom(t, { offset: 3 });
  it.server.on("subscribe", joined("f", 4, { recovered: true, publications: [pub(4)] }));
  await comeBack(it);
  assert.deepEqual(it.items, ["4"]);
  assert.deepEqual(it.room.position, { epoch: "f", offset: 4 });
});

test("recovered, and yet behind: a rollback", async (t) => {
  const it = await inRoom(t, { offset: 3 });
  it.server.on("subscribe", joined("e", 2, { recovered: true }));
  await comeBack(it);
  assert.deepEqual(it.items, ["gap 2-2 rollback e"]);
});

test("a gap that ends before where the stream stands: what lies between is asked for", async (t) => {
  const it = await inRoom(t, { offset: 3 });
  const rest = joined("e", 9, { recovered: true, publications: [6, 7, 8, 9].map((n) => pub(n)) });
  it.server.on("subscribe", joined("e", 9, { gap: { from: 3, to: 5, epoch: "e", reason: "trimmed" } }), rest);
  await comeBack(it);
  assert.deepEqual(it.items, ["gap 3-5 trimmed e", "6", "7", "8", "9"]);
});

test("112: it joins without its position, and tells a gap all the same", async (t) => {
  const it = await inRoom(t, { offset: 3 });
  it.server.on("subscribe", new Refuse(112, "cannot be recovered"), joined("e", 9));
  await comeBack(it);
  assert.deepEqual(it.server.socket.got("subscribe"), [
    { channel: CHANNEL, recover: true, epoch: "e", offset: 3 },
    { channel: CHANNEL },
  ]);
  assert.deepEqual(it.items, ["gap 3-9 trimmed e"]);
});

// Live.

test("a hole is not delivered across: the room is joined anew from where it stands", async (t) => {
  const it = await inRoom(t, { offset: 3 });
  const { server, items } = it;
  server.on("subscribe", joined("e", 7, { recovered: true, publications: [4, 5, 6, 7].map((n) => pub(n)) }));
  server.socket.pub(CHANNEL, 6);
  server.socket.pub(CHANNEL, 7); // belongs to the old membership: it comes again
  await settle();
  assert.deepEqual(server.socket.got("unsubscribe"), [{ channel: CHANNEL }]);
  assert.deepEqual(server.socket.got("subscribe").slice(1), [
    { channel: CHANNEL, recover: true, epoch: "e", offset: 3 },
  ]);
  assert.deepEqual(items, ["4", "5", "6", "7"]);
});

test("a room that is interrupted again and again is joined after growing delays, until it is left in peace", async (t) => {
  const { server, clock, chance } = await inRoom(t);
  chance.value = 1;
  server.on("subscribe", joined("e", 0, { recovered: true }));
  const asked = () => server.socket.got("subscribe").length;
  const delays = [];
  for (let n = 0; n < 4; n++) {
    server.socket.pub(CHANNEL, 5);
    await settle();
    let waited = 0;
    for (const before = n + 1; asked() === before; waited += 0.25) {
      await clock.advance(0.25);
      server.socket.say({});
    }
    delays.push(waited);
  }
  assert.deepEqual(delays, [0, 1, 2, 4]);
  for (let n = 0; n < 25; n++) await clock.advance(1).then(() => server.socket.say({}));
  server.socket.pub(CHANNEL, 5);
  await settle();
  assert.equal(asked(), 6);
});

test("a gap that is told while live moves the position and is told once, cut to what was missing", async (t) => {
  const { server, items, room } = await inRoom(t, { offset: 40 });
  const gap = { from: 30, to: 65, epoch: "e", reason: "trimmed" };
  server.socket.push({ channel: CHANNEL, gap });
  server.socket.push({ channel: CHANNEL, gap });
  server.socket.push({ channel: CHANNEL, gap: { from: 10, to: 20, epoch: "e", reason: "trimmed" } });
  server.socket.pub(CHANNEL, 66);
  assert.deepEqual(items, ["gap 40-65 trimmed e", "66"]);
  assert.deepEqual(room.position, { epoch: "e", offset: 66 });
});

test("a gap that begins beyond where it stands is a hole as well", async (t) => {
  const { server, items } = await inRoom(t, { offset: 4 });
  server.on("subscribe", joined("e", 20, { gap: { from: 10, to: 20, epoch: "e", reason: "trimmed" } }));
  server.socket.push({ channel: CHANNEL, gap: { from: 10, to: 20, epoch: "e", reason: "trimmed" } });
  await settle();
  assert.deepEqual(items, ["gap 4-20 trimmed e"]);
});

test("a new epoch that is told as a gap counts even when it is empty", async (t) => {
  const { server, items, room } = await inRoom(t, { offset: 4 });
  server.socket.push({ channel: CHANNEL, gap: { epoch: "f", reason: "epoch" } });
  server.socket.push({ channel: CHANNEL, gap: { to: 12, epoch: "g", reason: "epoch" } });
  server.socket.pub(CHANNEL, 13);
  assert.deepEqual(items, ["gap 0-0 epoch f", "gap 0-12 epoch g", "13"]);
  assert.deepEqual(room.position, { epoch: "g", offset: 13 });
});

for (const reason of ["rollback", "trimmed", "whatever"]) {
  test(`a gap in a new epoch that begins beyond where it stands is a hole: ${reason}`, async (t) => {
    const { server, items } = await inRoom(t, { offset: 3 });
    server.on("subscribe", joined("f", 5, { recovered: true, publications: [pub(4), pub(5)] }));
    server.socket.push({ channel: CHANNEL, gap: { from: 4, to: 5, epoch: "f", reason } });
    await settle();
    assert.deepEqual(items, ["4", "5"]);
    server.socket.push({ channel: CHANNEL, gap: { from: 5, to: 6, epoch: "g", reason } });
    assert.match(items[2], /^gap 5-6 \w+ g$/);
  });
}

test("a new epoch that is told as a position is no loss to who stands there (H10)", async (t) => {
  const { server, items, room } = await inRoom(t, { offset: 4 });
  const position = { epoch: "f", offset: 5 };
  server.socket.pub(CHANNEL, 5);
  server.socket.push({ channel: CHANNEL, position });
  server.socket.push({ channel: CHANNEL, position });
  assert.deepEqual(room.position, position);
  server.socket.pub(CHANNEL, 6);
  assert.deepEqual(items, ["5", "6"]);
  assert.deepEqual(room.position, { epoch: "f", offset: 6 });
  assert.equal(server.socket.got("subscribe").length, 1);
});

for (const position of [
  { epoch: "f", offset: 5 },
  { epoch: "f", offset: 3 },
  { epoch: "e", offset: 3 },
  { offset: 5 },
  { epoch: "f" },
]) {
  test(`told another position than where it stands, it asks: ${JSON.stringify(position)}`, async (t) => {
    const { server, items } = await inRoom(t, { offset: 4 });
    server.on("subscribe", joined("f", 5, { recovered: true, publications: [pub(5)] }));
    server.socket.push({ channel: CHANNEL, position });
    await settle();
    assert.deepEqual(server.socket.got("subscribe").at(-1), {
      channel: CHANNEL,
      recover: true,
      epoch: "e",
      offset: 4,
    });
    assert.deepEqual(items, ["5"]);
  });
}

test("positions mean nothing to a room without history, nor to one that is not joined", async (t) => {
  const { rt, server } = await client(t);
  const room = rt.join("ticks");
  await room.joined();
  server.socket.push({ channel: "ticks", position: { epoch: "f", offset: 5 } });
  server.on("subscribe", MUTE);
  rt.join("asked");
  await settle();
  server.socket.push({ channel: "asked", position: { epoch: "f", offset: 5 } });
  await settle();
  assert.equal(room.position, null);
  assert.equal(server.socket.got("subscribe").length, 2);
});

test("a gap that nobody listens for is loud", async (t) => {
  const shouted = t.mock.method(console, "error", () => {});
  const { rt, server, errors } = await client(t);
  server.on("subscribe", joined("e", 4));
  const room = rt.join(CHANNEL);
  room.on("message", () => {});
  await settle();
  server.socket.push({ channel: CHANNEL, gap: { epoch: "f", reason: "epoch" } });
  assert.equal(shouted.mock.callCount(), 1);
  assert.match(errors[0].message, /"chat:lobby": a gap \(epoch\).*unheard/);
});

test("pushes between asking and the reply belong to an older membership", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", MUTE);
  const room = rt.join(CHANNEL);
  const items = recorded(room);
  await settle();
  const [{ id }] = server.socket.commands.filter((command) => command.subscribe);
  server.socket.pub(CHANNEL, 7);
  server.socket.push({ channel: CHANNEL, gap: { epoch: "x", reason: "epoch" } });
  server.socket.push({ channel: CHANNEL, unsubscribe: { code: 2000, reason: "old" } });
  server.socket.say({ id, subscribe: joined("e", 7) });
  assert.deepEqual(items, []);
  assert.deepEqual(room.position, { epoch: "e", offset: 7 });
});

test("several rooms in one frame", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", joined("e", 0));
  const [a, b] = ["a", "b"].map((name) => recorded(rt.join(name)));
  await settle();
  assert.equal(server.socket.frames.at(-1).split("\n").length, 2); // both joins in one frame, too
  server.socket.say(
    { push: { channel: "a", pub: { data: 1, offset: 1 } } },
    { push: { channel: "b", pub: { data: 2, offset: 1 } } },
    {},
    { push: { channel: "a", pub: { data: 3, offset: 2 } } },
  );
  assert.deepEqual([a, b], [["1", "3"], ["2"]]);
  assert.equal(server.socket.pongs, 1);
});

test("what this client itself has sent can be left out, also what it sent under a former id", async (t) => {
  const it = await inRoom(t, { join: { echo: false } });
  const { server, items, room } = it;
  const from = (client) => ({ info: { user: "ann", client } });
  server.socket.pub(CHANNEL, 1, "mine", from("c1"));
  assert.deepEqual(room.position, { epoch: "e", offset: 1 });
  server.welcome.client = "c2";
  server.on(
    "subscribe",
    joined("e", 3, { recovered: true, publications: [pub(2, "mine", from("c1")), pub(3, "hers", from("x"))] }),
  );
  await comeBack(it);
  server.socket.pub(CHANNEL, 4, "mine", from("c2"));
  server.socket.pub(CHANNEL, 5, "anybody's");
  assert.deepEqual(items, ['"hers"', '"anybody\'s"']);
});

test("signals", async (t) => {
  const { server, room } = await inRoom(t);
  const signals = [];
  room.on("signal", (signal) => signals.push(signal));
  server.socket.push({ channel: CHANNEL, signal: { event: "typing", data: { on: true }, user: "ann" } });
  server.socket.push({ channel: CHANNEL, signal: { data: 1 } });
  assert.deepEqual(signals, [
    { event: "typing", data: { on: true }, sender: "ann", client: null },
    { event: "", data: 1, sender: null, client: null },
  ]);
});

// Handlers that misbehave.

test("a listener that throws takes nothing from anybody", async (t) => {
  const reported = t.mock.method(console, "error", () => {});
  const { server, room, items } = await inRoom(t);
  room.on("message", () => {
    throw new Error("oops");
  });
  room.on("Said", () => {
    throw new Error("oops");
  });
  const after = recorded(room);
  server.socket.pub(CHANNEL, 1, { event: "Said", data: 1 });
  server.socket.pub(CHANNEL, 2, 2);
  assert.deepEqual(items, ["1", "2"]);
  assert.deepEqual(after, ["1", "2"]);
  assert.equal(reported.mock.callCount(), 3);
});

test("a listener may leave, join again, or close in the middle of a reply", async (t) => {
  for (const what of ["leave", "again", "close"]) {
    const { rt, server } = await client(t);
    server.on("subscribe", joined("e", 3, { publications: [pub(1), pub(2), pub(3)] }), joined("e", 3));
    const room = rt.join(CHANNEL, { rewind: 3 });
    const items = [];
    room.on("message", ({ data }) => {
      items.push(data);
      if (data !== 2) return;
      if (what === "close") rt.close();
      else room.leave();
      if (what === "again") recorded(rt.join(CHANNEL));
    });
    await settle();
    assert.deepEqual(items, [1, 2], what);
    assert.equal(room.state, "left");
    if (what === "again") assert.deepEqual(server.socket.got("subscribe").at(-1), { channel: CHANNEL });
  }
});

test("the position that a listener sees is behind the message it is given", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", joined("e", 3, { publications: [pub(1), pub(2), pub(3)] }));
  const room = rt.join(CHANNEL, { rewind: 3 });
  const seen = [];
  room.on("message", ({ position }) => seen.push([position.offset, room.position.offset]));
  await settle();
  assert.deepEqual(seen, [
    [1, 1],
    [2, 2],
    [3, 3],
  ]);
});

// Leaving.

test("leaving ends it, and is confirmed", async (t) => {
  const { server, room, items } = await inRoom(t);
  const ends = [];
  room.on("left", (error) => ends.push(error));
  await room.leave();
  await room.leave();
  assert.deepEqual(server.socket.got("unsubscribe"), [{ channel: CHANNEL }]);
  server.socket.pub(CHANNEL, 1);
  assert.deepEqual(items, []);
  assert.deepEqual(ends, [null]);
  assert.equal(room.state, "left");
  await assert.rejects(room.send("Say"), NotRunning);
  await assert.rejects(room.joined(), NotRunning);
  assert.throws(() => room.signal("typing"), NotRunning);
});

test("leaving does not wait for ever, nor without a connection at all", async (t) => {
  const { server, room, clock, rt } = await inRoom(t);
  server.on("unsubscribe", MUTE);
  const left = room.leave();
  assert.ok((await fate(left)).pending);
  await clock.advance(5.1);
  await left;
  const other = rt.join("other");
  await settle();
  server.on("unsubscribe", MUTE);
  const lost = other.leave();
  await server.socket.drop();
  await lost;
  await rt.join("third").leave();
});

test("leaving while joining: the server is told, and its answer counts no more", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", MUTE, joined("e", 8));
  const room = rt.join(CHANNEL);
  await settle();
  const [{ id }] = server.socket.commands.filter((command) => command.subscribe);
  const waiting = watch(room.joined());
  const gone = room.leave();
  const again = rt.join(CHANNEL);
  server.socket.say({ id, subscribe: joined("e", 5) });
  await gone;
  await settle();
  assert.ok(waiting.error instanceof NotRunning);
  assert.equal(room.state, "left");
  assert.deepEqual(again.position, { epoch: "e", offset: 8 });
  assert.deepEqual(
    server.socket.commands.slice(1).map((command) => Object.keys(command)[1]),
    ["subscribe", "unsubscribe", "subscribe"],
  );
});

test("a room left before it was asked for is never asked for", async (t) => {
  const { rt, server } = client(t, { connected: false });
  await rt.join(CHANNEL).leave();
  await rt.connected();
  await settle();
  assert.deepEqual(server.socket.got("subscribe"), []);
});

test("the same room cannot be joined twice at once, and other mistakes", async (t) => {
  const { rt } = await inRoom(t);
  assert.throws(() => rt.join(CHANNEL), /joined already/);
  for (const [name, options] of [
    ["", {}],
    ["a\nb", {}],
    ["\ud800", {}],
    ["é".repeat(128), {}],
    [5, {}],
    ["a", { rewind: -1 }],
    ["a", { rewind: 1, since: { epoch: "e", offset: 1 } }],
    ["a", { since: "e:1" }],
    ["a", { since: { epoch: "e" } }],
    ["a", { since: { epoch: "e", offset: 2 ** 53 } }],
    ["a", { since: { epoch: "e".repeat(129), offset: 1 } }],
    ["a", { since: {} }],
    ["a", { maxQueue: 0 }],
    ["a", { data: 1n }],
  ]) {
    assert.throws(
      () => rt.join(name, options),
      UsageError,
      JSON.stringify([name, String(options.data ?? options.since)]),
    );
  }
  rt.join("é".repeat(127));
  rt.join("__proto__", { since: null });
});

// The server says no.

test("a refused join is the end of the room, and told to who waits", async (t) => {
  const { rt, server, errors } = await client(t);
  server.on("subscribe", new Refuse(103, "members only"));
  const room = rt.join(CHANNEL);
  const sent = watch(room.send("Say"));
  const { error } = await fate(room.joined());
  assert.ok(error instanceof CallError);
  assert.deepEqual([error.code, error.text, error.temporary, error.retryAfter], [103, "members only", false, null]);
  assert.equal(sent.error, error);
  assert.equal(room.state, "left");
  assert.deepEqual(errors, []);
  rt.join(CHANNEL).on("left", (why) => assert.equal(why.code, 103));
  await settle();
  assert.deepEqual(errors, []);
});

test("a refused join that nobody waits for is told to the client", async (t) => {
  const { rt, server, errors } = await client(t);
  server.on("subscribe", new Refuse(102, "unknown room"));
  rt.join(CHANNEL);
  await settle();
  assert.equal(errors[0].code, 102);
});

test("a join refused for now is tried again, not before the server said", async (t) => {
  const { rt, server, clock } = await client(t);
  server.on("subscribe", new Refuse(100, "broker away", { retry_after: 4 }), joined("e", 1));
  const room = rt.join(CHANNEL);
  await clock.advance(3.9);
  assert.equal(server.socket.got("subscribe").length, 1);
  await clock.advance(2.2);
  assert.equal(room.state, "joined");
});

test("already subscribed: leave and join", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", new Refuse(105, "already subscribed"), joined("e", 1));
  const room = rt.join(CHANNEL);
  await room.joined();
  assert.deepEqual(
    server.socket.commands.slice(1).map((command) => Object.keys(command)[1]),
    ["subscribe", "unsubscribe", "subscribe"],
  );
});

test("echo: false knows what was sent over the connection before, however many there were", async (t) => {
  const { rt, server, clock } = await client(t);
  server.answers.set("connect", [() => ({ ...server.welcome, client: `c${server.sockets.length}` })]);
  for (let n = 0; n < 63; n++) {
    await server.socket.drop();
    await clock.advance(20);
  }
  server.on("subscribe", joined("e", 0));
  const items = recorded(rt.join(CHANNEL, { echo: false }));
  await settle();
  const mine = pub(1, "mine", { info: { client: `c${server.sockets.length}` } });
  server.on("subscribe", joined("e", 2, { recovered: true, publications: [mine, pub(2)] }));
  await server.socket.drop();
  await clock.advance(20);
  assert.deepEqual(items, ["2"]);
});

test("taken out below 2500: it is over", async (t) => {
  const { server, room, clock } = await inRoom(t);
  const ends = [];
  room.on("left", (error) => ends.push(error));
  const queued = room.send("Say");
  server.socket.push({ channel: CHANNEL, unsubscribe: { code: 2000, reason: "enough" } });
  assert.ok(ends[0] instanceof Unsubscribed);
  assert.deepEqual([ends[0].code, ends[0].reason], [2000, "enough"]);
  await assert.rejects(queued, Unsubscribed);
  await clock.advance(30);
  assert.equal(server.sockets.at(-1).got("subscribe").length, 1);
  await assert.rejects(room.history(), Unsubscribed);
});

test("taken out while its queue was full: what is queued, then the end, and it stays out", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", joined("e", 0));
  const room = rt.join(CHANNEL, { maxQueue: 4 });
  await room.joined();
  for (let n = 1; n <= 6; n++) server.socket.pub(CHANNEL, n);
  server.socket.push({ channel: CHANNEL, unsubscribe: { code: 2000, reason: "enough" } });
  const items = [];
  const iterating = (async () => {
    for await (const { data } of room) items.push(data);
  })();
  assert.ok((await fate(iterating)).error instanceof Unsubscribed);
  assert.deepEqual(items, [1, 2, 3, 4]);
  assert.equal(room.state, "left");
  assert.equal(server.socket.got("subscribe").length, 1);
});

test("taken out from 2500 on: it joins again and recovers", async (t) => {
  const { server, items } = await inRoom(t, { offset: 2 });
  server.on("subscribe", joined("e", 3, { recovered: true, publications: [pub(3)] }));
  server.socket.push({ channel: CHANNEL, unsubscribe: { code: 2500, reason: "continuity lost" } });
  await settle();
  assert.deepEqual(server.socket.got("unsubscribe"), []);
  assert.deepEqual(items, ["3"]);
});

test("the client is closed for good: every room is told why", async (t) => {
  const { server, room, rt, errors } = await inRoom(t);
  rt.join("another");
  rt.on("closed", () => {});
  const ends = [];
  room.on("left", (error) => ends.push(error));
  await server.socket.drop(3503, "closed for good");
  assert.ok(ends[0] instanceof ConnectionClosed);
  assert.equal(ends[0].code, 3503);
  assert.deepEqual(errors, []); // "closed" says it all
});

// Rooms that the server puts us into (auto_join).

const PERSONAL = "user:ann";

test("a room of the server's is taken over, with what it brought since", async (t) => {
  const { rt, server } = client(t, { connected: false });
  server.welcome.subs = { [PERSONAL]: joined("p", 3, { data: "hello" }) };
  await rt.connected();
  server.socket.pub(PERSONAL, 4);
  const room = rt.join(PERSONAL);
  const items = recorded(room);
  const told = [];
  room.on("joined", (info) => told.push(info.data));
  assert.equal(await room.joined(), room);
  server.socket.pub(PERSONAL, 5);
  await settle();
  assert.deepEqual(items, ["4", "5"]);
  assert.deepEqual(told, ["hello"]);
  assert.deepEqual(server.socket.got("subscribe"), []);
});

test("a room of the server's is recovered by the connect command", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.welcome.subs = { [PERSONAL]: joined("p", 3) };
  const items = recorded(rt.join(PERSONAL));
  await rt.connected();
  server.socket.pub(PERSONAL, 4);
  server.welcome.subs = { [PERSONAL]: joined("p", 6, { recovered: true, publications: [pub(5), pub(6)] }) };
  await comeBack({ server, clock });
  assert.deepEqual(server.socket.got("connect")[0].subs, { [PERSONAL]: { recover: true, epoch: "p", offset: 4 } });
  assert.deepEqual(items, ["4", "5", "6"]);
  assert.deepEqual(server.socket.got("subscribe"), []);
});

test("a room of the server's that cannot be recovered tells a gap", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.welcome.subs = { [PERSONAL]: joined("p", 3) };
  const items = recorded(rt.join(PERSONAL));
  await rt.connected();
  server.welcome.subs = {
    [PERSONAL]: joined("q", 1, { was_recovering: true, gap: { to: 1, epoch: "q", reason: "epoch" } }),
  };
  await comeBack({ server, clock });
  assert.deepEqual(items, ["gap 0-1 epoch q"]);
});

test("joined with a wish of its own, the server's membership is not enough", async (t) => {
  const { rt, server } = client(t, { connected: false });
  server.welcome.subs = { [PERSONAL]: joined("p", 3) };
  server.on("subscribe", joined("p", 3, { recovered: true, publications: [pub(2), pub(3)] }));
  const items = recorded(rt.join(PERSONAL, { since: { epoch: "p", offset: 1 } }));
  await rt.connected();
  await settle();
  assert.deepEqual(server.socket.got("unsubscribe"), [{ channel: PERSONAL }]);
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: PERSONAL, recover: true, epoch: "p", offset: 1 }]);
  assert.deepEqual(items, ["2", "3"]);
});

for (const since of [
  { epoch: "o", offset: 9 },
  { epoch: "p", offset: 9 },
  { epoch: "o", offset: 3 },
]) {
  test(`joined with a position that the server's membership does not fit: ${JSON.stringify(since)}`, async (t) => {
    const { rt, server } = client(t, { connected: false });
    server.welcome.subs = { [PERSONAL]: joined("p", 3) };
    server.on("subscribe", joined("p", 3, { gap: { to: 3, epoch: "p", reason: "epoch" } }));
    const items = recorded(rt.join(PERSONAL, { since }));
    await rt.connected();
    await settle();
    assert.deepEqual(server.socket.got("subscribe"), [{ channel: PERSONAL, recover: true, ...since }]);
    assert.equal(items.length, 1);
    assert.match(items[0], /^gap/);
  });
}

for (const wish of [{ rewind: 2 }, { data: { as: "guest" } }]) {
  test(`joined with ${Object.keys(wish)}, the server's membership is not enough either`, async (t) => {
    const { rt, server } = client(t, { connected: false });
    server.welcome.subs = { [PERSONAL]: joined("p", 3) };
    server.on("subscribe", joined("p", 3));
    rt.join(PERSONAL, wish);
    await rt.connected();
    await settle();
    assert.deepEqual(server.socket.got("subscribe"), [{ channel: PERSONAL, ...wish }]);
  });
}

test("moved to another position while a join is under way: its reply answers another question", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.welcome.subs = { [PERSONAL]: joined("p", 3) };
  server.on("subscribe", MUTE, joined("p", 5, { gap: { to: 5, epoch: "p", reason: "epoch" } }));
  await rt.connected();
  server.socket.pub(PERSONAL, 5); // a hole: joined anew
  await settle();
  const { id } = server.socket.commands.at(-1);
  const items = recorded(rt.join(PERSONAL, { since: { epoch: "o", offset: 1 } }));
  server.socket.say({ id, subscribe: joined("p", 5, { recovered: true, publications: [pub(4), pub(5)] }) });
  await clock.advance(1);
  assert.deepEqual(server.socket.got("subscribe").at(-1), {
    channel: PERSONAL,
    recover: true,
    epoch: "o",
    offset: 1,
  });
  assert.deepEqual(items, ["gap 0-5 epoch p"]);
});

test("taken over with a wish of its own while it is in: joined anew", async (t) => {
  const { rt, server } = client(t, { connected: false });
  server.welcome.subs = { [PERSONAL]: joined("p", 3) };
  await rt.connected();
  server.socket.pub(PERSONAL, 4, "comes again");
  server.on("subscribe", joined("p", 4, { publications: [pub(3), pub(4)] }));
  const items = recorded(rt.join(PERSONAL, { rewind: 2, data: "x" }));
  await settle();
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: PERSONAL, rewind: 2, data: "x" }]);
  assert.deepEqual(items, ["3", "4"]);
});

for (const [wish, asked] of [
  [{ presence: true }, { presence: true }],
  [{ receipts: true }, { marks: true }],
]) {
  test(`taken over with ${Object.keys(wish)}: joined anew, from where it stands, with what it brought`, async (t) => {
    const { rt, server } = client(t, { connected: false });
    server.welcome.subs = { [PERSONAL]: joined("p", 3) };
    await rt.connected();
    server.socket.pub(PERSONAL, 4);
    const more = { recovered: true, publications: [pub(5)], presence: { v: 1, members: [] }, marks: { epoch: "p" } };
    server.on("subscribe", joined("p", 5, more));
    const items = recorded(rt.join(PERSONAL, wish));
    await settle();
    const standing = { recover: true, epoch: "p", offset: 4 };
    assert.deepEqual(server.socket.got("subscribe"), [{ channel: PERSONAL, ...asked, ...standing }]);
    assert.deepEqual(items, ["4", "5"]);
  });
}

test("moved to another position while connecting: the recovery of the old one proves nothing", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.welcome.subs = { [PERSONAL]: joined("p", 5) };
  await rt.connected();
  await server.socket.drop();
  server.on("connect", MUTE, undefined);
  await clock.advance(1);
  assert.deepEqual(server.socket.got("connect")[0].subs, { [PERSONAL]: { recover: true, epoch: "p", offset: 5 } });
  const items = recorded(rt.join(PERSONAL, { since: { epoch: "o", offset: 3 } }));
  server.on("subscribe", joined("p", 5, { was_recovering: true, gap: { to: 5, epoch: "p", reason: "epoch" } }));
  server.socket.say({
    id: 1,
    connect: { ...server.welcome, subs: { [PERSONAL]: joined("p", 5, { recovered: true }) } },
  });
  await settle();
  assert.deepEqual(items, ["gap 0-5 epoch p"]);
});

test("a room of the server's that it does not put us in again", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.welcome.subs = { [PERSONAL]: joined("p", 3), "user:other": joined("p", 3) };
  const room = rt.join(PERSONAL);
  await rt.connected();
  delete server.welcome.subs;
  server.on("subscribe", joined("p", 3, { recovered: true }));
  await comeBack({ server, clock });
  // Ours is joined like any other; the one that nobody wanted is forgotten.
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: PERSONAL, recover: true, epoch: "p", offset: 3 }]);
  assert.equal(room.state, "joined");
});

test("the server may put us into a room at any time", async (t) => {
  const { rt, server } = await client(t);
  server.socket.push({ channel: "late", subscribe: joined("e", 2) });
  server.socket.pub("late", 3);
  const room = rt.join("late");
  const items = recorded(room);
  await settle();
  assert.deepEqual(items, ["3"]);
  assert.equal(room.state, "joined");
});

test("a gap is a gap, and says so in words", () => {
  assert.equal(String(new Gap(3, 5, "e", "trimmed")), "gap (trimmed): 3 < offset <= 5 in epoch e");
});
