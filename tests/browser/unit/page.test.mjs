// What the page lives through: no network, sleep, hidden tabs, the back-forward cache (K3).

import assert from "node:assert/strict";
import { test } from "node:test";
import { PublishUnknown } from "../../../src/rtkit/browser/client.js";
import { MUTE, client, joined, pub, recorded, settle, watch } from "./harness.mjs";

const CHANNEL = "chat:lobby";

test("online: connects at once, and delays begin anew", async (t) => {
  const { rt, server, clock, page, chance } = await client(t);
  chance.value = 1;
  server.opens = false;
  await server.socket.drop();
  for (let n = 0; n < 6; n++) {
    await clock.advance(20);
    if (rt.state === "connecting") await server.socket.drop();
  }
  assert.equal(rt.state, "waiting");
  await page.goOnline();
  assert.equal(rt.state, "connecting");
  server.opens = true;
  await server.socket.drop();
  await clock.advance(1.01);
  assert.equal(rt.state, "connected");
});

test("offline: attempts are rare, and are not counted", async (t) => {
  const { rt, server, clock, page, chance } = await client(t);
  chance.value = 1;
  await page.goOffline();
  server.opens = false;
  await server.socket.drop();
  assert.equal(rt.state, "waiting");
  await clock.advance(19.9);
  assert.equal(server.sockets.length, 1);
  for (let n = 0; n < 5; n++) {
    await clock.advance(20);
    if (rt.state === "connecting") await server.socket.drop();
  }
  assert.ok(server.sockets.length <= 6);
  page.navigator.onLine = true; // the event came while the page was asleep
  await clock.advance(20);
  await server.socket.drop();
  await clock.advance(1.01);
  assert.equal(rt.state, "connecting"); // the first delay, not the seventh
});

test("offline while it waits: it does not try for a while", async (t) => {
  const { server, clock, page } = await client(t);
  await server.socket.drop();
  await page.goOffline();
  await clock.advance(19);
  assert.equal(server.sockets.length, 1);
});

test("offline with a connection: it is checked, not dropped, since the word may be wrong", async (t) => {
  const { rt, server, clock, page } = await client(t);
  await clock.advance(2);
  await page.goOffline();
  assert.equal(server.socket.got("ping").length, 1);
  await clock.advance(20);
  assert.equal(rt.state, "connected"); // a server on this machine needs no network
  server.on("ping", MUTE);
  await page.goOffline();
  await clock.advance(5.1);
  assert.equal(rt.state, "waiting");
});

test("online with a connection: checked, and given up after five seconds without an answer", async (t) => {
  const { rt, server, clock, page } = await client(t);
  server.on("ping", MUTE);
  await clock.advance(2);
  await page.goOnline();
  await clock.advance(4.9);
  assert.equal(rt.state, "connected");
  await clock.advance(0.2);
  assert.equal(rt.state, "waiting");
});

test("visible again: checked; hidden: not; heard just now: no need", async (t) => {
  const { rt, server, clock, page } = await client(t);
  await clock.advance(5);
  await page.hide();
  assert.deepEqual(server.socket.got("ping"), []);
  await page.show();
  await page.show();
  assert.equal(server.socket.got("ping").length, 1);
  assert.equal(rt.state, "connected");
  await page.show();
  assert.equal(server.socket.got("ping").length, 1);
});

test("a check waits longer while a command is under way: the server answers in order", async (t) => {
  const { rt, server, clock, page } = await client(t);
  server.on("rpc", MUTE);
  server.on("ping", MUTE);
  rt.call("Slow").catch(() => {});
  await clock.advance(2);
  await page.show();
  await clock.advance(20);
  server.socket.say({});
  await clock.advance(20);
  assert.equal(server.sockets.length, 1);
  await clock.advance(20);
  assert.equal(server.sockets.length, 2);
});

// Sleep.

test("after sleep the connection is not trusted: asked, and replaced if it does not answer", async (t) => {
  for (const answers of [true, false]) {
    const { rt, server, clock } = await client(t);
    if (!answers) server.on("ping", MUTE);
    await clock.sleep(3600);
    await clock.advance(10); // the next timer shows it
    assert.equal(server.sockets[0].got("ping").length, 1);
    assert.equal(rt.state, "connected");
    await clock.advance(5.1);
    if (answers) assert.equal(server.sockets.length, 1);
    else assert.equal(rt.state, "waiting");
  }
});

test("a short sleep, or a loop that was blocked, is not mistaken for silence", async (t) => {
  const { rt, server, clock } = await client(t);
  await clock.stall(40);
  assert.equal(rt.state, "connected");
  assert.equal(server.socket.got("ping").length, 1);
  server.socket.say({});
  await clock.advance(30);
  assert.equal(rt.state, "connected");
});

test("a sleep between the server's pings is noticed as well", async (t) => {
  const { server, clock } = await client(t);
  await clock.stall(20);
  assert.deepEqual(server.socket.got("ping"), []); // none was due yet
  server.socket.say({});
  await clock.stall(30);
  assert.equal(server.socket.got("ping").length, 1);
});

test("asleep again while it asked: it asks again", async (t) => {
  const { rt, server, clock } = await client(t);
  server.on("ping", MUTE);
  await clock.stall(60);
  await clock.stall(600);
  assert.equal(rt.state, "connected");
  assert.equal(server.socket.got("ping").length, 2);
  await clock.stall(60); // a throttled timer, no sleep
  assert.equal(rt.state, "waiting");
});

test("a hidden page whose timers come once a minute keeps its connection, and its silence is its own", async (t) => {
  const { rt, server, clock, page } = await client(t);
  await page.hide();
  for (let second = 1; second <= 600; second++) {
    if (second % 60) clock.pass(1);
    else await clock.stall(1);
    if (second % 25 === 0) server.socket.say({});
  }
  assert.equal(rt.state, "connected");
  assert.deepEqual(server.socket.got("ping"), []);
});

test("a hidden page finds a dead connection all the same", async (t) => {
  const { rt, server, clock, page } = await client(t);
  await page.hide();
  server.on("ping", MUTE);
  await clock.stall(60);
  await clock.stall(60);
  assert.notEqual(rt.state, "connected");
});

test("what may have been taken before a sleep is not sent again after it", async (t) => {
  const { rt, server, clock } = await client(t);
  server.on("rpc", MUTE, { data: "again" });
  const call = watch(rt.call("Pay"));
  await settle();
  await clock.sleep(200);
  await server.socket.drop(); // the socket's end is noticed on waking
  await clock.advance(2);
  assert.ok(call.error instanceof PublishUnknown);
  assert.equal(server.sockets.flatMap((socket) => socket.got("rpc")).length, 1);
});

test("asleep while it waits, or while it connects: it goes on when it wakes", async (t) => {
  const { rt, server, clock } = await client(t);
  await server.socket.drop();
  await clock.sleep(3600);
  await clock.advance(1);
  assert.equal(rt.state, "connected");
  server.opens = false;
  await server.socket.drop();
  await clock.advance(2);
  assert.equal(rt.state, "connecting");
  await clock.sleep(3600);
  server.opens = true;
  await clock.advance(15);
  assert.equal(rt.state, "connected");
});

// The back-forward cache, and frozen pages.

for (const [gone, back, where] of [
  ["pagehide", "pageshow", (page) => page],
  ["freeze", "resume", (page) => page.document],
]) {
  const say = async (page, name) => {
    where(page).dispatchEvent(new Event(name));
    await settle();
  };

  test(`${gone} closes the connection and all timers; ${back} connects at once and recovers`, async (t) => {
    const { rt, server, clock, page } = await client(t);
    server.on("subscribe", joined("e", 1), joined("e", 2, { recovered: true, publications: [pub(2)] }));
    const items = recorded(rt.join(CHANNEL));
    await settle();
    await say(page, gone);
    assert.equal(rt.state, "waiting");
    assert.equal(server.socket.closedBy.code, 3000); // not 1000: we come back
    assert.deepEqual(server.socket.got("bye"), []);
    assert.equal(clock.timers, 0);
    await clock.advance(1000);
    assert.equal(server.sockets.length, 1);
    await say(page, back);
    assert.equal(rt.state, "connected");
    assert.deepEqual(items, ["2"]);
  });

  test(`${gone} while it waits, connects, or gets a token`, async (t) => {
    const waiting = await client(t);
    await waiting.server.socket.drop();
    await say(waiting.page, gone);
    await waiting.clock.advance(100);
    assert.equal(waiting.server.sockets.length, 1);
    await say(waiting.page, back);
    assert.equal(waiting.rt.state, "connected");

    const connecting = client(t, { connected: false });
    connecting.server.opens = false;
    await settle();
    await say(connecting.page, gone);
    assert.ok(connecting.server.socket.closedBy);
    connecting.server.opens = true;
    await say(connecting.page, back);
    assert.equal(connecting.rt.state, "connected");

    let give;
    let fail;
    const token = () => new Promise((...both) => ([give, fail] = both));
    for (const late of [() => give("late"), () => fail(new Error("late"))]) {
      const { rt, page, server, errors } = client(t, { connected: false, token });
      await settle();
      await say(page, gone);
      late();
      await settle();
      assert.equal(server.sockets.length, 0);
      await say(page, back);
      give("t");
      await settle();
      assert.equal(rt.state, "connected");
      assert.deepEqual(errors, []);
    }
  });

  test(`${gone}: nothing but ${back} brings it back`, async (t) => {
    const { server, page, clock } = await client(t);
    await say(page, gone);
    await clock.sleep(60);
    await page.hide();
    await page.show();
    await page.goOffline();
    await page.goOnline();
    assert.equal(server.sockets.length, 1);
    assert.equal(clock.timers, 0);
  });

  test(`${gone} for longer than half of the server's window: what may have been taken is not sent again`, async (t) => {
    const { rt, server, page, clock } = await client(t);
    server.on("rpc", MUTE, { data: "done" });
    const taken = watch(rt.call("Pay", 1));
    await settle();
    await say(page, gone);
    const queued = rt.call("Pay", 2);
    await clock.sleep(200);
    await say(page, back);
    assert.equal(await queued, "done");
    assert.ok(taken.error instanceof PublishUnknown);
    assert.deepEqual(
      server.sockets.flatMap((socket) => socket.got("rpc")).map(({ data }) => data),
      [1, 2],
    );
  });
}

test("frozen and put into the cache, it wakes once", async (t) => {
  const { rt, server, page } = await client(t);
  page.say("pagehide");
  page.document.dispatchEvent(new Event("freeze"));
  page.document.dispatchEvent(new Event("resume"));
  page.say("pageshow");
  await settle();
  assert.equal(rt.state, "connected");
  assert.equal(server.sockets.length, 2);
});

test("the first pageshow of a page changes nothing, nor does online without need", async (t) => {
  const { server, page } = await client(t);
  page.say("pageshow");
  page.document.dispatchEvent(new Event("resume"));
  await settle();
  assert.equal(server.sockets.length, 1);
});

test("back from the cache within the server's window, it keeps to it", async (t) => {
  const { rt, server, clock, page } = await client(t);
  server.socket.push({ disconnect: { code: 3001, reason: "draining", rt: { min: 30, max: 30 } } });
  await server.socket.drop();
  page.say("pagehide");
  page.say("pageshow");
  await clock.advance(29);
  assert.equal(rt.state, "waiting");
  await clock.advance(2);
  assert.equal(rt.state, "connected");
});

test("kept in the cache when the server says goodbye: its window holds for when it is back", async (t) => {
  const { rt, server, clock, page } = await client(t);
  server.socket.push({ disconnect: { code: 3001, reason: "draining", rt: { min: 30, max: 30 } } });
  page.say("pagehide");
  await settle();
  page.say("pageshow");
  await clock.advance(29);
  assert.equal(server.sockets.length, 1);
  await clock.advance(2);
  assert.equal(rt.state, "connected");
});

test("closed, it listens to nothing any more", async (t) => {
  const { rt, page } = await client(t);
  assert.equal(page.listeners, 7);
  rt.close();
  assert.equal(page.listeners, 0);
});

test("there need not be a page at all", async (t) => {
  const { rt } = client(t, { connected: false, page: {} });
  await rt.connected();
  assert.equal(rt.state, "connected");
});
