// A scripted server, a clock and a page, all in memory: nothing here waits for real time.

import assert from "node:assert/strict";
import { connect } from "../../../src/rtkit/browser/client.js";
import "../../../src/rtkit/browser/http.js"; // so that loading them takes no time
import "../../../src/rtkit/browser/people.js";

/** Let everything that is ready run: microtasks, and what they start, modules that were loaded. No time passes. */
export async function settle() {
  for (let n = 0; n < 3; n++) await new Promise((resolve) => setImmediate(resolve));
}

/** Time by hand. `monotonic` stands still while the machine sleeps, `wall` does not. */
export class ManualClock {
  #monotonic = 1000;
  #wall = 1_795_382_168;
  #timers = new Map();
  #ids = 0;

  monotonic = () => this.#monotonic;
  wall = () => this.#wall;

  setTimeout = (callback, seconds) => {
    assert.ok(seconds >= 0 && seconds < 2 ** 31 / 1000, `a timer of ${seconds} s`);
    this.#timers.set(++this.#ids, { due: this.#monotonic + seconds, callback });
    return this.#ids;
  };

  clearTimeout = (id) => void this.#timers.delete(id);

  get timers() {
    return this.#timers.size;
  }

  /** Time passes, timers come when they are due. */
  async advance(seconds) {
    const end = this.#monotonic + seconds;
    await settle();
    for (let next; (next = this.#next()) && next.due <= end;) {
      this.#pass(Math.max(0, next.due - this.#monotonic));
      this.#run(next);
      await settle();
    }
    this.#pass(end - this.#monotonic);
    await settle();
  }

  /** The machine sleeps: the monotonic clock stands still, and no timer comes. */
  async sleep(seconds) {
    this.#wall += seconds;
    await settle();
  }

  /** Time passes, but no timer comes: a throttled page. */
  pass(seconds) {
    this.#pass(seconds);
  }

  /** Time passes, and timers come only at its end: a blocked loop, a page that was throttled or frozen. */
  async stall(seconds) {
    this.#pass(seconds);
    for (const timer of [...this.#timers.values()].sort((a, b) => a.due - b.due)) {
      if (timer.due <= this.#monotonic && [...this.#timers.values()].includes(timer)) this.#run(timer);
    }
    await settle();
  }

  /** Somebody sets the wall clock. */
  set(seconds) {
    this.#wall += seconds;
  }

  #next() {
    return [...this.#timers.values()].sort((a, b) => a.due - b.due)[0];
  }

  #run(timer) {
    for (const [id, each] of this.#timers) if (each === timer) this.#timers.delete(id);
    timer.callback();
  }

  #pass(seconds) {
    this.#monotonic += seconds;
    this.#wall += seconds;
  }
}

/** What a page keeps. */
export class Storage {
  removeItem(name) {
    delete this[name];
  }
}

/** A page: a window, a document and a navigator, as far as the client looks. */
export class FakePage extends EventTarget {
  document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  navigator = { onLine: true };
  localStorage = new Storage();
  listeners = 0;

  constructor() {
    super();
    for (const target of [this, this.document]) {
      const { addEventListener, removeEventListener } = target;
      target.addEventListener = (...args) => (this.listeners++, addEventListener.apply(target, args));
      target.removeEventListener = (...args) => (this.listeners--, removeEventListener.apply(target, args));
    }
  }

  say(name) {
    this.dispatchEvent(new Event(name));
  }

  async goOffline() {
    this.navigator.onLine = false;
    this.say("offline");
    await settle();
  }

  async goOnline() {
    this.navigator.onLine = true;
    this.say("online");
    await settle();
  }

  async hide() {
    this.document.visibilityState = "hidden";
    this.document.dispatchEvent(new Event("visibilitychange"));
    await settle();
  }

  async show() {
    this.document.visibilityState = "visible";
    this.document.dispatchEvent(new Event("visibilitychange"));
    await settle();
  }
}

/** Answer a command with an error. */
export class Refuse {
  constructor(code, message = "no", more = {}) {
    this.error = { code, message, ...more };
  }
}

/** Do not answer. */
export const MUTE = Symbol("mute");

/** One WebSocket, seen from the server. */
export class FakeSocket {
  readyState = 0;
  frames = [];
  commands = [];
  pongs = 0;
  /** Whether, and with what, the client closed it. */
  closedBy = null;
  #server;

  constructor(server, url) {
    this.#server = server;
    this.url = url;
    server.sockets.push(this);
    queueMicrotask(() => {
      if (this.readyState !== 0) return;
      if (server.refuses) this.drop();
      else if (server.opens) this.open();
    });
  }

  // The client's side.

  send(frame) {
    assert.equal(this.readyState, 1, "sent on a socket that is not open");
    assert.equal(typeof frame, "string");
    this.frames.push(frame);
    for (const line of frame.split("\n")) {
      const command = JSON.parse(line);
      if (!Object.keys(command).length) this.pongs += 1;
      else {
        this.commands.push(command);
        queueMicrotask(() => this.#server.handle(this, command));
      }
    }
  }

  close(code, reason = "") {
    assert.ok(code === 1000 || (code >= 3000 && code <= 4999), `a browser does not close with ${code}`);
    this.closedBy ??= { code, reason };
    this.readyState = 3;
  }

  // The test's side.

  open() {
    this.readyState = 1;
    this.onopen({});
  }

  /** What the client sent, by method. */
  got(method) {
    return this.commands.filter((command) => method in command).map((command) => command[method]);
  }

  raw(data) {
    if (this.readyState === 1) this.onmessage({ data });
  }

  say(...units) {
    this.raw(units.map((unit) => JSON.stringify(unit)).join("\n"));
  }

  push(push) {
    this.say({ push });
  }

  pub(channel, offset, data = offset, more = {}) {
    this.push({ channel, pub: { data, offset: offset || undefined, ...more } });
  }

  /** The pipe ends. */
  async drop(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
    await settle();
  }
}

/** A response, as far as the client looks. */
class FakeResponse {
  /** @param {number} status @param {string | FakeStream} body */
  constructor(status, body = "", headers = {}) {
    this.status = status;
    this.body = body instanceof FakeStream ? body : null;
    this.text = async () => body;
    this.headers = new Headers(headers);
  }
}

/** A body that goes on: what is read from it, and its end. */
class FakeStream {
  #chunks = [];
  #wanted = null;

  constructor(signal) {
    signal.addEventListener("abort", () => this.fail(signal.reason));
  }

  add(text) {
    this.#put({ done: false, value: new TextEncoder().encode(text) });
  }

  /** Bytes as they are. */
  bytes(value) {
    this.#put({ done: false, value });
  }

  end() {
    this.#put({ done: true });
  }

  fail(error = new TypeError("network error")) {
    this.#put(error);
  }

  cancelled = false;
  async cancel() {
    this.cancelled = true;
  }

  getReader() {
    return {
      read: async () => {
        if (!this.#chunks.length) await new Promise((resolve) => (this.#wanted = resolve));
        const chunk = this.#chunks.shift();
        if (chunk instanceof Error) throw chunk;
        return chunk;
      },
    };
  }

  #put(chunk) {
    this.#chunks.push(chunk);
    this.#wanted?.();
    this.#wanted = null;
  }
}

/** One session over HTTP, seen from the server; a test uses it like a socket. */
export class FakeSession {
  frames = [];
  commands = [];
  pongs = 0;
  /** The numbers of the POSTs that were taken. */
  taken = [];
  /** How the client ended it: "goodbye", or by going away. */
  ended = null;
  session = null;
  #batch = 0;
  #units = [];
  #waiting = null;
  #last = null;

  constructor(server, kind, signal) {
    this.server = server;
    this.kind = kind;
    this.stream = kind === "sse" ? new FakeStream(signal) : null;
    this.session = `n1.${kind}-${server.sockets.length}`;
    server.sockets.push(this);
  }

  receive(frame) {
    this.frames.push(frame);
    for (const line of frame.split("\n")) {
      const command = JSON.parse(line);
      if (!Object.keys(command).length) this.pongs += 1;
      else {
        this.commands.push(command);
        queueMicrotask(() => this.server.handle(this, command));
      }
    }
  }

  got(method) {
    return this.commands.filter((command) => method in command).map((command) => command[method]);
  }

  say(...units) {
    if (this.stream) this.stream.add(`${units.map((unit) => `data: ${JSON.stringify(unit)}\n`).join("")}\n`);
    else {
      this.#units.push(...units);
      this.#answer();
    }
  }

  push(push) {
    this.say({ push });
  }

  pub(channel, offset, data = offset, more = {}) {
    this.push({ channel, pub: { data, offset: offset || undefined, ...more } });
  }

  /** A poll has come. */
  poll(ack) {
    assert.ok(!this.#waiting, "two polls at once");
    if (ack === this.#batch - 1) return this.#last;
    assert.equal(ack, this.#batch);
    return new Promise((resolve) => {
      this.#waiting = resolve;
      this.#answer();
    });
  }

  /** Answer the poll, whether there is something to say or not. */
  async nothing() {
    this.#waiting(new FakeResponse(200, JSON.stringify({ batch: this.#batch, replies: [] })));
    this.#waiting = null;
    await settle();
  }

  /** The connection that the poll came in by is gone. */
  gone() {
    this.#waiting = null;
  }

  #answer() {
    if (!this.#waiting || !this.#units.length) return;
    this.#batch += 1;
    this.#last = new FakeResponse(200, JSON.stringify({ batch: this.#batch, replies: this.#units.splice(0) }));
    this.#waiting(this.#last);
    this.#waiting = null;
  }

  get polled() {
    return this.#waiting !== null;
  }

  async drop() {
    if (this.stream) this.stream.fail();
    this.ended = "gone";
    await settle();
  }
}

export class FakeServer {
  sockets = [];
  /** Whether sockets open by themselves. */
  opens = true;
  /** Or are refused. */
  refuses = false;
  /** Whether streams say something when they are open. */
  comments = true;
  /** The URLs and options of all requests. */
  requests = [];
  /**
   * What the next requests to a path's last segment are answered with, the last one again and again: a status,
   * [status, Retry-After], "down", "hang", or a function of (options, url) that answers a response; undefined: in order.
   * @type {Record<string, any[]>}
   */
  rules = {};
  #cuts = [];
  /** The next answers by method: values, functions of (body, socket), `Refuse` or `MUTE`; the last one stays. */
  answers = new Map();
  welcome = { client: "c1", version: "test", ping: 25, pong: true, rt: { v: 1 } };

  constructor() {
    const server = this;
    this.WebSocket = class extends FakeSocket {
      constructor(url) {
        super(server, url);
      }
    };
  }

  get socket() {
    return this.sockets.at(-1);
  }

  fetch = async (url, options = {}) => {
    url = new URL(url);
    const name = url.pathname.split("/").at(-1);
    this.requests.push({ name, url, ...options });
    options.signal?.throwIfAborted();
    const rules = this.rules[name] ?? [];
    let rule = rules.length > 1 ? rules.shift() : rules[0];
    if (typeof rule === "function") rule = rule(options, url);
    if (rule === "down") throw new TypeError("fetch failed");
    const aborted = new Promise((_, reject) => {
      options.signal?.addEventListener("abort", () => reject(options.signal.reason));
      this.#cuts.push(() => reject(new TypeError("network error")));
    });
    aborted.catch(() => {});
    if (rule === "hang") return aborted;
    if (typeof rule === "number") return new FakeResponse(rule);
    if (Array.isArray(rule)) return new FakeResponse(rule[0], "", { "Retry-After": String(rule[1]) });
    if (rule instanceof FakeResponse || rule instanceof Promise) return rule;
    return Promise.race([this.#serve(name, url, options), aborted]);
  };

  /** Requests under way are cut. */
  cut() {
    for (const cut of this.#cuts.splice(0)) cut();
    for (const session of this.sockets) session.gone?.();
  }

  /** A response of the test's own making. */
  response(...args) {
    return new FakeResponse(...args);
  }

  /** What was asked of an endpoint. */
  asked(name, method) {
    return this.requests.filter((each) => each.name === name && (!method || (each.method ?? "GET") === method));
  }

  async #serve(name, url, { method = "GET", body, headers = {}, signal }) {
    if (name === "ready") return new FakeResponse(204);
    const shown = new Headers(headers).get("RT-Session");
    const session = this.sockets.find((each) => each.session && each.session === shown);
    if (method === "POST" && (name === "sse" || name === "poll")) {
      assert.equal(shown, null);
      const opened = new FakeSession(this, name, signal);
      if (opened.stream && this.comments) opened.stream.add(":\n\n");
      opened.receive(body);
      if (opened.stream) return new FakeResponse(200, opened.stream, { "Content-Type": "text/event-stream" });
      return opened.poll(0);
    }
    if (!session || session.ended) return new FakeResponse(410);
    if (method === "DELETE") {
      session.ended = "goodbye";
      return new FakeResponse(204);
    }
    if (name === "send") {
      const seq = Number(new Headers(headers).get("RT-Seq"));
      if (session.taken.includes(seq)) return new FakeResponse(204);
      const last = body.endsWith('{"bye":{}}');
      if (!last) assert.equal(seq, session.taken.length + 1);
      session.taken.push(seq);
      session.receive(body);
      if (last) session.ended = "goodbye";
      return new FakeResponse(204);
    }
    assert.deepEqual([name, method], ["poll", "GET"]);
    signal.addEventListener("abort", () => session.gone());
    return session.poll(Number(url.searchParams.get("ack")));
  }

  /** Answer `method` with these, one after another; the last one again and again. */
  on(method, ...answers) {
    this.answers.set(method, answers);
  }

  handle(socket, command) {
    const { id, ...rest } = command;
    const [method] = Object.keys(rest);
    const script = this.answers.get(method);
    let answer = script && (script.length > 1 ? script.shift() : script[0]);
    if (typeof answer === "function") answer = answer(rest[method], socket);
    if (answer === undefined) answer = method === "connect" ? this.welcomeOf(socket) : {};
    if (answer === MUTE || !id) return;
    socket.say(answer instanceof Refuse ? { id, error: answer.error } : { id, [method]: answer });
  }

  /** The answer to `connect`. */
  welcomeOf({ kind, session }) {
    if (!session) return this.welcome;
    return { ...this.welcome, session, node: "n1", ...(kind === "poll" ? { pong: false } : {}) };
  }
}

/** A join reply of a room with history. */
export const joined = (epoch, offset, more = {}) => ({ recoverable: true, positioned: true, epoch, offset, ...more });

/** A publication as it stands in a reply. */
export const pub = (offset, data = offset, more = {}) => ({ data, offset, ...more });

/**
 * A client with all of the above, that may use WebSockets only unless said otherwise. It is closed when the test is over, and must leave nothing behind.
 * @param {import("node:test").TestContext} t
 */
export function client(t, { connected = true, url = "http://example.org/rt", ...options } = {}) {
  const server = options.server ?? new FakeServer();
  const clock = options.clock ?? new ManualClock();
  const page = options.page ?? new FakePage();
  const chance = { value: 0.5 };
  const { WebSocket } = server;
  page.fetch = server.fetch;
  const given = { transports: ["websocket"], WebSocket, ...options, clock, page };
  const rt = connect(url, { random: () => chance.value, ...given });
  const states = [];
  const errors = [];
  rt.on("state", (state) => states.push(state));
  rt.on("error", (error) => errors.push(error));
  t.after(() => {
    rt.close();
    assert.ok(!page.listeners, "page listeners are left");
    assert.ok(clock.timers <= 0 || options.timersLeft, `${clock.timers} timers are left`);
  });
  const it = { rt, server, clock, page, chance, states, errors };
  return connected
    ? rt
        .connected()
        .then(() => settle())
        .then(() => it)
    : it;
}

/** What a room hands out, as a list of words: "1" for a message with the data 1, "gap 3-5 trimmed e". */
export function recorded(room) {
  const items = [];
  room.on("message", (message) => items.push(word(message)));
  room.on("gap", (gap) => items.push(word(gap)));
  return items;
}

export const word = (item) =>
  "reason" in item ? `gap ${item.from}-${item.to} ${item.reason} ${item.epoch}` : JSON.stringify(item.data);

/** A promise's fate so far: `value` or `error`, as soon as there is one. */
export function watch(promise) {
  const fate = { pending: true };
  promise.then(
    (value) => Object.assign(fate, { value, pending: false }),
    (error) => Object.assign(fate, { error, pending: false }),
  );
  return fate;
}

/** Likewise, once everything that is ready has run. */
export async function fate(promise) {
  const found = watch(promise);
  await settle();
  return found;
}
