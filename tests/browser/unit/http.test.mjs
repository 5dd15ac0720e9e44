// Plain HTTP in place of a WebSocket: streams, polls, and the way up (T1, T3, T4, T6).

import assert from "node:assert/strict";
import { test } from "node:test";
import { ConnectionClosed } from "../../../src/rtkit/browser/client.js";
import { MUTE, Refuse, client, fate, joined, recorded, settle, watch } from "./harness.mjs";

const CHANNEL = "chat:lobby";
const KINDS = ["sse", "poll"];

const over = (t, kind, options = {}) => client(t, { transports: [kind], token: "t-ann", ...options });

/** The RT-Seq of the POSTs, in order. */
const seqs = (server) => server.asked("send", "POST").map(({ headers }) => Number(headers["RT-Seq"]));

for (const kind of KINDS) {
  test(`${kind}: connects, joins, sends, hears`, async (t) => {
    const { rt, server, states } = await over(t, kind);
    assert.deepEqual(states, ["connecting", "connected"]);
    assert.equal(rt.transport, kind);
    const [opening] = server.asked(kind, "POST");
    assert.equal(opening.url.href, `http://example.org/rt/${kind}`);
    assert.equal(JSON.parse(opening.body).connect.token, "t-ann");
    assert.equal(opening.redirect, "error");
    server.on("subscribe", joined("e", 0));
    server.on("publish", { data: { ok: true } });
    const room = rt.join(CHANNEL);
    const items = recorded(room);
    await room.joined();
    const sent = fate(room.send("Say", { text: "hi" }));
    server.socket.pub(CHANNEL, 1, "one");
    server.socket.pub(CHANNEL, 2, "zwei: ä😀");
    await settle();
    assert.deepEqual(items, ['"one"', '"zwei: ä😀"']);
    assert.deepEqual((await sent).value, { ok: true });
    assert.equal(rt.transport, kind);
  });

  test(`${kind}: the session is shown in a header, never in a URL`, async (t) => {
    const { rt, server } = await over(t, kind);
    await fate(rt.call("Any"));
    const { session } = server.socket;
    for (const { name, url, headers } of server.requests) {
      assert.ok(!url.href.includes(session));
      if (name === "send") assert.equal(headers["RT-Session"], session);
    }
    assert.equal(server.asked("send").length, 1);
  });

  test(`${kind}: the query of the hub's URL goes along`, async (t) => {
    const { server, rt } = await over(t, kind, { url: "https://example.org/rt?tenant=a%20b" });
    await fate(rt.call("Any"));
    for (const { url } of server.requests) {
      assert.equal(url.searchParams.get("tenant"), "a b");
      assert.equal(url.protocol, "https:");
    }
  });

  test(`${kind}: one POST at a time, and everything queued meanwhile goes into the next`, async (t) => {
    const { rt, server } = await over(t, kind);
    let take;
    server.rules.send = [() => new Promise((resolve) => (take = () => resolve(server.response(204)))), undefined];
    const calls = [rt.call("One")];
    await settle();
    calls.push(rt.call("Two"), rt.call("Three"));
    await settle();
    calls.push(rt.call("Four"));
    await settle();
    assert.equal(server.asked("send").length, 1);
    server.socket.taken.push(1);
    take();
    await settle();
    assert.deepEqual(seqs(server), [1, 2]);
    assert.deepEqual(
      server.asked("send")[1].body.split("\n").map((line) => JSON.parse(line).rpc.method),
      ["Two", "Three", "Four"],
    );
    for (const each of calls) each.catch(() => {});
  });

  test(`${kind}: a POST has at most 64 units, and no more bytes than the server takes`, async (t) => {
    const { rt, server } = await over(t, kind);
    for (let n = 0; n < 200; n++) rt.call("Tiny").catch(() => {});
    for (let n = 0; n < 5; n++) rt.call("Big", "x".repeat(9000)).catch(() => {});
    await settle();
    await settle();
    const bodies = server.asked("send").map(({ body }) => body);
    assert.ok(bodies.length >= 8);
    for (const body of bodies) {
      assert.ok(body.split("\n").length <= 64);
      assert.ok(body.length <= 16384);
    }
    assert.equal(server.socket.got("rpc").length, 205);
    assert.deepEqual(seqs(server), [...bodies.keys()].map((n) => n + 1));
  });

  for (const [name, answers, delays] of [
    ["503", [[503, 2]], [2]],
    ["429", [[429, 1]], [1]],
    ["502", [502, 502], [0.25, 0.5]],
    ["no answer", ["down", "down", "down"], [0.25, 0.5, 1]],
  ]) {
    test(`${kind}: a POST that is answered with ${name} is sent again, the same, under the same number`, async (t) => {
      const { rt, server, clock } = await over(t, kind);
      server.rules.send = [...answers, undefined];
      const call = watch(rt.call("Any"));
      await settle();
      rt.call("Later").catch(() => {});
      for (const [n, delay] of delays.entries()) {
        await clock.advance(delay - 0.02);
        assert.equal(server.asked("send").length, n + 1, "too early");
        await clock.advance(0.02);
      }
      assert.deepEqual(seqs(server), [...answers.map(() => 1), 1, 2]);
      const bodies = server.asked("send").map(({ body }) => body);
      assert.equal(new Set(bodies.slice(0, -1)).size, 1);
      assert.equal(call.value, null);
      assert.equal(rt.state, "connected");
    });
  }

  test(`${kind}: a POST whose answer was lost is repeated, and carried out once`, async (t) => {
    const { rt, server, clock } = await over(t, kind);
    server.rules.send = [
      ({ body, headers }) => {
        server.socket.taken.push(Number(headers["RT-Seq"]));
        server.socket.receive(body);
        return "down";
      },
      undefined,
    ];
    const call = watch(rt.call("Once"));
    await clock.advance(0.3);
    assert.deepEqual(seqs(server), [1, 1]);
    assert.equal(server.socket.got("rpc").length, 1);
    assert.equal(call.value, null);
  });

  test(`${kind}: a POST that hangs is given up after ten seconds and sent again`, async (t) => {
    const { rt, server, clock } = await over(t, kind);
    server.rules.send = ["hang", undefined];
    const call = watch(rt.call("Any"));
    await clock.advance(10.3);
    assert.deepEqual(seqs(server), [1, 1]);
    assert.equal(call.value, null);
  });

  test(`${kind}: without a way up for twenty seconds it is lost; paused for longer it is not`, async (t) => {
    const { rt, server, clock } = await over(t, kind);
    server.rules.send = [[429, 5]];
    rt.call("Any").catch(() => {});
    for (let n = 0; n < 8; n++) {
      await clock.advance(5);
      server.socket.say({});
    }
    assert.equal(rt.state, "connected");
    server.rules.send = [500];
    for (let n = 0; n < 6; n++) {
      await clock.advance(5);
      if (rt.state === "connected") server.socket.say({});
    }
    assert.match(rt.lastFailure, /send with 500/);
  });

  test(`${kind}: 410 is a loss: it comes back, with the commands and the resume token`, async (t) => {
    const { rt, server, clock } = await over(t, kind);
    server.rules.send = [410, undefined];
    const call = watch(rt.call("Any"));
    await settle();
    assert.equal(rt.state, "waiting");
    await clock.advance(2);
    assert.equal(rt.state, "connected");
    assert.equal(rt.transport, kind);
    assert.equal(server.sockets.length, 2);
    assert.equal(call.value, null);
    assert.equal(seqs(server).at(-1), 1); // it counts anew
  });

  test(`${kind}: closing says goodbye with a request that outlives the page`, async (t) => {
    const { rt, server } = await over(t, kind);
    rt.close();
    await settle();
    const [goodbye] = server.asked("send", "POST");
    assert.equal(goodbye.keepalive, true);
    assert.equal(goodbye.body, '{"bye":{}}');
    assert.equal(server.socket.ended, "goodbye");
    assert.deepEqual(server.asked("send", "DELETE"), []);
    assert.ok(server.asked(kind).every(({ signal }) => signal.aborted || kind === "poll"));
  });

  test(`${kind}: what was said before a goodbye goes with it, behind what is under way`, async (t) => {
    const { rt, server } = await over(t, kind);
    let answer;
    server.rules.send = [() => new Promise((resolve) => (answer = () => resolve(server.response(204)))), undefined];
    const first = watch(rt.call("First"));
    await settle();
    const second = watch(rt.call("Second"));
    await settle();
    rt.close();
    await settle();
    assert.deepEqual(
      server.asked("send", "POST").map(({ keepalive, body }) => [keepalive ?? false, body.split("\n").length]),
      [
        [false, 1],
        [true, 2],
      ],
    );
    assert.deepEqual(seqs(server), [1, 2]);
    const { commands, ended } = server.socket;
    assert.deepEqual(
      commands.slice(1).map((command) => command.rpc?.method ?? "bye"),
      ["Second", "bye"],
    );
    assert.equal(ended, "goodbye");
    const open = () => server.asked("send", "POST").every(({ signal }) => !signal?.aborted);
    assert.ok(open(), "what is under way is not given up");
    answer();
    await settle();
    assert.ok(first.error && second.error);
  });

  test(`${kind}: of what is too much for one request the goodbye goes alone`, async (t) => {
    const { rt, server } = await over(t, kind);
    server.rules.send = [() => new Promise(() => {}), undefined];
    for (let n = 0; n < 200; n++) watch(rt.call("Many"));
    await settle();
    rt.close();
    await settle();
    assert.equal(server.asked("send", "POST").length, 1);
    const [goodbye] = server.asked("send", "DELETE");
    assert.equal(goodbye.keepalive, true);
    assert.equal(server.socket.ended, "goodbye");
  });

  test(`${kind}: what the server says before it ends counts: a window, or never again`, async (t) => {
    const { rt, server, clock } = await over(t, kind);
    server.rules.poll = [410, undefined];
    server.socket.push({ disconnect: { code: 3001, reason: "draining", rt: { min: 40, max: 60 } } });
    if (kind === "sse") server.socket.stream.end();
    await clock.advance(1);
    assert.equal(rt.lastFailure, "draining (code 3001)");
    await clock.advance(48);
    assert.equal(rt.state, "waiting");
    await clock.advance(3);
    assert.equal(rt.state, "connected");
    server.rules.poll = [410];
    server.socket.push({ disconnect: { code: 4501, reason: "revoked" } });
    if (kind === "sse") server.socket.stream.end();
    await settle();
    assert.equal(rt.closed.code, 4501);
  });

  test(`${kind}: connect refused in band is told as over a WebSocket`, async (t) => {
    const { rt, server } = over(t, kind, { connected: false });
    server.on("connect", new Refuse(101, "not you"));
    const { error } = await fate(rt.connected());
    assert.ok(error instanceof ConnectionClosed);
    assert.equal(error.code, 3500);
  });

  for (const [status, code] of [
    [401, 3500],
    [403, 3507],
  ]) {
    test(`${kind}: ${status} is a verdict`, async (t) => {
      const { rt, server } = over(t, kind, { connected: false, transports: [kind, "websocket"] });
      server.rules[kind] = [status];
      const { error } = await fate(rt.connected());
      assert.equal(error.code, code);
      assert.equal(server.sockets.length, 0);
    });
  }

  test(`${kind}: 503 with a time is waited for`, async (t) => {
    const { rt, server, clock } = over(t, kind, { connected: false, transports: [kind, "websocket"] });
    server.rules[kind] = [[503, 20], undefined];
    await clock.advance(19.9);
    assert.equal(rt.state, "waiting");
    await clock.advance(10.2);
    assert.equal(rt.transport, kind);
  });

  test(`${kind}: a server that cannot be made sense of is lost, not obeyed`, async (t) => {
    const { rt, server, clock } = await over(t, kind);
    server.socket.say("not an object");
    await settle();
    assert.match(rt.lastFailure, /cannot take/);
    await clock.advance(2);
    assert.equal(rt.state, "connected");
  });

  test(`${kind}: nothing goes on behind a connection that is gone`, async (t) => {
    const { rt, server, clock } = await over(t, kind);
    server.rules.send = [503];
    rt.call("Any").catch(() => {});
    await settle();
    await server.socket.drop();
    if (kind === "poll") await clock.advance(36);
    const before = server.requests.length + (rt.state === "connected" ? 1 : 0);
    rt.close();
    await clock.advance(100);
    assert.equal(server.requests.length, before);
  });
}

// The stream.

test("sse: pings are answered, and silence is the server's death", async (t) => {
  const { rt, server, clock } = await over(t, "sse");
  await clock.advance(20);
  server.socket.say({});
  await settle();
  assert.equal(server.socket.pongs, 1);
  await clock.advance(34.9);
  assert.equal(rt.state, "connected");
  await clock.advance(0.2);
  assert.match(rt.lastFailure, /nothing heard/);
});

test("sse: comments are signs of life", async (t) => {
  const { rt, server, clock } = await over(t, "sse");
  for (let n = 0; n < 5; n++) {
    await clock.advance(30);
    server.socket.stream.add(":\n\n");
    await settle();
  }
  assert.equal(rt.state, "connected");
  assert.equal(server.socket.pongs, 0);
});

test("sse: what arrives in any pieces is put together, characters too", async (t) => {
  const { rt, server } = await over(t, "sse");
  server.on("subscribe", joined("e", 0));
  const room = rt.join(CHANNEL);
  const items = recorded(room);
  await room.joined();
  const units = [1, 2].map((offset) => ({ push: { channel: CHANNEL, pub: { data: `ä😀${offset}`, offset } } }));
  const text = `:\n\n${units.map((unit) => `data: ${JSON.stringify(unit)}\n`).join("")}\n`;
  for (const byte of new TextEncoder().encode(text)) server.socket.stream.bytes(new Uint8Array([byte]));
  await settle();
  assert.deepEqual(items, ['"ä😀1"', '"ä😀2"']);
});

test("sse: half a unit at the end is not taken", async (t) => {
  const { rt, server } = await over(t, "sse");
  server.socket.stream.add('data: {"push":{"disconnect":{"code":4501,"reason":"no"}}}');
  server.socket.stream.end();
  await settle();
  assert.equal(rt.state, "waiting");
  assert.match(rt.lastFailure, /ended/);
});

test("sse: a stream that is no event stream is none", async (t) => {
  const { rt, server } = over(t, "sse", { connected: false });
  server.rules.sse = [() => server.response(200, "<html>", { "Content-Type": "text/html" })];
  await settle();
  assert.equal(rt.state, "waiting");
  assert.match(rt.lastFailure, /200/);
});

test("sse: slow to authenticate is not mute, and not a failure of the transport", async (t) => {
  const { rt, server, clock } = over(t, "sse", { connected: false, transports: ["sse", "poll"] });
  server.on("connect", MUTE, undefined);
  await clock.advance(9.9);
  assert.equal(rt.state, "connecting");
  await clock.advance(2);
  assert.equal(rt.transport, "sse");
});

// Polls.

test("poll: batches are acknowledged in order, and an empty answer uses up no number", async (t) => {
  const { rt, server } = await over(t, "poll");
  await server.socket.nothing();
  rt.on("message", () => {});
  server.socket.push({ message: { data: 1 } });
  await settle();
  server.socket.push({ message: { data: 2 } });
  await settle();
  await server.socket.nothing();
  assert.deepEqual(
    server.asked("poll", "GET").map(({ url }) => url.searchParams.get("ack")),
    ["1", "1", "2", "3", "3"],
  );
});

test("poll: a batch whose answer was lost comes again, and is handed out once", async (t) => {
  const { rt, server, clock } = await over(t, "poll");
  const heard = [];
  rt.on("message", ({ data }) => heard.push(data));
  server.rules.poll = [
    (_, url) => server.socket.poll(Number(url.searchParams.get("ack"))).then(() => server.fetch("http://x/down")),
    undefined,
  ];
  server.rules.down = ["down"];
  await server.socket.nothing(); // ends the poll that is under way; the next is the one that is lost
  server.socket.push({ message: { data: "once" } });
  await settle();
  assert.deepEqual(heard, []);
  server.socket.push({ message: { data: "then" } });
  await clock.advance(1);
  assert.deepEqual(heard, ["once", "then"]);
});

test("poll: the polls are the heartbeat; one that hangs for 35 s is the server's death", async (t) => {
  const { rt, server, clock } = await over(t, "poll");
  for (let n = 0; n < 4; n++) {
    await clock.advance(25);
    await server.socket.nothing();
  }
  assert.equal(rt.state, "connected");
  assert.deepEqual(server.socket.got("ping"), []);
  await clock.advance(34.9);
  assert.equal(rt.state, "connected");
  await clock.advance(0.2);
  assert.match(rt.lastFailure, /nothing heard/);
  await clock.advance(2);
  assert.equal(rt.state, "connected");
});

test("poll: after sleep the poll is not trusted: asked by POST, and aborted when there is no answer", async (t) => {
  const { rt, server, clock } = await over(t, "poll");
  server.on("ping", MUTE);
  await clock.sleep(3600);
  await clock.advance(10);
  assert.equal(server.socket.got("ping").length, 1);
  await clock.advance(5.1);
  assert.equal(rt.state, "waiting");
  assert.ok(server.asked("poll", "GET").every(({ signal }) => signal.aborted));
});

test("poll: something on the way that cuts each request after five seconds does not end the session", async (t) => {
  const { rt, server, clock } = await over(t, "poll");
  for (let n = 0; n < 30; n++) {
    await clock.advance(5);
    server.cut();
    await settle();
  }
  assert.equal(rt.state, "connected");
  assert.equal(server.sockets.length, 1);
  const heard = [];
  rt.on("message", ({ data }) => heard.push(data));
  server.socket.push({ message: { data: 1 } });
  await clock.advance(1);
  assert.deepEqual(heard, [1]);
});

test("poll: a number out of turn is not believed", async (t) => {
  const { rt, server } = await over(t, "poll");
  server.rules.poll = [() => server.response(200, '{"batch":7,"replies":[{}]}'), undefined];
  await server.socket.nothing();
  assert.equal(rt.state, "waiting");
  assert.match(rt.lastFailure, /batch 7 after 1/);
});

test("poll: slow to authenticate is not mute while ready answers", async (t) => {
  const { rt, server, clock } = over(t, "poll", { connected: false, transports: ["poll", "sse"] });
  server.on("connect", MUTE, undefined);
  await clock.advance(9.9);
  assert.equal(rt.state, "connecting");
  await clock.advance(2);
  assert.equal(rt.transport, "poll");
});

test("a Retry-After beyond reason is obeyed for an hour, and one that makes no sense not at all", async (t) => {
  for (const [value, after] of [
    [10_000_000, 3600 * 1.5],
    ["Infinity", 3600 * 1.5],
    [-5, 2],
    ["soon", 2],
  ]) {
    const { rt, server, clock } = client(t, { connected: false, transports: ["sse"] });
    server.rules.sse = [[503, value], undefined];
    await settle();
    assert.equal(rt.state, "waiting");
    await clock.advance(after);
    assert.equal(rt.state, "connected", `${value}`);
  }
});
