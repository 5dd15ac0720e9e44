import assert from "node:assert/strict";
import { test } from "node:test";
import { ConnectionClosed, RtkitError, UsageError, connect } from "../../../src/rtkit/browser/client.js";
import { FakeServer, MUTE, ManualClock, Refuse, client, fate, settle } from "./harness.mjs";

test("goes through idle, connecting and connected", async (t) => {
  const { rt, states, server } = client(t, { connected: false });
  assert.equal(rt.state, "idle");
  assert.equal(server.sockets.length, 0);
  await rt.connected();
  assert.deepEqual(states, ["connecting", "connected"]);
  assert.equal(rt.clientId, "c1");
  assert.equal(rt.closed, null);
});

test("introduces itself with token and data, and as an rtkit client", async (t) => {
  const { server } = await client(t, { token: "t-ann", data: { device: 1 } });
  const [hello] = server.socket.commands;
  assert.equal(hello.id, 1);
  assert.equal(hello.connect.token, "t-ann");
  assert.deepEqual(hello.connect.data, { device: 1 });
  assert.equal(hello.connect.rt.v, 1);
});

test("URLs are relative to the page, http becomes ws, and /ws is appended where it is missing", async (t) => {
  globalThis.location = { href: "https://example.org/app/page.html?x#y" };
  t.after(() => delete globalThis.location);
  for (const [url, expected] of [
    ["/rt", "wss://example.org/rt/ws"],
    ["/rt/", "wss://example.org/rt/ws"],
    ["rt", "wss://example.org/app/rt/ws"],
    ["/rt/ws", "wss://example.org/rt/ws"],
    ["/connection/websocket", "wss://example.org/connection/websocket"],
    ["http://other:8000/rt?a=b#c", "ws://other:8000/rt/ws?a=b"],
    ["ws://other/rt", "ws://other/rt/ws"],
    [new URL("https://other/rt"), "wss://other/rt/ws"],
    ["https://other", "wss://other/ws"],
  ]) {
    const { server } = await client(t, { url });
    assert.equal(server.socket.url, expected);
  }
});

test("refuses what cannot be right at once", () => {
  const { WebSocket } = new FakeServer();
  for (const [url, options] of [
    ["ftp://example.org/rt", {}],
    ["/rt", {}], // there is no page here
    ["http://", {}],
    ["http://example.org", { token: 5 }],
    ["http://example.org", { minDelay: 0 }],
    ["http://example.org", { maxDelay: Infinity }],
    ["http://example.org", { maxOffline: NaN }],
    ["http://example.org", { data: () => {} }],
    ["http://example.org", { data: { half: "\ud800" } }],
  ]) {
    assert.throws(() => connect(url, { WebSocket, ...options }), UsageError, `${url} ${Object.keys(options)}`);
  }
});

test("a listener that is taken away is not called any more, not even by the same event", async (t) => {
  const { rt } = client(t, { connected: false });
  const calls = [];
  const off = rt.on("state", () => (calls.push("first"), offSecond()));
  const offSecond = rt.on("state", () => calls.push("second"));
  await rt.connected();
  off();
  rt.close();
  assert.deepEqual(calls, ["first", "first"]);
});

test("a listener that throws is reported and harms nobody", async (t) => {
  const reported = t.mock.method(console, "error", () => {});
  const { rt, states } = client(t, { connected: false });
  rt.on("state", () => {
    throw new Error("the application's fault");
  });
  await rt.connected();
  assert.deepEqual(states, ["connecting", "connected"]);
  assert.equal(reported.mock.calls[0].arguments[0].message, "the application's fault");
});

test("reportError is used where there is one", async (t) => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error);
  t.after(() => delete globalThis.reportError);
  const { rt } = client(t, { connected: false });
  rt.on("state", () => {
    throw new Error("oops");
  });
  await rt.connected();
  assert.equal(reported.length, 2);
});

test("after a loss it waits, comes back, and its client id may be another one", async (t) => {
  const { rt, server, clock, states } = await client(t);
  server.welcome.client = "c2";
  await server.socket.drop();
  assert.equal(rt.state, "waiting");
  assert.match(rt.lastFailure, /1006/);
  await clock.advance(1);
  assert.deepEqual(states, ["connecting", "connected", "waiting", "connecting", "connected"]);
  assert.equal(rt.clientId, "c2");
  assert.equal(server.sockets.length, 2);
});

// Back-off (F3).

test("delays are drawn between half a second and a ceiling that doubles up to twenty", async (t) => {
  for (const [draw, expected] of [
    [0, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]],
    [1, [1, 2, 4, 8, 16, 20, 20, 20]],
    [0.5, [0.75, 1.25, 2.25, 4.25, 8.25, 10.25, 10.25, 10.25]],
  ]) {
    const { server, clock, chance } = client(t, { connected: false });
    chance.value = draw;
    server.opens = false;
    await settle();
    for (const delay of expected) {
      const before = server.sockets.length;
      await server.socket.drop();
      await clock.advance(delay - 0.01);
      assert.equal(server.sockets.length, before, `too early: ${delay}`);
      await clock.advance(0.02);
      assert.equal(server.sockets.length, before + 1, `too late: ${delay}`);
    }
  }
});

test("a connection that lived for a while makes the delays begin anew; one that did not does not", async (t) => {
  const { server, clock, chance, rt } = await client(t);
  chance.value = 1;
  for (const delay of [1, 2, 4]) {
    await server.socket.drop();
    await clock.advance(delay - 0.01);
    assert.equal(rt.state, "waiting");
    await clock.advance(0.02);
    assert.equal(rt.state, "connected");
  }
  await clock.advance(6);
  await server.socket.drop();
  await clock.advance(1.01);
  assert.equal(rt.state, "connected");
});

test("the window that the server names when it says goodbye wins over the client's own delays", async (t) => {
  const { server, clock, rt, chance } = await client(t);
  chance.value = 0.5;
  server.socket.push({ disconnect: { code: 3001, reason: "draining", rt: { min: 40, max: 60 } } });
  await server.socket.drop(1012);
  assert.equal(rt.lastFailure, "draining (code 3001)");
  await clock.advance(49.9);
  assert.equal(rt.state, "waiting");
  await clock.advance(0.2);
  assert.equal(rt.state, "connected");
});

test("coming online does not break the server's window", async (t) => {
  const { server, clock, rt, page } = await client(t);
  server.socket.push({ disconnect: { code: 3001, reason: "draining", rt: { min: 40, max: 60 } } });
  await server.socket.drop();
  await page.goOnline();
  await clock.advance(49);
  assert.equal(rt.state, "waiting");
  await clock.advance(2);
  assert.equal(rt.state, "connected");
});

test("a goodbye with a terminal code is for good, however the pipe ends", async (t) => {
  const { server, rt } = await client(t);
  server.socket.push({ disconnect: { code: 4501, reason: "revoked" } });
  await server.socket.drop(1006);
  assert.equal(rt.state, "closed");
  assert.equal(rt.closed.code, 4501);
});

// Opening.

test("a connection that does not open is given up after ten seconds", async (t) => {
  const { server, clock, rt } = client(t, { connected: false });
  server.opens = false;
  await clock.advance(9.9);
  assert.equal(rt.state, "connecting");
  await clock.advance(0.2);
  assert.equal(rt.state, "waiting");
  assert.ok(server.socket.closedBy);
});

test("so is one whose server does not answer, and what it says later counts no more", async (t) => {
  const { server, clock, rt } = client(t, { connected: false });
  server.on("connect", MUTE, undefined);
  await clock.advance(10.1);
  assert.equal(rt.state, "waiting");
  const [old] = server.sockets;
  old.onmessage({ data: '{"id":1,"connect":{"client":"late"}}' });
  old.onclose({ code: 3500, reason: "bad token" });
  assert.equal(rt.state, "waiting");
  await clock.advance(20);
  assert.equal(rt.state, "connected");
  assert.equal(rt.clientId, "c1");
});

test("a WebSocket that cannot be made is the end", async (t) => {
  const { rt } = client(t, {
    connected: false,
    WebSocket: class {
      constructor() {
        throw new DOMException("insecure", "SecurityError");
      }
    },
  });
  const { error } = await fate(rt.connected());
  assert.ok(error instanceof ConnectionClosed);
  assert.match(error.reason, /insecure/);
});

// Refusals.

for (const [code, closeCode] of [
  [101, 3500],
  [103, 3507],
  [104, 3501],
  [106, 3504],
  [107, 3501],
  [455, 3503],
]) {
  test(`connect refused with ${code} is for good, as ${closeCode}`, async (t) => {
    const { rt, server } = client(t, { connected: false });
    server.on("connect", new Refuse(code, "not you"));
    const { error } = await fate(rt.connected());
    assert.ok(error instanceof ConnectionClosed);
    assert.equal(error.code, closeCode);
    assert.match(error.reason, /not you/);
    assert.equal(error.cause.code, code);
    assert.equal(rt.state, "closed");
  });
}

test("connect refused for now is tried again, not before the server said", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.on("connect", new Refuse(111, "later", { temporary: true, retry_after: 30 }), undefined);
  await settle();
  assert.equal(rt.state, "waiting");
  await clock.advance(29.9);
  assert.equal(rt.state, "waiting");
  await clock.advance(15.2);
  assert.equal(rt.state, "connected");
});

// Tokens (A3).

test("the token function is called for every connection, and may be async or not", async (t) => {
  let calls = 0;
  const { server, clock } = await client(t, { token: async () => `t${++calls}` });
  await server.socket.drop();
  await clock.advance(1);
  assert.deepEqual(
    server.sockets.map((socket) => socket.got("connect")[0].token),
    ["t1", "t2"],
  );
  const other = await client(t, { token: () => "plain" });
  assert.equal(other.server.socket.got("connect")[0].token, "plain");
});

test("a token function that fails is told, and called again after a delay", async (t) => {
  let calls = 0;
  const { rt, clock, errors } = client(t, {
    connected: false,
    token: async () => {
      if (++calls === 1) throw new TypeError("fetch failed");
      return "t";
    },
  });
  await settle();
  assert.equal(rt.state, "waiting");
  assert.match(errors[0].message, /fetch failed/);
  await clock.advance(1);
  assert.equal(rt.state, "connected");
});

test("without a token any more, or told so by a ConnectionClosed, it is closed for good", async (t) => {
  for (const [token, code] of [
    [async () => null, 3500],
    [() => undefined, 3500],
    [() => 5, 3500],
    [
      () => {
        throw new ConnectionClosed(4500, "logged out");
      },
      4500,
    ],
  ]) {
    const { rt, server } = client(t, { connected: false, token });
    const { error } = await fate(rt.connected());
    assert.equal(error.code, code);
    assert.equal(server.sockets.length, 0);
  }
});

test("a token function that takes longer than opening may is called again, and what it brings then is not used", async (t) => {
  const gives = [];
  const token = () => new Promise((resolve) => gives.push(resolve));
  const { rt, server, clock } = client(t, { connected: false, token });
  await clock.advance(9.9);
  assert.equal(rt.state, "connecting");
  await clock.advance(0.2);
  assert.equal(rt.state, "waiting");
  await clock.advance(1);
  assert.equal(gives.length, 2);
  gives[0]("late");
  await settle();
  assert.equal(server.sockets.length, 0);
  gives[1]("t");
  await settle();
  assert.equal(rt.state, "connected");
  assert.equal(server.socket.got("connect")[0].token, "t");
});

test("a token that comes after the client was closed is not used", async (t) => {
  let give;
  const { rt, server } = client(t, { connected: false, token: () => new Promise((resolve) => (give = resolve)) });
  await settle();
  rt.close();
  give("t");
  await settle();
  assert.equal(server.sockets.length, 0);
});

for (const code of [109, 110]) {
  test(`a token refused as expired (${code}) is renewed at once, once`, async (t) => {
    let calls = 0;
    const { rt, server, clock, states } = client(t, { connected: false, token: () => `t${++calls}` });
    server.on("connect", new Refuse(code, "expired"), new Refuse(code, "expired"), undefined);
    await settle();
    assert.equal(server.sockets.length, 2); // at once
    assert.equal(rt.state, "waiting"); // then after a delay
    await clock.advance(2);
    assert.equal(rt.state, "connected");
    assert.deepEqual(states, ["connecting", "waiting", "connecting", "connected"]);
  });

  test(`a fixed token refused as expired (${code}) is the end`, async (t) => {
    const { rt, server } = client(t, { connected: false, token: "old" });
    server.on("connect", new Refuse(code, "expired"));
    await settle();
    assert.equal(rt.closed.code, 3500);
  });
}

test("the identity is renewed a fifth of its time, at most ten seconds, before its end", async (t) => {
  for (const [ttl, when] of [
    [10, 8],
    [100, 90],
  ]) {
    let calls = 0;
    const { server, clock } = client(t, { connected: false, token: () => `t${++calls}` });
    Object.assign(server.welcome, { expires: true, ttl, ping: 0 });
    server.on("refresh", { client: "c1", expires: true, ttl: 1000 });
    await clock.advance(when - 0.1);
    assert.deepEqual(server.socket.got("refresh"), []);
    await clock.advance(0.2);
    assert.deepEqual(server.socket.got("refresh"), [{ token: "t2" }]);
    await clock.advance(980);
    assert.equal(server.socket.got("refresh").length, 1);
    await clock.advance(11);
    assert.equal(server.socket.got("refresh").length, 2);
  }
});

test("the server can ask for a new token now", async (t) => {
  const { server, clock } = await client(t, { token: () => "t" });
  server.socket.push({ refresh: { expires: true, ttl: 1 } });
  await clock.advance(0.9);
  assert.deepEqual(server.socket.got("refresh"), [{ token: "t" }]);
});

test("a fixed token is never shown again", async (t) => {
  const { server, clock } = client(t, { connected: false, token: "t" });
  Object.assign(server.welcome, { expires: true, ttl: 10, ping: 0 });
  await clock.advance(20);
  assert.deepEqual(server.socket.got("refresh"), []);
});

test("a refresh that fails for now is tried again; one that is refused is told", async (t) => {
  let calls = 0;
  const { server, clock, errors } = await client(t, {
    token: () => {
      if (++calls === 2) throw new TypeError("no network");
      return `t${calls}`;
    },
  });
  server.on("refresh", new Refuse(109), new Refuse(100, "busy", { temporary: true }), new Refuse(103, "another user"));
  server.socket.push({ refresh: { expires: true, ttl: 1 } });
  await clock.advance(15);
  assert.deepEqual(
    server.socket.got("refresh").map(({ token }) => token),
    ["t3", "t4", "t5"],
  );
  assert.equal(errors.length, 4);
  assert.match(errors[3].message, /another user/);
});

test("one refresh at a time", async (t) => {
  let calls = 0;
  let give;
  const { server, clock } = await client(t, {
    token: () => (++calls === 1 ? "t1" : new Promise((resolve) => (give = resolve))),
  });
  for (let n = 0; n < 3; n++) {
    server.socket.push({ refresh: { expires: true, ttl: 0 } });
    await clock.advance(1);
  }
  give("t2");
  await settle();
  assert.equal(calls, 2);
  assert.equal(server.socket.got("refresh").length, 1);
});

test("a refresh of a connection that is gone is forgotten", async (t) => {
  let give;
  let calls = 0;
  const { server, clock } = await client(t, {
    token: () => (++calls === 2 ? new Promise((resolve) => (give = resolve)) : `t${calls}`),
  });
  server.socket.push({ refresh: { expires: true, ttl: 0 } });
  await clock.advance(0.1);
  await server.socket.drop();
  await clock.advance(1);
  give("late");
  await settle();
  for (const socket of server.sockets) assert.deepEqual(socket.got("refresh"), []);
});

// Heartbeats (F4).

test("pings are answered, if the server wants that", async (t) => {
  const { server } = await client(t);
  server.socket.say({});
  server.socket.say({}, {});
  assert.equal(server.socket.pongs, 3);
  const quiet = client(t, { connected: false });
  quiet.server.welcome.pong = false;
  await quiet.rt.connected();
  quiet.server.socket.say({});
  assert.equal(quiet.server.socket.pongs, 0);
});

test("a server that is silent for its ping interval and ten seconds is gone", async (t) => {
  const { rt, server, clock } = await client(t);
  await clock.advance(30);
  server.socket.say({});
  await clock.advance(34.9);
  assert.equal(rt.state, "connected");
  await clock.advance(0.2);
  assert.equal(rt.state, "waiting");
  assert.match(rt.lastFailure, /nothing heard/);
  assert.ok(server.socket.closedBy);
  assert.deepEqual(server.socket.got("ping"), []); // time ran evenly: no doubt
});

test("anything heard counts, not pings alone", async (t) => {
  const { rt, server, clock } = await client(t);
  for (let n = 0; n < 10; n++) {
    await clock.advance(30);
    server.socket.push({ channel: "elsewhere", pub: { data: 1 } });
  }
  assert.equal(rt.state, "connected");
});

test("a server that does not ping is not watched", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.welcome.ping = 0;
  await clock.advance(1000);
  assert.equal(rt.state, "connected");
});

// Closing.

test("close says goodbye, and is final and idempotent", async (t) => {
  const { rt, server, clock, page, states } = await client(t);
  const why = [];
  rt.on("closed", (error) => why.push(error));
  rt.close();
  rt.close();
  assert.deepEqual(server.socket.got("bye"), [{}]);
  assert.equal(server.socket.closedBy.code, 1000);
  assert.equal(rt.state, "closed");
  assert.equal(why.length, 1);
  assert.ok(why[0] instanceof ConnectionClosed && why[0] instanceof RtkitError);
  assert.equal(rt.closed, why[0]);
  assert.equal(clock.timers, 0);
  page.say("online");
  page.say("pageshow");
  await clock.advance(100);
  assert.equal(server.sockets.length, 1);
  assert.equal(states.at(-1), "closed");
  assert.throws(() => rt.join("chat:lobby"), ConnectionClosed);
  await assert.rejects(rt.call("Add", {}), ConnectionClosed);
  await assert.rejects(rt.connected(), ConnectionClosed);
});

test("a client that is closed before it began never begins", async (t) => {
  const { rt, server, states } = client(t, { connected: false });
  rt.close();
  await settle();
  assert.deepEqual(states, ["closed"]);
  assert.equal(server.sockets.length, 0);
});

test("closed by a listener of any state, it stays so", async (t) => {
  for (const state of ["connecting", "connected", "waiting"]) {
    const { rt, server, clock } = client(t, { connected: false });
    rt.on("state", (now) => now === state && rt.close());
    await settle();
    if (rt.state !== "closed") await server.socket.drop();
    assert.equal(rt.state, "closed");
    await clock.advance(100);
    assert.ok(server.sockets.length <= 1);
    assert.equal(clock.timers, 0);
  }
});

test("closed for good by the server, nobody listening: the console tells", async (t) => {
  const console_ = t.mock.method(console, "error", () => {});
  const clock = new ManualClock();
  const server = new FakeServer();
  connect("http://example.org/rt", { WebSocket: server.WebSocket, clock, page: {} });
  await settle();
  await server.socket.drop(3503, "enough");
  assert.match(String(console_.mock.calls[0].arguments[0]), /enough \(code 3503\)/);
});

test("closed by a listener in the middle of a frame, the rest of it is not told", async (t) => {
  const { rt, server } = await client(t);
  const messages = [];
  rt.on("message", ({ data }) => {
    messages.push(data);
    rt.close();
  });
  server.socket.say({ push: { message: { data: 1 } } }, { push: { message: { data: 2 } } });
  assert.deepEqual(messages, [1]);
});

test("messages to this session", async (t) => {
  const { rt, server } = await client(t);
  const messages = [];
  rt.on("message", (message) => messages.push(message));
  server.socket.push({ message: { data: "psst" } });
  server.socket.push({ message: { data: { event: "Hint", data: { n: 1 } } } });
  server.socket.push({ message: {} });
  assert.deepEqual(messages, [
    { event: "", data: "psst" },
    { event: "Hint", data: { n: 1 } },
    { event: "", data: null },
  ]);
});
