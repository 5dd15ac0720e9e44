// A server that takes no newcomers now says when to come back, before the client has said anything (F2).

import assert from "node:assert/strict";
import { test } from "node:test";
import { MUTE, client, settle } from "./harness.mjs";

const any = (t, options = {}) => client(t, { connected: false, transports: undefined, ...options });

/** As `Hub.connect` does it. */
const turnAway = async ({ server }, rt) => {
  server.socket.push({ disconnect: { code: 4001, reason: "try again later", rt } });
  await server.socket.drop(4001, "try again later");
};

test("turned away again and again: each time in the window, and always over a WebSocket", async (t) => {
  const it = any(t);
  const { rt, server, clock, chance } = it;
  chance.value = 0.5;
  server.on("connect", MUTE);
  for (let n = 1; n <= 6; n++) {
    await settle();
    assert.equal(server.sockets.length, n);
    await turnAway(it, { min: 30, max: 30.5 });
    assert.equal(rt.state, "waiting");
    assert.match(rt.lastFailure, /try again later \(code 4001\)/);
    await clock.advance(30.2);
    assert.equal(server.sockets.length, n, "not before");
    await clock.advance(0.1);
  }
  server.on("connect", undefined);
  await turnAway(it, { min: 1, max: 1.5 });
  await clock.advance(2);
  assert.equal(rt.transport, "websocket");
  assert.deepEqual(server.requests, []);
});

test("being online or seen again is no reason to come earlier", async (t) => {
  const it = any(t);
  const { rt, server, clock, page } = it;
  server.on("connect", MUTE, undefined);
  await settle();
  await turnAway(it, { min: 10, max: 10.5 });
  await page.goOnline();
  await clock.advance(9.9);
  assert.equal(rt.state, "waiting");
  assert.equal(server.sockets.length, 1);
  await clock.advance(0.7);
  assert.equal(rt.transport, "websocket");
});

for (const way of ["sse", "poll"]) {
  for (const status of [503, 429]) {
    test(`${way} answered with ${status} and Retry-After: in time, the same again`, async (t) => {
      const { rt, server, clock } = any(t, { transports: [way, "websocket"] });
      server.rules[way] = [[status, 20], undefined];
      await settle();
      assert.equal(rt.state, "waiting");
      await clock.advance(19.9);
      assert.equal(server.asked(way).length, 1);
      await clock.advance(10.2);
      assert.equal(rt.transport, way);
      assert.deepEqual(server.asked("ready"), []);
    });
  }
}
