// Who is here, who types, who has read what: as the server tells it, and as this client says it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { CallError, UsageError } from "../../../src/rtkit/browser/client.js";
import { MUTE, Refuse, client, fate, joined, pub, recorded, settle } from "./harness.mjs";

const CHANNEL = "chat:lobby";

const member = (client, user = client, meta = undefined) => ({ user, client, ...(meta && { meta }) });
const named = (members) => members.map(({ user, client }) => `${user}/${client}`);
const words = ({ joins, leaves, updates, whole }) =>
  [joins.map((m) => `+${m.client}`), leaves.map((m) => `-${m.client}`), updates.map((m) => `~${m.client}`), whole ? ["whole"] : []]
    .flat()
    .join(" ");

/** In a room whose join is answered with this. */
async function inRoom(t, result = {}, { join = {}, ...options } = {}) {
  const it = await client(t, options);
  it.server.on("subscribe", result);
  const room = it.rt.join(CHANNEL, join);
  await settle();
  assert.equal(room.state, "joined");
  const push = (body) => it.server.socket.push({ channel: CHANNEL, ...body });
  return { ...it, room, push };
}

/** Cut off, and back. */
async function comeBack({ server, clock }, welcome = {}) {
  server.welcome = { ...server.welcome, ...welcome };
  await server.socket.drop();
  await clock.advance(6); // long enough for the next loss to be the first again
}

// -- presence ---------------------------------------------------------------------------------------------------

async function present(t, members = [member("c1", "ann"), member("c2", "bob")], options = {}) {
  const it = await inRoom(t, { presence: { v: 3, members } }, { join: { presence: true }, ...options });
  const changes = [];
  it.room.on("presence", (change) => changes.push(words(change)));
  return { ...it, changes };
}

test("asks for presence, and has everybody when it is joined", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", { presence: { v: 3, members: [member("c1", "ann"), member("c2", "bob", { away: true })] } });
  const room = rt.join(CHANNEL, { presence: true });
  assert.deepEqual([room.members, room.clients], [[], 0]);
  const told = [];
  room.on("joined", () => told.push(`joined ${room.clients}`));
  room.on("presence", (change) => told.push(words(change)));
  await settle();
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: CHANNEL, presence: true }]);
  assert.deepEqual(room.members, [
    { user: "ann", client: "c1", meta: {} },
    { user: "bob", client: "c2", meta: { away: true } },
  ]);
  assert.equal(room.clients, 2);
  assert.deepEqual(told, ["joined 2", "+c1 +c2 whole"]);
});

test("who does not ask has no presence, and asks for none", async (t) => {
  const { server, room } = await inRoom(t, {});
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: CHANNEL }]);
  assert.deepEqual([room.members, room.clients], [[], 0]);
});

test("of presence that was not asked for nothing is taken", async (t) => {
  const { room, push } = await inRoom(t, { typing: 5 });
  push({ presence: { v: 1, members: [member("c2", "bob")] } });
  push({ presence: { v: 1, joins: [member("c2", "bob")] } });
  await settle();
  assert.deepEqual([room.members, room.clients, room.state], [[], 0, "joined"]);
});

test("changes are numbered; what is known already is dropped", async (t) => {
  const { room, push, changes, server } = await present(t);
  const before = room.members;
  push({ presence: { v: 4, joins: [member("c3", "cyd")], updates: [member("c1", "ann", { away: true })] } });
  push({ presence: { v: 5, leaves: [member("c2", "bob")] } });
  push({ presence: { v: 5, joins: [member("c9", "eve")] } });
  push({ presence: { v: 2, joins: [member("c9", "eve")] } });
  assert.deepEqual(changes, ["+c3 ~c1", "-c2"]);
  assert.deepEqual(named(room.members), ["ann/c1", "cyd/c3"]);
  assert.deepEqual(room.members[0].meta, { away: true });
  assert.notEqual(room.members, before);
  assert.equal(before.length, 2, "what was handed out stays as it was");
  assert.equal(server.socket.got("subscribe").length, 1);
});

test("a jump in the numbers is a hole: the room is joined again, and the difference is told", async (t) => {
  const { room, push, changes, server } = await present(t);
  server.on("subscribe", { presence: { v: 7, members: [member("c1", "ann"), member("c4", "dan")] } });
  push({ presence: { v: 5, joins: [member("c4", "dan")] } });
  push({ presence: { v: 6, leaves: [member("c1", "ann")] } });
  await settle();
  assert.equal(server.socket.got("unsubscribe").length, 1);
  assert.equal(server.socket.got("subscribe").length, 2);
  assert.deepEqual(changes, ["+c4 -c2"]);
  push({ presence: { v: 8, leaves: [member("c4", "dan")] } });
  assert.deepEqual(named(room.members), ["ann/c1"]);
});

test("after a reconnect the difference is told, not everybody again; and nothing if there is none", async (t) => {
  const it = await present(t);
  it.server.on("subscribe", { presence: { v: 1, members: [member("c2", "bob"), member("c1", "ann")] } });
  await comeBack(it);
  assert.deepEqual(it.changes, []);
  assert.deepEqual(named(it.room.members), ["ann/c1", "bob/c2"], "in the order they had");
  it.server.on("subscribe", {
    presence: { v: 9, members: [member("c3", "cyd"), member("c2", "bob", { away: true })] },
  });
  await comeBack(it);
  assert.deepEqual(it.changes, ["+c3 -c1 ~c2"]);
  assert.deepEqual(named(it.room.members), ["bob/c2", "cyd/c3"]);
});

test("while the connection is gone, who was here stays shown", async (t) => {
  const it = await present(t);
  await it.server.socket.drop();
  assert.equal(it.room.clients, 2);
  assert.deepEqual(it.changes, []);
});

test("a push with everybody replaces what was known, whatever its number", async (t) => {
  const { room, push, changes } = await present(t);
  push({ presence: { v: 1, members: [member("c2", "bob"), member("c5", "eve")] } });
  push({ presence: { v: 2, leaves: [member("c5", "eve")] } });
  assert.deepEqual(changes, ["+c5 -c1", "-c5"]);
  assert.deepEqual(named(room.members), ["bob/c2"]);
});

test("a room that is too full is counted only, until it is not", async (t) => {
  const { room, push, changes } = await present(t);
  push({ presence: { v: 4, clients: 1207, users: 1190 } });
  assert.deepEqual([room.members, room.clients], [[], 1207]);
  push({ presence: { v: 5, clients: 1207, users: 1189 } });
  push({ presence: { v: 6, clients: 1100, users: 1090 } });
  assert.equal(room.clients, 1100);
  push({ presence: { v: 7, members: [member("c1", "ann")] } });
  assert.deepEqual(named(room.members), ["ann/c1"]);
  assert.deepEqual(changes, ["whole", "whole", "+c1 whole"]);
});

test("a room that is counted from the beginning", async (t) => {
  const { room } = await inRoom(t, { presence: { v: 1, clients: 5000, users: 4000 } }, { join: { presence: true } });
  assert.deepEqual([room.members, room.clients], [[], 5000]);
});

test("of a room's presence before it is joined again nothing counts", async (t) => {
  const it = await present(t);
  it.server.on("subscribe", MUTE);
  await comeBack(it);
  it.push({ presence: { v: 4, leaves: [member("c1", "ann")] } });
  assert.deepEqual(it.changes, []);
  assert.equal(it.room.clients, 2);
});

test("rooms of the server's own are asked about with connect, the second time", async (t) => {
  const it = await client(t, { connected: false });
  it.server.welcome.subs = { [CHANNEL]: {} };
  it.server.on("subscribe", { presence: { v: 1, members: [member("c1", "ann")] } });
  const room = it.rt.join(CHANNEL, { presence: true });
  await it.rt.connected();
  await settle();
  assert.deepEqual(named(room.members), ["ann/c1"], "put in without being asked, it asks");
  assert.deepEqual(it.server.socket.got("subscribe"), [{ channel: CHANNEL, presence: true }]);
  const changes = [];
  room.on("presence", (change) => changes.push(words(change)));
  it.server.welcome.subs = { [CHANNEL]: { presence: { v: 2, members: [member("c2", "bob")] } } };
  await comeBack(it);
  assert.deepEqual(it.server.socket.got("connect")[0].subs, { [CHANNEL]: { presence: true } });
  assert.deepEqual(it.server.socket.got("subscribe"), []);
  assert.deepEqual(changes, ["+c2 -c1"]);
});

test("a room without presence refuses to be asked", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", new Refuse(108));
  const { error } = await fate(rt.join(CHANNEL, { presence: true }).joined());
  assert.ok(error instanceof CallError && error.code === 108);
});

test("what makes no sense ends the connection, not the client", async (t) => {
  for (const presence of [{ v: -1 }, { v: 4, joins: {} }, { v: 4, joins: [{ user: 5 }] }, { members: [null] }, []]) {
    const { push, rt, clock, changes } = await present(t);
    push({ presence });
    await settle();
    assert.equal(rt.state, "waiting", JSON.stringify(presence));
    await clock.advance(1);
    assert.equal(rt.state, "connected");
    assert.deepEqual(changes, []);
  }
});

// What one says about oneself.

const said = (socket) => socket.got("presence_update").map(({ meta }) => meta);

test("says something about itself", async (t) => {
  const { room, server } = await present(t);
  const meta = { away: true };
  const done = room.updatePresence(meta);
  meta.away = "changed since";
  await done;
  assert.deepEqual(server.socket.got("presence_update"), [{ channel: CHANNEL, meta: { away: true } }]);
});

test("what is refused is told, and not said again", async (t) => {
  const it = await present(t);
  it.server.on("presence_update", new Refuse(106));
  const { error } = await fate(it.room.updatePresence({ a: "x" }));
  assert.equal(error.code, 106);
  await comeBack(it, { client: "c7" });
  assert.deepEqual(said(it.server.socket), []);
});

test("another client says it again; the same one does not", async (t) => {
  const it = await present(t);
  await it.room.updatePresence({ away: true });
  it.server.on("subscribe", { presence: { v: 1, members: [member("c1", "ann", { away: true })] } });
  await comeBack(it);
  assert.deepEqual(said(it.server.socket), [], "the session went on");
  it.server.on("subscribe", { presence: { v: 1, members: [member("c1", "ann", { away: true })] } });
  await comeBack(it, { client: "c7" });
  assert.deepEqual(said(it.server.socket), [{ away: true }]);
  it.server.on("subscribe", { presence: { v: 1, members: [member("c7", "ann")] } });
  await comeBack(it);
  assert.deepEqual(said(it.server.socket), [{ away: true }], "it had not got through");
});

test("what is being said is newer than what was", async (t) => {
  const it = await present(t);
  await it.room.updatePresence({ n: 1 });
  await it.server.socket.drop();
  const pending = it.room.updatePresence({ n: 2 });
  it.server.welcome = { ...it.server.welcome, client: "c7" };
  await it.clock.advance(1);
  await pending;
  assert.deepEqual(said(it.server.socket), [{ n: 2 }]);
});

test("refused for now, it is said again until it is taken; refused for good, it is not", async (t) => {
  const it = await present(t);
  await it.room.updatePresence({ away: true });
  it.server.on("subscribe", { presence: { v: 1, members: [member("c7", "ann")] } });
  const busy = (after) => new Refuse(100, "busy", { temporary: true, retry_after: after });
  it.server.on("presence_update", busy(20), busy(), {});
  await comeBack(it, { client: "c7" });
  await it.clock.advance(10);
  assert.equal(said(it.server.socket).length, 1);
  await it.clock.advance(10);
  assert.deepEqual(said(it.server.socket), Array(3).fill({ away: true }));
  it.server.on("presence_update", new Refuse(103));
  await comeBack(it);
  await it.clock.advance(20);
  assert.equal(said(it.server.socket).length, 1);
});

test("it can be said in a room without asking who is there", async (t) => {
  const it = await inRoom(t, {});
  await it.room.updatePresence({ n: 1 });
  await comeBack(it, { client: "c7" });
  assert.deepEqual(said(it.server.socket), [{ n: 1 }]);
});

// -- typing -----------------------------------------------------------------------------------------------------

async function typing(t, result = {}, options = {}) {
  const it = await inRoom(t, { typing: 5, ...result }, options);
  const told = [];
  it.room.on("typing", (users) => told.push(users.join(" ")));
  const signals = [];
  it.room.on("signal", ({ event }) => signals.push(event));
  const hear = (client, data = true, user = client) => it.push({ signal: { event: "typing", data, user, client } });
  const got = () => it.server.socket.got("signal").map(({ event, data }) => `${event} ${data}`);
  return { ...it, told, signals, hear, got };
}

test("who types is told, and is no signal", async (t) => {
  const { room, told, hear, signals } = await typing(t);
  hear("c2", true, "bob");
  hear("c3", true, "cyd");
  hear("c2", true, "bob");
  hear("c2", false, "bob");
  assert.deepEqual(told, ["bob", "bob cyd", "cyd"]);
  assert.deepEqual(room.typists, ["cyd"]);
  assert.deepEqual(signals, []);
});

test("a user with two clients types until both have stopped", async (t) => {
  const { told, hear } = await typing(t);
  hear("c2", true, "bob");
  hear("c3", true, "bob");
  hear("c2", false, "bob");
  assert.deepEqual(told, ["bob"]);
  hear("c3", false, "bob");
  assert.deepEqual(told, ["bob", ""]);
});

test("who says nothing more has stopped: to the second, and each for itself", async (t) => {
  const { clock, told, hear } = await typing(t);
  hear("c2");
  await clock.advance(3);
  hear("c3");
  await clock.advance(1.9);
  assert.deepEqual(told, ["c2", "c2 c3"]);
  await clock.advance(0.2);
  assert.deepEqual(told, ["c2", "c2 c3", "c3"]);
  hear("c3");
  await clock.advance(4.9);
  assert.equal(told.length, 3);
  await clock.advance(0.1);
  assert.equal(told.at(-1), "");
});

test("a message ends the typing of the client that sent it, and of no other", async (t) => {
  const { told, hear, server } = await typing(t);
  hear("c2", true, "bob");
  hear("c3", true, "bob");
  hear("c4", true, "dan");
  server.socket.pub(CHANNEL, 0, "hi", { info: { user: "bob", client: "c2" } });
  assert.deepEqual(told, ["bob", "bob dan"]);
  server.socket.pub(CHANNEL, 0, "hi", { info: { user: "bob", client: "c3" } });
  assert.equal(told.at(-1), "dan");
});

test("what this client said itself is no news to it, nor what it said under a former name", async (t) => {
  const it = await typing(t);
  await comeBack(it, { client: "c7" });
  for (const client of ["c1", "c7"]) it.hear(client, true, "ann");
  assert.deepEqual([it.told, it.room.typists], [[], []]);
});

test("without a connection nobody types", async (t) => {
  const it = await typing(t);
  it.hear("c2");
  await it.server.socket.drop();
  assert.deepEqual(it.told, ["c2", ""]);
  assert.deepEqual(it.room.typists, []);
});

test("a page that slept shows nobody who typed before: not even before its timer comes", async (t) => {
  const it = await typing(t);
  it.hear("c2");
  await it.clock.sleep(60);
  assert.deepEqual(it.room.typists, []);
  await it.page.show();
  assert.deepEqual(it.told, ["c2", ""]);
});

test("what arrives after a sleep sees to what is over", async (t) => {
  const it = await typing(t);
  it.hear("c2");
  await it.clock.sleep(60);
  it.hear("c3");
  assert.deepEqual(it.told, ["c2", "c3"]);
});

test("who leaves the room does not type there", async (t) => {
  const it = await typing(t, { presence: { v: 1, members: [member("c2", "bob")] } }, { join: { presence: true } });
  it.hear("c2", true, "bob");
  it.push({ presence: { v: 2, leaves: [member("c2", "bob")] } });
  assert.deepEqual(it.told, ["bob", ""]);
});

test("in a room without typing it is a signal like any other", async (t) => {
  const it = await typing(t, { typing: undefined });
  it.hear("c2");
  it.room.typing();
  await settle();
  assert.deepEqual([it.told, it.signals, it.got()], [[], ["typing"], []]);
});

test("keys are said once, again while they go on, and their end", async (t) => {
  const { room, clock, got } = await typing(t);
  for (let n = 0; n < 40; n++) {
    room.typing();
    await clock.advance(0.1);
  }
  assert.deepEqual(got(), ["typing true", "typing true"], "in 4 s");
  await clock.advance(1.05);
  assert.equal(got().length, 3, "somebody who was told 2.5 s ago would give up before we do");
  await clock.advance(3.8);
  assert.deepEqual(got(), ["typing true", "typing true", "typing true"]);
  await clock.advance(0.1);
  assert.equal(got().at(-1), "typing false");
  await clock.advance(30);
  assert.equal(got().length, 4);
  room.typing();
  await settle();
  assert.equal(got().length, 5);
});

test("one key is said once, and ended", async (t) => {
  const { room, clock, got } = await typing(t);
  room.typing();
  await clock.advance(4.9);
  assert.deepEqual(got(), ["typing true"]);
  await clock.advance(0.1);
  assert.deepEqual(got(), ["typing true", "typing false"]);
});

test("given up, it is over at once; and said once only", async (t) => {
  const { room, clock, got } = await typing(t);
  room.typing(false);
  room.typing();
  await settle();
  room.typing(false);
  room.typing(false);
  await clock.advance(30);
  assert.deepEqual(got(), ["typing true", "typing false"]);
});

test("a message that is sent ends it: the server says so to the others", async (t) => {
  const { room, clock, got } = await typing(t);
  room.typing();
  await settle();
  await room.send("Say", { text: "hi" });
  await clock.advance(30);
  assert.deepEqual(got(), ["typing true"]);
  room.typing();
  await settle();
  assert.equal(got().length, 2, "the next one begins at once");
});

test("who types while the connection is lost is seen typing soon after; but not much later", async (t) => {
  const it = await typing(t);
  it.room.typing();
  await it.clock.advance(0.1);
  await it.server.socket.drop();
  await it.clock.advance(1);
  assert.deepEqual(it.got(), ["typing true"]);
  await it.server.socket.drop();
  it.server.refuses = true;
  await it.clock.advance(8);
  it.server.refuses = false;
  await it.clock.advance(20);
  assert.equal(it.rt.state, "connected");
  assert.deepEqual(it.got(), []);
});

test("while not in the room nothing is said, and nothing is remembered", async (t) => {
  const it = await typing(t);
  await it.server.socket.drop();
  it.room.typing();
  await it.clock.advance(1);
  assert.equal(it.room.state, "joined");
  assert.deepEqual(it.got(), []);
});

test("typing that was given up while not in the room is not told when it is back", async (t) => {
  const it = await typing(t);
  it.room.typing();
  await settle();
  await it.server.socket.drop();
  it.room.typing(false);
  await it.clock.advance(2);
  assert.equal(it.server.sockets.length, 2);
  assert.deepEqual(it.got(), []);
});

test("with the room who types there is gone", async (t) => {
  const { clock, told, hear, push, room } = await typing(t);
  hear("c2", true, "bob");
  push({ unsubscribe: { code: 2000, reason: "enough" } });
  await clock.advance(20);
  assert.deepEqual(told, ["bob", ""]);
  assert.deepEqual(room.typists, []);
});

test("a listener may close the client because nobody types any more", async (t) => {
  const { rt, server, clock, room, hear } = await typing(t);
  room.on("typing", (users) => users.length || rt.close());
  hear("c2", true, "bob");
  await server.socket.drop();
  await clock.advance(60);
  assert.equal(rt.state, "closed");
  assert.equal(server.sockets.length, 1);
});

test("who has left types no more, and whoever calls that harms nothing", async (t) => {
  const { rt, room, clock, got, server } = await typing(t);
  room.typing();
  await settle();
  await room.leave();
  room.typing();
  room.markRead();
  await clock.advance(10);
  assert.deepEqual(got(), ["typing true"]);
  rt.close();
  room.typing();
  assert.equal(server.sockets.length, 1);
});

// -- signals ----------------------------------------------------------------------------------------------------

test("a signal says which client it is from", async (t) => {
  const { room, push } = await inRoom(t);
  const heard = [];
  room.on("signal", (signal) => heard.push(signal));
  push({ signal: { event: "cursor", data: [1, 2], user: "bob", client: "c2" } });
  push({ signal: { event: "cursor" } });
  assert.deepEqual(heard, [
    { event: "cursor", data: [1, 2], sender: "bob", client: "c2" },
    { event: "cursor", data: null, sender: null, client: null },
  ]);
});

test("signals keep to the rate that the room told; of each event the newest wins", async (t) => {
  const { room, clock, server } = await inRoom(t, { signals: 10 });
  const point = { x: 0 };
  for (point.x = 1; point.x <= 20; point.x++) {
    assert.equal(room.signal("cursor", point), true);
    if (point.x === 7) room.signal("wave");
    await clock.advance(0.03);
  }
  await clock.advance(1);
  const got = server.socket.got("signal");
  assert.deepEqual(
    got.filter(({ event }) => event === "cursor").map(({ data }) => data.x),
    [1, 4, 7, 11, 14, 17, 20],
  );
  assert.equal(got.filter(({ event }) => event === "wave").length, 1);
});

test("in a room that told no rate each goes at once", async (t) => {
  const { room, server } = await inRoom(t);
  for (let n = 0; n < 5; n++) {
    room.signal("cursor", n);
    await settle();
  }
  assert.equal(server.socket.got("signal").length, 5);
});

test("a signal that waits is lost with the connection", async (t) => {
  const it = await inRoom(t, { signals: 1 });
  it.room.signal("cursor", 1);
  it.room.signal("cursor", 2);
  await settle();
  await it.server.socket.drop();
  assert.equal(it.room.signal("cursor", 3), false);
  await it.clock.advance(10);
  assert.deepEqual(it.server.socket.got("signal"), []);
});

// -- receipts ---------------------------------------------------------------------------------------------------

const marks = (delivered = {}, read = {}, more = {}) => ({ epoch: "e", delivered, read, ...more });
const whole = (delivered, read, more = {}) => marks(delivered, read, { whole: true, ...more });

async function receipts(t, { offset = 5, told = whole({ ann: 5, bob: 3 }, { ann: 4 }), ...options } = {}) {
  const it = await client(t, options);
  it.server.on("subscribe", joined("e", offset, { marks: told }));
  const room = it.rt.join(CHANNEL, { receipts: true });
  const items = recorded(room);
  await settle();
  assert.equal(room.state, "joined");
  let count = 0;
  room.on("marks", () => (count += 1));
  const push = (body) => it.server.socket.push({ channel: CHANNEL, ...body });
  const got = () => it.server.socket.got("mark").map(({ kind, epoch, offset }) => `${kind} ${epoch} ${offset}`);
  return { ...it, room, items, push, got, told: () => count };
}

test("asks for marks, and has them when it is joined", async (t) => {
  const { room, server } = await receipts(t);
  assert.deepEqual(server.socket.got("subscribe"), [{ channel: CHANNEL, marks: true }]);
  assert.deepEqual(
    [...room.marks],
    [
      ["ann", { delivered: 5, read: 4 }],
      ["bob", { delivered: 3, read: null }],
    ],
  );
});

test("marks that have changed are put to what is known; those that go back are not", async (t) => {
  const { room, push, told } = await receipts(t);
  push({ marks: marks({ bob: 5, cyd: 1 }, { bob: 4 }) });
  push({ marks: marks({ bob: 2 }) });
  assert.deepEqual(
    [...room.marks],
    [
      ["ann", { delivered: 5, read: 4 }],
      ["bob", { delivered: 5, read: 4 }],
      ["cyd", { delivered: 1, read: null }],
    ],
  );
  assert.equal(told(), 2);
});

test("all of them replace what was known; those of another epoch do not mix", async (t) => {
  const { room, push, told } = await receipts(t);
  push({ marks: { epoch: "other", read: { bob: 9 } } });
  assert.equal(told(), 0);
  push({ gap: { from: 0, to: 1, epoch: "f", reason: "epoch" } });
  push({ marks: { epoch: "f", read: { bob: 1 }, whole: true } });
  assert.deepEqual([...room.marks], [["bob", { delivered: 1, read: 1 }]]);
  assert.deepEqual(room.reached({ epoch: "e", offset: 1 }), []);
  assert.deepEqual(room.reached({ epoch: "f", offset: 1 }), ["bob"]);
});

test("who is as far as a message", async (t) => {
  const { room, push } = await receipts(t);
  const seen = [];
  room.on("message", (message) => seen.push(message));
  push({ pub: pub(6) });
  push({ marks: marks({ bob: 6, cyd: 6 }, { cyd: 6 }) });
  assert.deepEqual(room.reached(seen[0]), ["cyd"]);
  assert.deepEqual(room.reached(seen[0], "delivered"), ["bob", "cyd"]);
  assert.deepEqual(room.reached({ epoch: "e", offset: 4 }), ["ann", "cyd"]);
  assert.throws(() => room.reached({ offset: "4" }), UsageError);
});

test("delivered is said by itself: once a second, and the last one too", async (t) => {
  const { clock, push, got } = await receipts(t, { told: whole({}, {}) });
  assert.deepEqual(got(), ["delivered e 5"]);
  for (let n = 6; n <= 20; n++) {
    push({ pub: pub(n) });
    await clock.advance(0.1);
  }
  assert.deepEqual(got(), ["delivered e 5", "delivered e 15"]);
  await clock.advance(1);
  assert.deepEqual(got(), ["delivered e 5", "delivered e 15", "delivered e 20"]);
  await clock.advance(20);
  assert.equal(got().length, 3);
});

test("delivered is what was handed out, not what waits", async (t) => {
  const it = await client(t);
  it.server.on("subscribe", joined("e", 5, { marks: whole({}, {}) }));
  const room = it.rt.join(CHANNEL, { receipts: true });
  await settle();
  it.server.socket.pub(CHANNEL, 6);
  await it.clock.advance(5);
  const got = () => it.server.socket.got("mark").map(({ offset }) => offset);
  assert.deepEqual(got(), [5]);
  for await (const message of room) {
    assert.equal(message.data, 6);
    break;
  }
  await it.clock.advance(1);
  assert.deepEqual(got(), [5, 6]);
});

test("read is said at once, then once a second; and says delivered too", async (t) => {
  const { clock, room, push, got } = await receipts(t, { told: whole({}, {}) });
  await clock.advance(2);
  room.on("message", (message) => room.markRead(message));
  for (let n = 6; n <= 20; n++) {
    push({ pub: pub(n) });
    await clock.advance(0.1);
  }
  await clock.advance(2);
  assert.deepEqual(got(), ["delivered e 5", "read e 6", "read e 15", "read e 20"]);
});

test("what was read is not read any less", async (t) => {
  const { clock, room, got } = await receipts(t, { told: whole({ ann: 5 }, { ann: 4 }, { user: "ann" }) });
  room.markRead();
  room.markRead({ epoch: "e", offset: 2 });
  await clock.advance(5);
  assert.deepEqual(got(), ["read e 5"]);
  assert.equal(room.unread, 0);
  assert.throws(() => room.markRead({ offset: -1 }), UsageError);
});

test("unread is what is behind the own mark, also while it is on its way", async (t) => {
  const { room, push, told } = await receipts(t, { offset: 5, told: whole({}, { ann: 2 }) });
  assert.equal(room.unread, 5, "it is not known yet who we are");
  push({ pub: pub(6, "x", { info: { user: "ann", client: "c1" } }) });
  assert.equal(room.unread, 4);
  room.markRead({ epoch: "e", offset: 4 });
  assert.equal(room.unread, 2);
  assert.equal(told(), 1);
  push({ pub: pub(7) });
  assert.equal(room.unread, 3);
});

test("what was read in another tab is not unread here, and is not said again", async (t) => {
  const { clock, room, push, got } = await receipts(t, { told: whole({ ann: 5 }, { ann: 2 }, { user: "ann" }) });
  assert.equal(room.unread, 3);
  push({ marks: marks({}, { ann: 5 }) });
  assert.equal(room.unread, 0);
  room.markRead();
  await clock.advance(5);
  assert.deepEqual(got(), []);
});

test("presence tells who we are", async (t) => {
  const it = await client(t);
  const presence = { v: 1, members: [member("c1", "ann"), member("c2", "bob")] };
  it.server.on("subscribe", joined("e", 5, { presence, marks: whole({ ann: 5, bob: 5 }, { ann: 4 }) }));
  const room = it.rt.join(CHANNEL, { presence: true, receipts: true });
  await settle();
  assert.equal(room.unread, 1);
});

test("after each join what the server does not know is said again", async (t) => {
  const it = await receipts(t, { told: whole({ ann: 5 }, { ann: 2 }, { user: "ann" }) });
  it.room.markRead();
  await settle();
  assert.deepEqual(it.got(), ["read e 5"]);
  const recovered = { recovered: true, was_recovering: true };
  it.server.on("subscribe", joined("e", 5, { ...recovered, marks: whole({ ann: 5 }, { ann: 2 }, { user: "ann" }) }));
  await comeBack(it);
  assert.deepEqual(it.got(), ["read e 5"], "it was lost");
  it.server.on("subscribe", joined("e", 5, { ...recovered, marks: whole({ ann: 5 }, { ann: 5 }, { user: "ann" }) }));
  await comeBack(it);
  await it.clock.advance(5);
  assert.deepEqual(it.got(), [], "it was not");
});

test("what is marked without a connection is said with the next", async (t) => {
  const it = await receipts(t);
  await it.server.socket.drop();
  it.room.markRead();
  assert.equal(it.room.unread, 0);
  it.server.on("subscribe", joined("e", 5, { recovered: true, was_recovering: true, marks: whole({}, {}) }));
  await it.clock.advance(2);
  assert.deepEqual(it.got(), ["read e 5"]);
});

test("an epoch that goes on takes the marks along", async (t) => {
  const { clock, room, push, got } = await receipts(t, { told: whole({ ann: 5 }, { ann: 5 }, { user: "ann" }) });
  push({ position: { epoch: "f", offset: 5 } });
  push({ marks: { epoch: "f", delivered: { ann: 5 }, read: { ann: 5 }, whole: true, user: "ann" } });
  await clock.advance(3);
  assert.equal(room.unread, 0);
  const before = got().length;
  push({ pub: pub(6) });
  await clock.advance(1);
  assert.equal(room.unread, 1);
  assert.deepEqual(got().slice(before), ["delivered f 6"]);
  assert.deepEqual(room.reached({ epoch: "e", offset: 5 }), ["ann"], "what was handed out before still counts");
  assert.deepEqual(room.reached({ epoch: "e", offset: 6 }), [], "that was lost");
  room.markRead({ epoch: "e", offset: 4 });
  room.markRead({ epoch: "e", offset: 9 });
  await clock.advance(3);
  assert.equal(got().length, before + 1);
});

test("an epoch that goes on while the connection is gone takes them along, too", async (t) => {
  const it = await receipts(t, { told: whole({ ann: 5 }, { ann: 5 }, { user: "ann" }) });
  const told = { epoch: "f", delivered: { ann: 5, bob: 5 }, read: { ann: 5, bob: 4 }, whole: true, user: "ann" };
  it.server.on("subscribe", joined("f", 7, { recovered: true, publications: [pub(6), pub(7)], marks: told }));
  await comeBack(it);
  assert.deepEqual(it.room.reached({ epoch: "e", offset: 4 }), ["ann", "bob"]);
  assert.equal(it.room.unread, 2);
  assert.deepEqual(it.got(), ["delivered f 7"]);
});

test("an epoch that begins anew begins with nothing read", async (t) => {
  const { clock, room, push, got } = await receipts(t, { told: whole({ ann: 5 }, { ann: 5 }, { user: "ann" }) });
  room.markRead();
  push({ gap: { from: 0, to: 0, epoch: "f", reason: "epoch" } });
  push({ marks: { epoch: "f", whole: true } });
  push({ pub: pub(1) });
  await clock.advance(3);
  assert.equal(room.unread, 1);
  room.markRead({ epoch: "e", offset: 5 });
  await clock.advance(3);
  assert.equal(room.unread, 1);
  room.markRead();
  await clock.advance(3);
  assert.equal(room.unread, 0);
  assert.ok(!got().some((mark) => mark.startsWith("read e")), got().join());
});

test("leaving, closing and hiding say what waits to be said", async (t) => {
  for (const go of [
    ({ room }) => room.leave(),
    ({ rt }) => rt.close(),
    ({ page }) => page.dispatchEvent(Object.assign(new Event("pagehide"), { persisted: false })),
    ({ page }) => page.dispatchEvent(Object.assign(new Event("pagehide"), { persisted: true })),
  ]) {
    const it = await receipts(t, { told: whole({}, {}) });
    const socket = it.server.socket;
    it.room.markRead({ epoch: "e", offset: 4 });
    await settle();
    it.push({ pub: pub(6) });
    it.room.markRead();
    await settle();
    assert.ok(!it.got().includes("read e 6"));
    go(it);
    await settle();
    const last = socket.commands.findIndex((each) => each.mark?.kind === "read" && each.mark.offset === 6);
    const bye = socket.commands.findIndex((each) => each.bye || each.unsubscribe);
    assert.ok(last > 0 && (bye < 0 || last < bye), String(go));
  }
});

test("from the back-forward cache it comes back with what was read meanwhile in nothing", async (t) => {
  const it = await receipts(t, { told: whole({ ann: 5 }, { ann: 2 }, { user: "ann" }) });
  it.page.dispatchEvent(Object.assign(new Event("pagehide"), { persisted: true }));
  await it.clock.sleep(3600);
  const told = whole({ ann: 7 }, { ann: 7 }, { user: "ann" });
  const publications = [pub(6), pub(7)];
  it.server.on("subscribe", joined("e", 7, { recovered: true, was_recovering: true, publications, marks: told }));
  it.page.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  await it.clock.advance(2);
  assert.equal(it.room.unread, 0);
  assert.deepEqual(it.items, ["6", "7"]);
  assert.deepEqual(it.got(), []);
});

// Pages of marks.

const asked = (socket) => socket.got("marks").map(({ after }) => after);

test("the rest is asked for, page by page; whoever is listed out of turn does not hide others", async (t) => {
  const pages = {
    bob: marks({ cyd: 3, dan: 3, eve: 3 }, {}, { more: true }),
    dan: marks({ eve: 3, fay: 3, zoe: 5 }, {}, { more: true }),
    fay: marks({ gus: 1, zoe: 5 }, {}),
  };
  const it = await client(t);
  it.server.on("marks", ({ after }) => pages[after]);
  const told = whole({ ann: 1, bob: 2, zoe: 5 }, {}, { more: true, user: "zoe" });
  it.server.on("subscribe", joined("e", 5, { marks: told }));
  const room = it.rt.join(CHANNEL, { receipts: true });
  await it.clock.advance(1);
  assert.deepEqual(asked(it.server.socket), ["bob", "dan", "fay"]);
  assert.deepEqual([...room.marks.keys()].sort(), ["ann", "bob", "cyd", "dan", "eve", "fay", "gus", "zoe"]);
});

test("names are in the server's order, not in UTF-16's", async (t) => {
  const it = await client(t);
  it.server.on("marks", marks({}, {}));
  const told = whole({ "\u{1f600}": 1, "\uff21": 2, 10: 3, 9: 3 }, {}, { more: true });
  it.server.on("subscribe", joined("e", 5, { marks: told }));
  it.rt.join(CHANNEL, { receipts: true });
  await it.clock.advance(1);
  assert.deepEqual(asked(it.server.socket), ["\uff21"]);
});

test("a page that fails for now is asked for again, one of what was replaced is not", async (t) => {
  const it = await receipts(t, { told: whole({ ann: 1, bob: 2 }, {}, { more: true }) });
  it.server.on("marks", new Refuse(100, "later", { temporary: true, retry_after: 3 }));
  it.push({ marks: whole({ ann: 1, bob: 2 }, {}, { more: true }) });
  await it.clock.advance(2.9);
  const before = asked(it.server.socket).length;
  it.server.on("marks", marks({ cyd: 3 }, {}));
  await it.clock.advance(0.2);
  assert.equal(asked(it.server.socket).length, before + 1);
  assert.ok(it.room.marks.has("cyd"));
  it.server.on("marks", () => {
    it.push({ marks: whole({ eve: 1 }, {}) });
    return marks({ old: 1 }, {});
  });
  it.push({ marks: whole({ ann: 1, bob: 2 }, {}, { more: true }) });
  await it.clock.advance(10);
  assert.deepEqual([...it.room.marks.keys()], ["eve"]);
});

test("of more users than anybody would show no marks are kept, but of oneself", async (t) => {
  const users = Object.fromEntries(Array.from({ length: 10_050 }, (_, n) => [`u${n}`, 1]));
  const it = await receipts(t, { told: whole({ ...users, zoe: 5 }, {}, { user: "zoe", more: true }) });
  assert.equal(it.room.marks.size, 10_001);
  assert.ok(it.room.marks.has("zoe"));
  assert.deepEqual(asked(it.server.socket), []);
});

test("a page that never ends is not asked for for ever", async (t) => {
  const it = await receipts(t);
  it.server.on("marks", marks({ ann: 1, bob: 1 }, {}, { more: true }));
  it.push({ marks: whole({ ann: 1, bob: 2 }, {}, { more: true }) });
  await it.clock.advance(10);
  assert.ok(asked(it.server.socket).length <= 2);
});

test("many rooms mark no faster than the server allows", async (t) => {
  const it = await client(t, { connected: false });
  it.server.welcome.rt.limits = { rate: 10, burst: 10 };
  it.server.on("subscribe", ({ channel }) => joined("e", 5, { marks: whole({}, {}), data: channel }));
  const rooms = Array.from({ length: 100 }, (_, n) => it.rt.join(`chat:${n}`, { receipts: true }));
  for (const room of rooms) room.on("message", () => {});
  await it.clock.advance(30);
  const { socket } = it.server;
  assert.ok(socket.commands.length <= 310, `${socket.commands.length}`);
  assert.equal(new Set(socket.got("mark").map(({ channel }) => channel)).size, 100);
});

test("a mark whose turn has come is not sent twice when the queue is full", async (t) => {
  const it = await receipts(t, { told: whole({}, {}) });
  await it.clock.advance(10);
  assert.deepEqual(it.got(), ["delivered e 5"]);
});
