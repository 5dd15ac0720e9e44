import assert from "node:assert/strict";
import { test } from "node:test";
import { Gap, Message, Unsubscribed, UsageError } from "../../../src/rtkit/browser/client.js";
import { client, fate, joined, pub, recorded, settle, word } from "./harness.mjs";

const CHANNEL = "chat:lobby";

/** A room of a server that has `history.length` messages, numbered from 1; joined at the beginning. */
async function withHistory(t, join = {}, length = 0) {
  const it = await client(t);
  it.stream = Array.from({ length }, (_, n) => n + 1);
  it.server.on("subscribe", ({ recover, offset = 0 }) => {
    const missed = it.stream.slice(recover ? offset : it.stream.length).map((n) => pub(n));
    return joined("e", it.stream.length, { recovered: recover, was_recovering: recover, publications: missed });
  });
  it.publish = (n = 1) => {
    for (; n > 0; n--) {
      it.stream.push(it.stream.length + 1);
      it.server.socket.pub(CHANNEL, it.stream.length);
    }
  };
  it.room = it.rt.join(CHANNEL, join);
  await it.room.joined();
  return it;
}

const asked = (server) => server.sockets.flatMap((socket) => socket.got("subscribe")).length;

test("iterating hands out every message and gap, and ends when the room is left", async (t) => {
  const { room, server } = await withHistory(t);
  const items = [];
  const loop = (async () => {
    for await (const item of room) {
      assert.ok(item instanceof Message || item instanceof Gap);
      items.push(word(item));
      if (item instanceof Gap) room.leave();
    }
  })();
  await settle();
  server.socket.pub(CHANNEL, 1);
  server.socket.pub(CHANNEL, 2);
  server.socket.push({ channel: CHANNEL, gap: { from: 2, to: 5, epoch: "e", reason: "trimmed" } });
  await loop;
  assert.deepEqual(items, ["1", "2", "gap 2-5 trimmed e"]);
});

test("iterating ends with the reason when the server takes us out, after what was queued", async (t) => {
  const { room, server, publish } = await withHistory(t);
  publish(2);
  server.socket.push({ channel: CHANNEL, unsubscribe: { code: 2000, reason: "enough" } });
  const items = [];
  await assert.rejects(async () => {
    for await (const { data } of room) items.push(data);
  }, Unsubscribed);
  assert.deepEqual(items, [1, 2]);
});

test("what comes before anybody listens waits, and the position does not run ahead", async (t) => {
  const { room, publish } = await withHistory(t);
  publish(3);
  assert.deepEqual(room.position, { epoch: "e", offset: 0 });
  const items = recorded(room);
  publish();
  await settle();
  assert.deepEqual(items, ["1", "2", "3", "4"]);
  assert.deepEqual(room.position, { epoch: "e", offset: 4 });
});

test("what comes while nobody listens any more waits for the next listener", async (t) => {
  const { room, publish } = await withHistory(t);
  const off = room.on("message", () => {});
  publish(2);
  off();
  publish(2);
  assert.deepEqual(room.position, { epoch: "e", offset: 2 });
  const items = recorded(room);
  await settle();
  assert.deepEqual(items, ["3", "4"]);
});

test("all listeners put on in one task get what waited", async (t) => {
  const { room, publish } = await withHistory(t);
  publish(2);
  const both = [recorded(room), recorded(room)];
  await settle();
  assert.deepEqual(both, [
    ["1", "2"],
    ["1", "2"],
  ]);
});

test("listeners for other things do not take messages", async (t) => {
  const { room, publish } = await withHistory(t);
  for (const name of ["gap", "signal", "joined", "left"]) room.on(name, () => {});
  publish(2);
  await settle();
  const items = recorded(room);
  await settle();
  assert.deepEqual(items, ["1", "2"]);
});

test("several iterations share; stopping one loses nothing", async (t) => {
  const { room, publish } = await withHistory(t);
  publish(3);
  for await (const { data } of room) {
    assert.equal(data, 1);
    break;
  }
  const items = recorded(room); // nobody iterates any more
  await settle();
  assert.deepEqual(items, ["2", "3"]);
});

test("next() that waits gets the next item, in order; return() lets it go", async (t) => {
  const { room, publish } = await withHistory(t);
  const iterator = room[Symbol.asyncIterator]();
  const first = iterator.next();
  const second = iterator.next();
  publish(2);
  assert.equal((await first).value.data, 1);
  assert.equal((await second).value.data, 2);
  const third = iterator.next();
  assert.deepEqual(await iterator.return(), { done: true, value: undefined });
  assert.equal((await third).done, true);
  assert.equal((await iterator.next()).done, true);
});

test("listening and iterating exclude each other", async (t) => {
  const { room } = await withHistory(t);
  const off = room.on("Said", () => {});
  assert.throws(() => room[Symbol.asyncIterator](), UsageError);
  off();
  const iterator = room[Symbol.asyncIterator]();
  assert.throws(() => room.on("message", () => {}), UsageError);
  room.on("gap", () => {});
  await iterator.return();
  room.on("message", () => {});
});

test("full, a room with history turns deaf, and recovers from there when half is drained", async (t) => {
  const { room, publish, server } = await withHistory(t, { maxQueue: 4 });
  publish(10);
  await settle();
  assert.equal(asked(server), 1);
  const items = [];
  const iterator = room[Symbol.asyncIterator]();
  const take = async () => {
    items.push((await iterator.next()).value.data);
    await settle();
  };
  await take();
  assert.equal(asked(server), 1);
  await take();
  assert.equal(asked(server), 2);
  publish(3);
  while (items.length < 13) await take();
  assert.deepEqual(items, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
  assert.ok((await fate(iterator.next())).pending);
});

test("deaf, it can still send", async (t) => {
  const { room, publish, server } = await withHistory(t, { maxQueue: 1 });
  publish(5);
  server.on("publish", { data: "done" });
  assert.equal(await room.send("Say"), "done");
});

test("deaf when the connection is lost, it comes back and loses nothing", async (t) => {
  const { room, publish, server, clock } = await withHistory(t, { maxQueue: 2 });
  publish(5);
  await server.socket.drop();
  await clock.advance(1);
  publish(2);
  const items = recorded(room);
  await settle();
  assert.deepEqual(items, ["1", "2", "3", "4", "5", "6", "7"]);
});

test("a gap that does not fit any more is told again", async (t) => {
  const { room, publish, server, stream } = await withHistory(t, { maxQueue: 2 });
  publish(2);
  server.socket.push({ channel: CHANNEL, gap: { from: 2, to: 9, epoch: "e", reason: "trimmed" } });
  stream.push(...[3, 4, 5, 6, 7, 8, 9]);
  server.on("subscribe", joined("e", 9, { gap: { from: 2, to: 9, epoch: "e", reason: "trimmed" } }));
  const items = recorded(room);
  await settle();
  assert.deepEqual(items, ["1", "2", "gap 2-9 trimmed e"]);
});

test("with listeners there is no queue to overflow", async (t) => {
  const { rt, server } = await client(t);
  server.on("subscribe", joined("e", 5, { publications: [1, 2, 3, 4, 5].map((n) => pub(n)) }));
  const items = recorded(rt.join(CHANNEL, { rewind: 5, maxQueue: 2 }));
  await settle();
  assert.deepEqual(items, ["1", "2", "3", "4", "5"]);
  assert.equal(asked(server), 1);
});

test("full, a room without history drops the oldest, and one gap says so in their place", async (t) => {
  const { rt, server } = await client(t);
  const room = rt.join("ticks", { maxQueue: 2 });
  await room.joined();
  for (const n of [1, 2, 3, 4, 5]) server.socket.pub("ticks", 0, n);
  const items = recorded(room);
  await settle();
  assert.deepEqual(items, ["gap 0-0 dropped ", "4", "5"]);
});

test("the position is behind what was taken, be it a message or a gap", async (t) => {
  const { room, publish, server } = await withHistory(t);
  publish(2);
  server.socket.push({ channel: CHANNEL, gap: { from: 2, to: 7, epoch: "e", reason: "trimmed" } });
  server.socket.pub(CHANNEL, 8);
  server.socket.pub(CHANNEL, 9);
  const places = [];
  for await (const item of room) {
    places.push([word(item), room.position.offset]);
    if (places.length === 5) break;
  }
  assert.deepEqual(places, [
    ["1", 1],
    ["2", 2],
    ["gap 2-7 trimmed e", 7],
    ["8", 8],
    ["9", 9],
  ]);
});

test("drained while the connection is being made anew: it simply joins with it", async (t) => {
  const { room, publish, server, clock } = await withHistory(t, { maxQueue: 2 });
  publish(5);
  await server.socket.drop();
  server.on("connect", () => undefined);
  server.opens = false;
  await clock.advance(1);
  const items = recorded(room);
  await settle();
  server.socket.open();
  await settle();
  assert.deepEqual(items, ["1", "2", "3", "4", "5"]);
  assert.deepEqual(
    server.socket.commands.map((command) => Object.keys(command)[1]),
    ["connect", "subscribe"],
  );
});
