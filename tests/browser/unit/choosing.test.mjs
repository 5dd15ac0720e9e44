// Which transport is used, when the next one is tried, and what is remembered (T7).

import assert from "node:assert/strict";
import { test } from "node:test";
import { ConnectionClosed } from "../../../src/rtkit/browser/client.js";
import { FakePage, MUTE, ManualClock, Refuse, client, fate, settle } from "./harness.mjs";

const any = (t, options = {}) => client(t, { connected: false, transports: undefined, ...options });

/** Sessions and sockets that were opened, by what they are. */
const kinds = (server) => server.sockets.map(({ kind }) => kind ?? "websocket");

test("a WebSocket that works is used, and nothing is asked over HTTP", async (t) => {
  const { rt, server, clock } = any(t);
  assert.equal(rt.transport, null);
  await clock.advance(100);
  assert.equal(rt.transport, "websocket");
  assert.deepEqual(server.requests, []);
  rt.close();
  assert.equal(rt.transport, null);
});

test("WebSockets refused: a stream, in the same attempt and without waiting", async (t) => {
  const { rt, server, states } = any(t);
  server.refuses = true;
  await settle();
  assert.deepEqual(states, ["connecting", "connected"]);
  assert.equal(rt.transport, "sse");
  assert.equal(server.asked("ready").length, 1);
  assert.equal(server.asked("ready")[0].credentials, undefined);
});

test("WebSockets that never open, or say nothing: a stream, after three seconds", async (t) => {
  for (const opens of [false, true]) {
    const { rt, server, clock } = any(t);
    server.opens = opens;
    server.on("connect", MUTE, undefined);
    if (!opens) server.on("connect", undefined);
    await clock.advance(2.9);
    assert.equal(server.requests.length, 0);
    await clock.advance(0.2);
    assert.equal(rt.transport, "sse");
    assert.ok(server.sockets[0].closedBy);
  }
});

test("streams that are held back: polls, after three more", async (t) => {
  const { rt, server, clock } = any(t);
  server.refuses = true;
  server.comments = false;
  server.on("connect", MUTE, undefined);
  await clock.advance(2.9);
  assert.equal(rt.transport, null);
  await clock.advance(0.2);
  assert.equal(rt.transport, "poll");
  assert.ok(server.asked("sse")[0].signal.aborted);
});

for (const status of [400, 404, 405, 426, 500, 501, 502, 504]) {
  test(`a stream that is answered with ${status}: polls`, async (t) => {
    const { rt, server } = any(t);
    server.refuses = true;
    server.rules.sse = [status];
    await settle();
    await settle();
    assert.equal(rt.transport, "poll");
  });
}

test("cut within ten seconds, three times in a row: the next", async (t) => {
  const { rt, server, clock } = any(t);
  for (let n = 0; n < 3; n++) {
    assert.equal(server.asked("ready").length, 0);
    await clock.advance(3);
    assert.equal(rt.transport, "websocket");
    await server.socket.drop();
  }
  await settle();
  assert.equal(rt.transport, "sse");
  assert.equal(server.asked("ready").length, 1);
});

test("closed by a listener that hears of the third cut: nothing is asked any more", async (t) => {
  const { rt, server, clock } = any(t);
  server.on("subscribe", { typing: 5 });
  const room = rt.join("chat:lobby");
  for (let n = 0; n < 3; n++) {
    await clock.advance(8);
    assert.equal(room.state, "joined");
    if (n === 2) room.on("typing", (users) => users.length || rt.close());
    server.socket.push({ channel: "chat:lobby", signal: { event: "typing", user: "bob", client: "c9", data: true } });
    await server.socket.drop();
  }
  await clock.advance(60);
  assert.equal(rt.state, "closed");
  assert.deepEqual(server.requests, []);
});

test("cuts with a word of the server's between them are not in a row", async (t) => {
  const { rt, server, clock } = any(t);
  await settle();
  for (const code of [1006, 1006, 3001, 1006, 1006]) {
    await server.socket.drop(code);
    await clock.advance(8);
  }
  assert.equal(rt.transport, "websocket");
  assert.equal(server.asked("ready").length, 0);
});

test("cut later, or closed by the server, or refused in band: not the transport's fault", async (t) => {
  const { rt, server, clock } = any(t);
  for (let n = 0; n < 4; n++) {
    await clock.advance(13);
    await server.socket.drop();
    await clock.advance(20);
  }
  for (let n = 0; n < 4; n++) {
    await server.socket.drop(3001, "draining");
    await clock.advance(6);
  }
  server.on("connect", new Refuse(100, "busy", { temporary: true }));
  for (let n = 0; n < 4; n++) {
    await server.socket.drop();
    await clock.advance(30);
  }
  assert.equal(server.asked("ready").length, 0);
  assert.ok(kinds(server).every((kind) => kind === "websocket"));
  assert.equal(rt.state === "closed", false);
});

test("the server is away: the same transport again, after a while", async (t) => {
  const { rt, server, clock } = any(t);
  server.refuses = true;
  server.rules.ready = ["down"];
  await settle();
  assert.equal(rt.state, "waiting");
  await clock.advance(30);
  assert.ok(kinds(server).length > 2);
  assert.ok(kinds(server).every((kind) => kind === "websocket"));
  server.refuses = false;
  await clock.advance(20);
  assert.equal(rt.transport, "websocket");
});

test("ready that hangs is no answer", async (t) => {
  const { rt, server, clock } = any(t);
  server.refuses = true;
  server.rules.ready = ["hang"];
  await clock.advance(2.9);
  assert.equal(rt.state, "connecting");
  await clock.advance(0.2);
  assert.equal(rt.state, "waiting");
  assert.ok(server.asked("ready")[0].signal.aborted);
});

test("not ready: waits as long as the server says, on the same transport", async (t) => {
  const { rt, server, clock, page } = any(t);
  server.refuses = true;
  server.rules.ready = [[503, 30]];
  await settle();
  assert.equal(rt.state, "waiting");
  server.refuses = false;
  await page.goOnline();
  await clock.advance(29.9);
  assert.equal(rt.state, "waiting");
  await clock.advance(15.2);
  assert.equal(rt.transport, "websocket");
});

test("a crowd of newcomers: likewise, for no other transport would be faster", async (t) => {
  const { rt, server, clock } = any(t);
  server.refuses = true;
  server.rules.ready = [[204, 30]];
  await settle();
  assert.equal(rt.state, "waiting");
  server.refuses = false;
  await clock.advance(29.9);
  assert.equal(rt.state, "waiting");
  await clock.advance(15.2);
  assert.equal(rt.transport, "websocket");
});

test("a server that is slow to say that it is ready: back off, the same again", async (t) => {
  const { rt, server, clock } = any(t);
  server.refuses = true;
  server.rules.ready = [() => new Promise((resolve) => clock.setTimeout(() => resolve(server.response(204)), 1.1))];
  await settle();
  await clock.advance(1.2);
  assert.equal(rt.state, "waiting");
  server.refuses = false;
  await clock.advance(2);
  assert.equal(rt.transport, "websocket");
});

for (const status of [200, 302, 404, 503]) {
  test(`ready answered with ${status} alone proves nothing: back off, the same again`, async (t) => {
    const { rt, server, clock } = any(t);
    server.refuses = true;
    server.rules.ready = [status];
    await settle();
    assert.equal(rt.state, "waiting");
    server.refuses = false;
    await clock.advance(2);
    assert.equal(rt.transport, "websocket");
  });
}

test("all fail: back off, and begin again with the first", async (t) => {
  const { rt, server, clock, states } = any(t);
  server.refuses = true;
  server.rules.sse = [404];
  server.rules.poll = [404];
  await settle();
  await settle();
  assert.deepEqual(states, ["connecting", "waiting"]);
  assert.equal(server.asked("poll").length, 1);
  assert.equal(kinds(server).length, 1);
  await clock.advance(1);
  await settle();
  assert.equal(kinds(server).length, 2);
  server.refuses = false;
  await clock.advance(5);
  assert.equal(rt.transport, "websocket");
});

test("offline is not the transport's fault", async (t) => {
  const { server, clock, page } = any(t);
  await clock.advance(1);
  await page.goOffline();
  server.refuses = true;
  await server.socket.drop();
  await clock.advance(100);
  assert.deepEqual(server.requests, []);
});

test("a page that is hidden and shown three times is not three cuts", async (t) => {
  const { rt, server, page, clock } = any(t);
  for (let n = 0; n < 4; n++) {
    await clock.advance(1);
    page.say("pagehide");
    await settle();
    page.say("pageshow");
    await settle();
  }
  assert.equal(rt.transport, "websocket");
  assert.deepEqual(server.requests, []);
});

test("closed, or the page hidden, while ready is asked: that is the end of it", async (t) => {
  for (const end of [(it) => it.rt.close(), (it) => it.page.say("pagehide")]) {
    const it = any(t);
    it.server.refuses = true;
    let answer;
    it.server.rules.ready = [() => new Promise((resolve) => (answer = () => resolve(it.server.response(204))))];
    await settle();
    end(it);
    answer();
    await it.clock.advance(100);
    assert.equal(it.server.asked("sse").length, 0);
  }
});

// What is remembered.

test("the choice holds for ten minutes, for this client and for other pages; then the first is tried again", async (t) => {
  const { rt, server, clock, page } = any(t);
  server.refuses = true;
  await settle();
  assert.equal(rt.transport, "sse");
  assert.match(page.localStorage.rtkit, /^sse \d+/);
  await server.socket.drop();
  await clock.advance(1);
  assert.deepEqual(kinds(server), ["websocket", "sse", "sse"]);

  const other = new FakePage();
  other.localStorage = page.localStorage;
  const second = any(t, { page: other });
  await settle();
  assert.equal(second.rt.transport, "sse");
  assert.deepEqual(kinds(second.server), ["sse"]);

  for (let n = 0; n < 30; n++) {
    await clock.advance(20);
    server.socket.say({});
  }
  assert.equal(rt.transport, "sse"); // nothing is torn down for a better one
  server.refuses = false;
  await server.socket.drop();
  await clock.advance(1);
  assert.equal(rt.transport, "websocket");
  assert.equal(page.localStorage.rtkit, undefined);
});

test("localStorage that is forbidden, full, or holds anything: this client alone remembers", async (t) => {
  for (const [n, localStorage] of [
    undefined,
    new Proxy({}, { get: () => assert.fail("SecurityError"), set: () => assert.fail("SecurityError") }),
    new Proxy({}, { set: () => assert.fail("QuotaExceededError") }),
    { rtkit: "sse", removeItem() {} },
    { rtkit: "carrier pigeon 99999999999999", removeItem() {} },
    { rtkit: "poll 99999999999999", removeItem() {} },
    { rtkit: "poll 1", removeItem() {} },
    { rtkit: "poll NaN", removeItem() {} },
  ].entries()) {
    const page = new FakePage();
    page.localStorage = localStorage;
    const { rt, server, clock } = any(t, { page });
    server.refuses = true;
    await settle();
    await settle();
    assert.equal(rt.transport, "sse", `${n}`);
    await server.socket.drop();
    await clock.advance(1);
    assert.equal(rt.transport, "sse");
    rt.close();
  }
});

test("a remembered choice that fails gives way as well", async (t) => {
  const page = new FakePage();
  page.localStorage.rtkit = `sse ${new ManualClock().wall() + 300}`;
  const { rt, server, clock } = any(t, { page });
  server.rules.sse = [502];
  await settle();
  await settle();
  assert.equal(rt.transport, "poll");
  assert.deepEqual(kinds(server), ["poll"]);
  server.rules.poll = [404];
  await server.socket.drop();
  await clock.advance(40);
  await settle();
  await clock.advance(5);
  assert.equal(rt.transport, "websocket");
});

// Options.

test("for who only receives: a stream, a WebSocket, polls", async (t) => {
  const { rt, server, clock } = any(t, { receiveOnly: true });
  await settle();
  assert.equal(rt.transport, "sse");
  server.rules.sse = [404];
  await server.socket.drop();
  await clock.advance(1);
  await settle();
  assert.equal(rt.transport, "websocket");
  server.refuses = true;
  await server.socket.drop();
  for (let n = 0; n < 3; n++) await clock.advance(3);
  assert.equal(rt.transport, "poll");
});

test("transports names and orders them", async (t) => {
  const { rt, server, clock } = any(t, { transports: ["poll", "websocket"] });
  await settle();
  assert.equal(rt.transport, "poll");
  server.rules.poll = [404];
  server.rules.send = [410];
  rt.call("Any").catch(() => {});
  await clock.advance(3);
  await settle();
  assert.equal(rt.transport, "websocket");
  const only = any(t, { transports: ["sse"] });
  only.server.rules.sse = [404];
  await only.clock.advance(100);
  assert.deepEqual(new Set(only.server.requests.map(({ name }) => name)), new Set(["sse"]));
});

test("one transport alone: no three seconds, no ready", async (t) => {
  const { rt, server, clock } = client(t, { connected: false });
  server.opens = false;
  await clock.advance(9.9);
  assert.equal(rt.state, "connecting");
  await clock.advance(100);
  assert.deepEqual(server.requests, []);
});

test("without a WebSocket at all the others are used; without any it is over, and says so", async (t) => {
  const { rt, server } = any(t, { WebSocket: null });
  await settle();
  assert.equal(rt.transport, "sse");
  assert.deepEqual(kinds(server), ["sse"]);
  for (const options of [{ WebSocket: null, transports: ["websocket"] }, { transports: [] }, { transports: ["pigeon"] }]) {
    const { error } = await fate(any(t, options).rt.connected());
    assert.ok(error instanceof ConnectionClosed);
    assert.match(error.reason, /no transport/);
  }
});

test("a token function is asked for each connection that is tried", async (t) => {
  let calls = 0;
  const { server } = any(t, { token: () => `t${++calls}` });
  server.refuses = true;
  await settle();
  assert.equal(JSON.parse(server.asked("sse")[0].body).connect.token, "t2");
});

// Cookies of another origin.

test("cookies go along; where the hub lets in every origin, without them", async (t) => {
  globalThis.location = new URL("https://elsewhere.org/");
  t.after(() => delete globalThis.location);
  const { rt, server } = any(t, { transports: ["sse"] });
  server.rules.sse = [({ credentials }) => (credentials === "include" ? "down" : undefined)];
  await settle();
  assert.equal(rt.transport, "sse");
  assert.deepEqual(
    server.asked("sse").map(({ credentials }) => credentials),
    ["include", "same-origin"],
  );
  const next = any(t, { transports: ["poll"] });
  await settle();
  assert.equal(next.rt.transport, "poll");
  const asked = next.server.asked("poll", "POST").map(({ credentials }) => credentials);
  assert.deepEqual(asked, ["same-origin"]); // learnt
});

test("a bad token is a verdict over any transport", async (t) => {
  const { rt, server } = any(t);
  server.on("connect", new Refuse(101));
  await settle();
  assert.equal(rt.closed.code, 3500);
  assert.deepEqual(server.requests, []);
});

// Pages of another origin, and their cookies (T10).

/** The kind of page that a hub of another origin is asked by. */
function elsewhere(t) {
  globalThis.location = new URL("https://elsewhere.org/");
  t.after(() => delete globalThis.location);
}

/** With cookies or without, as each opening of a stream was asked. */
const cookies = (server) => server.asked("sse").map(({ credentials }) => credentials);

test("another origin: a stream that ends, however it does, is a loss, and no sign against cookies", async (t) => {
  elsewhere(t);
  for (const end of ["fail", "end"]) {
    const { rt, server, clock } = any(t, { transports: ["sse"], url: `http://${end}.org/rt` });
    await settle();
    server.socket.stream[end]();
    await clock.advance(10);
    assert.equal(rt.state, "connected");
    assert.deepEqual(cookies(server), ["include", "include"], end);
  }
});

test("another origin: what is learnt of one hub's cookies holds for no other hub", async (t) => {
  elsewhere(t);
  const open = any(t, { transports: ["sse"], url: "http://open.org/rt" });
  open.server.rules.sse = [({ credentials }) => (credentials === "include" ? "down" : undefined)];
  const closed = any(t, { transports: ["sse"], url: "http://closed.org/rt" });
  closed.server.rules.sse = [({ credentials }) => (credentials === "include" ? undefined : 401)];
  await settle();
  await closed.server.socket.drop();
  await closed.clock.advance(20);
  assert.deepEqual([open.rt.state, closed.rt.state], ["connected", "connected"]);
  assert.deepEqual(cookies(closed.server), ["include", "include"]);
});

test("another origin: two clients of one hub; that the one is cut costs the other nothing", async (t) => {
  elsewhere(t);
  const without = ({ credentials }) => (credentials === "include" ? "down" : undefined);
  const [one, other] = ["sse", "poll"].map((kind) => any(t, { transports: [kind], url: "http://two.org/rt" }));
  for (const { server } of [one, other]) server.rules = { sse: [without], poll: [without], send: [without] };
  await settle();
  await one.server.socket.drop();
  await settle();
  assert.equal((await fate(other.rt.call("Add"))).value, null);
});

for (const [status, code] of [
  [401, 3500],
  [403, 3507],
]) {
  test(`another origin, known by cookies: ${status} without them, because a request failed, is no verdict`, async (t) => {
    elsewhere(t);
    const { rt, server, clock } = any(t, { transports: ["sse"], url: `http://cookies${status}.org/rt` });
    let down = true;
    server.rules.sse = [({ credentials }) => (credentials !== "include" ? status : down ? "down" : undefined)];
    await settle();
    assert.equal(rt.state, "waiting");
    down = false; // the node has started anew, the phone has found its next cell
    await clock.advance(10);
    assert.equal(rt.state, "connected", rt.lastFailure);
    assert.deepEqual(cookies(server), ["include", "same-origin", "include"]);
  });

  test(`another origin: ${status} on a token that was shown is a verdict, with cookies or without`, async (t) => {
    elsewhere(t);
    const url = `http://token${status}.org/rt`;
    const { rt, server } = any(t, { transports: ["sse"], url, token: "t-bad" });
    server.rules.sse = [({ credentials }) => (credentials === "include" ? "down" : status)];
    await settle();
    assert.equal(rt.closed?.code, code);
    assert.deepEqual(cookies(server), ["include", "same-origin"]);
  });
}
