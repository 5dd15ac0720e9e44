// Going on with a session after a loss (C3, C4), and saying goodbye.

import assert from "node:assert/strict";
import { test } from "node:test";
import { client, joined, settle } from "./harness.mjs";

const TRANSPORTS = ["websocket", "sse", "poll"];

/** A server that hands out a token with each connect. */
async function resuming(t, transport) {
  const it = await client(t, { transports: [transport], connected: false });
  let n = 0;
  it.server.answers.set("connect", [
    (_, socket) => ({ ...it.server.welcomeOf(socket), rt: { v: 1, resume: `token-${++n}`, grace: 20 } }),
  ]);
  await it.rt.connected();
  return it;
}

const shown = (server) => server.sockets.flatMap((socket) => socket.got("connect").map(({ rt }) => rt.resume));

const lose = async ({ server, clock }) => {
  await server.socket.drop();
  await clock.advance(server.socket.kind === "poll" ? 40 : 4);
};

for (const transport of TRANSPORTS) {
  test(`${transport}: the newest token is shown when it comes back`, async (t) => {
    const it = await resuming(t, transport);
    await lose(it);
    await lose(it);
    assert.deepEqual(shown(it.server), [undefined, "token-1", "token-2"]);
  });

  test(`${transport}: replaced by another tab: the token is dropped, and it connects anew`, async (t) => {
    const it = await resuming(t, transport);
    it.server.rules.poll = [410, undefined];
    it.server.socket.push({ disconnect: { code: 4000, reason: "replaced by a newer connection" } });
    if (transport !== "poll") await it.server.socket.drop(4000);
    await it.clock.advance(3);
    assert.equal(it.rt.state, "connected");
    assert.deepEqual(shown(it.server), [undefined, undefined]);
  });

  test(`${transport}: rooms are joined again with their positions, resumed or not`, async (t) => {
    const it = await resuming(t, transport);
    it.server.on("subscribe", joined("e", 7), joined("e", 7, { recovered: true }));
    const room = it.rt.join("chat:lobby");
    await room.joined();
    await lose(it);
    const [again] = it.server.socket.got("subscribe");
    assert.deepEqual([again.recover, again.epoch, again.offset], [true, "e", 7]);
  });

  test(`${transport}: the page goes for good: goodbye, at once, and the token is dropped`, async (t) => {
    const it = await resuming(t, transport);
    const [socket] = it.server.sockets;
    it.page.dispatchEvent(Object.assign(new Event("pagehide"), { persisted: false }));
    await settle();
    if (transport === "websocket") {
      assert.equal(socket.frames.at(-1), '{"bye":{}}');
      assert.equal(socket.closedBy.code, 1000);
    } else assert.equal(socket.ended, "goodbye");
    assert.equal(it.rt.state, "waiting");
    it.page.say("pageshow"); // it did not, after all
    await settle();
    assert.deepEqual(shown(it.server), [undefined, undefined]);
  });

  test(`${transport}: the page may come back: no goodbye, and it goes on with its session`, async (t) => {
    const it = await resuming(t, transport);
    const [socket] = it.server.sockets;
    it.page.dispatchEvent(Object.assign(new Event("pagehide"), { persisted: true }));
    await settle();
    assert.equal(it.server.asked("send", "DELETE").length, 0);
    if (transport === "websocket") assert.notEqual(socket.closedBy.code, 1000);
    it.page.say("pageshow");
    await settle();
    assert.deepEqual(shown(it.server), [undefined, "token-1"]);
  });
}

test("a token goes from one transport to another", async (t) => {
  const it = await client(t, { transports: ["websocket", "sse"] });
  it.server.welcome.rt.resume = "token";
  await lose(it);
  it.server.refuses = true;
  await lose(it);
  assert.equal(it.rt.transport, "sse");
  assert.equal(shown(it.server).at(-1), "token");
});

test("a server that gives no token is not shown an old one", async (t) => {
  const it = await client(t);
  it.server.welcome.rt.resume = "token";
  await lose(it);
  delete it.server.welcome.rt.resume;
  await lose(it);
  await lose(it);
  assert.deepEqual(shown(it.server), [undefined, undefined, "token", undefined]);
});
