/**
 * The transports of rtkit's browser SDK over plain HTTP, for where WebSockets do not get through; and which to use.
 * client.js loads this module when it needs it. Nothing for applications.
 *
 * The theory
 * ==========
 * A pipe looks like a WebSocket to client.js: `onopen`, `onmessage`, `onclose`, `send`, `close`. It is "open" at once;
 * the first frame it is given is the `connect` command, and the body of the request that opens the session.
 *
 * *Down.* `sse`: one response that goes on. Each line `data: …` is a unit. Its first byte, a comment, proves that
 * nobody on the way holds the response back; without it for `MUTE` seconds the pipe fails. `poll`: each response is a
 * batch with a number, and the next poll says up to which we have taken them; so a poll that failed is asked again,
 * and nothing is lost or doubled.
 *
 * *Up.* Units go out by POST, one request at a time, each with the next number. What may not have been taken is sent
 * again under the same number, and the server does it once. What gathers meanwhile goes into the next request.
 *
 * *End.* `close(1000)` tells the server that the session is over, with a request that outlives the page: the next POST,
 * with what waits and the goodbye, so that nothing is overtaken; or DELETE, where that would be too much. Any other
 * code just goes away, and the session waits for who resumes it. `onclose` is a loss (1006), or a verdict of the
 * server's (401, 403); with `window` it is the time to come back.
 *
 * Source: docs/reference/protocol.md. Times are in seconds.
 *
 * @module
 */

/** Without a word for so long a stream does not work here; a first poll neither, unless `ready` is answered. */
const MUTE = 3;

/** A server that takes longer than this to say that it is ready is slow, and no transport is to blame. */
const SLOW = 1;
/** For requests that are answered at once. */
const PATIENCE = 10;
/** For a poll, which the server keeps for 25. */
const POLL = 35;
/** Asked again in vain for so long, the session is given up. */
const GIVE_UP = 20;
/** Before it is asked again: doubles from the one to the other. */
const DELAY = 0.25;
const LONGEST_DELAY = 4;
/** A poll that lived this long was cut by something on the way that likes short requests. */
const LONG = 2;
/** That a response may ask for. */
const LONGEST_WAIT = 3600;
/** How long a choice is remembered. */
const REMEMBERED = 600;
/** In one POST: units, as the server takes them, and bytes, unless it is one unit. */
const UNITS = 64;
const BYTES = 16384;

const GOODBYE = 1000;
const BYE = '{"bye":{}}';
const LOST = 1006;
/** Close codes for statuses that are verdicts. @type {Record<number, number>} */
const VERDICTS = { 401: 3500, 403: 3507 };

const utf8 = new TextEncoder();

/**
 * Origins with a hub that lets in all others by "*": a browser keeps its answers to itself when cookies went along, as
 * they do everywhere else.
 * @type {Set<string>}
 */
const cookieless = new Set();

/**
 * @typedef {object} Clock See client.js.
 * @property {() => number} wall
 * @property {() => number} monotonic
 * @property {(callback: () => void, seconds: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 */

/**
 * What there is to choose from, and what is chosen. client.js makes it; nothing for applications.
 * @typedef {object} Choice
 * @property {string} url Of the hub's WebSocket.
 * @property {string[]} transports
 * @property {boolean} receiveOnly
 * @property {any} WebSocket
 * @property {Clock} clock
 * @property {any} page Has `fetch` and `localStorage`.
 * @property {boolean} plain A WebSocket will do, and this module is not needed to open it.
 * @property {string} way The one that is chosen.
 * @property {string} [kept] One that is not the first of them, and until when it is preferred, on the wall clock.
 * @property {number} mute Seconds in which a WebSocket has to say something.
 */

/**
 * When to ask again, as a response says; null when it does not. What is on the way may say anything.
 * @param {any} answer
 * @returns {number | null}
 */
const retryAfter = ({ headers }) => Math.max(0, Math.min(Number(headers.get("retry-after")), LONGEST_WAIT)) || null;

/** The window in which to come back. @param {any} answer @returns {[number, number] | null} */
function windowOf(answer) {
  const seconds = retryAfter(answer);
  return seconds ? [seconds, seconds * 1.5] : null;
}

/** @param {string} url Of the hub's WebSocket. @param {string} name @param {string} [query] */
function beside(url, name, query) {
  const found = new URL(url.replace(/^ws/, "http"));
  found.pathname = found.pathname.replace(/\w+$/, name);
  if (query) found.search += `${found.search ? "&" : "?"}${query}`;
  return found;
}

/** What both transports have. */
class Pipe {
  /** @type {() => void} */ onopen = () => {};
  /** @type {(event: { data: string }) => void} */ onmessage = () => {};
  /** @type {(event: { code: number, reason: string, window: [number, number] | null }) => void} */ onclose = () => {};

  over = false;
  /** @type {RequestCredentials} */
  #credentials = "include";
  #url;
  #page;
  #clock;
  #begun = false;
  /** Shown with every request. */
  #session = "";
  /** Bytes in one request, unless it is one unit. */
  #most = BYTES;
  /** Units that wait to be sent. @type {string[]} */
  #units = [];
  #seq = 0;
  #posting = false;
  /** The latest request that was sent. @type {Promise<any> | null} */
  #flying = null;
  /** Requests under way. @type {Set<AbortController>} */
  #requests = new Set();
  /** @type {Set<any>} */
  #timers = new Set();

  /** @param {Choice} choice */
  constructor({ url, page, clock }) {
    this.#url = url;
    this.#page = page;
    this.#clock = clock;
    if (cookieless.has(this.#origin)) this.#credentials = "same-origin";
    queueMicrotask(() => this.over || this.onopen());
  }

  // What client.js calls.

  /** Characters that wait to be sent. */
  get bufferedAmount() {
    return this.#units.reduce((sum, unit) => sum + unit.length, 0);
  }

  /** @param {string} frame */
  send(frame) {
    if (this.#begun) {
      this.#units.push(...frame.split("\n"));
      this.#post();
    } else {
      this.#begun = true;
      this.open(frame);
    }
  }

  /** @param {number} code */
  close(code) {
    if (this.over) return;
    if (code !== GOODBYE || !this.#session) {
      this.#stop();
      return;
    }
    this.over = true;
    this.#calm();
    // What is open stays so until then: a server that sees it go first would take that for a loss.
    const gone = () => this.#stop();
    Promise.allSettled([this.#flying, this.#goodbye()]).then(gone);
  }

  #goodbye() {
    const units = this.#units.splice(0);
    const body = units.join("\n");
    const whole = body.endsWith(BYE) && units.length <= UNITS && utf8.encode(body).length <= this.#most;
    const said = whole ? { method: "POST", body, headers: { "RT-Seq": `${this.#seq + 1}` } } : { method: "DELETE" };
    return this.#ask("send", { ...said, keepalive: true });
  }

  // What the transports are made of.

  get #origin() {
    return beside(this.#url, "").origin;
  }

  /** Begin the session with this frame. @param {string} _frame */
  open(_frame) {}

  /** @param {string} frame Empty for a sign of life. */
  hear(frame) {
    if (this.over) return;
    if (frame && !this.#session) this.#introduced(frame);
    this.onmessage({ data: frame });
  }

  /** The answer to `connect` has the session. @param {string} frame */
  #introduced(frame) {
    try {
      for (const line of frame.split("\n")) {
        const { connect } = JSON.parse(line);
        if (!connect) continue;
        this.#session = String(connect.session ?? "");
        this.#most = Math.min(BYTES, connect.rt?.limits?.unit || BYTES);
      }
    } catch {} // client.js says what is wrong with it
  }

  /** It is over, not by us. @param {string} reason @param {number} [code] @param {[number, number] | null} [window] */
  end(reason, code = LOST, window = null) {
    if (this.over) return;
    this.#stop();
    this.onclose({ code, reason, window });
  }

  /** There is no session, or none any more. @param {any} answer Null when there was none. */
  refused(answer) {
    if (!answer) this.end("the server cannot be reached");
    else this.end(`the server answered with ${answer.status}`, VERDICTS[answer.status], windowOf(answer));
  }

  #stop() {
    this.over = true;
    for (const request of this.#requests) request.abort();
    this.#calm();
  }

  #calm() {
    for (const timer of this.#timers) this.#clock.clearTimeout(timer);
  }

  now() {
    return this.#clock.wall();
  }

  /**
   * Call back later, unless it is over by then.
   * @param {number} seconds
   * @param {() => void} callback
   * @returns {() => void} Calls it off.
   */
  after(seconds, callback) {
    if (this.over) return () => {};
    const timer = this.#clock.setTimeout(() => {
      this.#timers.delete(timer);
      callback();
    }, seconds);
    this.#timers.add(timer);
    return () => {
      this.#timers.delete(timer);
      this.#clock.clearTimeout(timer);
    };
  }

  /** @param {string} name @param {any} options @returns {Promise<any>} */
  async #ask(name, { query, headers, ...options }) {
    if (this.#session) headers = { ...headers, "RT-Session": this.#session };
    // `ready` is for everybody: asked for with cookies, another origin's could not be read.
    const more = name === "ready" ? {} : { credentials: this.#credentials, redirect: "error", headers };
    return this.#page.fetch(beside(this.#url, name, query), { cache: "no-store", ...more, ...options });
  }

  /**
   * Ask, and read the answer.
   * @param {string} name
   * @param {any} options
   * @param {number} [seconds] For both; 0 for as long as it takes.
   * @param {(answer: any) => any} [read]
   * @returns {Promise<any>} Status, headers, and what was read; null when there was no answer, or not all of it.
   */
  async request(name, options, seconds = PATIENCE, read = (answer) => answer.text()) {
    const control = new AbortController();
    const inTime = seconds ? this.after(seconds, () => control.abort()) : () => {};
    this.#requests.add(control);
    try {
      const answer = await this.#ask(name, { ...options, signal: control.signal });
      const { status, headers } = answer;
      return { status, headers, read: await read(answer) };
    } catch {
      return null;
    } finally {
      inTime();
      this.#requests.delete(control);
    }
  }

  /** Whether the hub is there, and takes clients. */
  async isReady() {
    return (await this.request("ready", {}, MUTE))?.status === 204;
  }

  /**
   * Ask for a session.
   * @param {string} name
   * @param {string} body
   * @param {number} seconds
   * @param {(answer: any) => any} [read]
   */
  async begin(name, body, seconds, read = (answer) => answer.text()) {
    let status = 0; // of an answer that we were shown, whether or not it came to its end
    const ask = () =>
      this.request(name, { method: "POST", body }, seconds, (answer) => {
        status = answer.status;
        if (status === 200 && this.#credentials !== "include") cookieless.add(this.#origin);
        return read(answer);
      });
    const answer = await ask();
    const { location } = globalThis;
    if (status || this.over || !location || location.origin === this.#origin) return answer;
    // Nobody is there; or cookies went along to a hub that lets in all origins by "*".
    this.#credentials = "same-origin";
    const again = await ask();
    // It may be the cookies that the hub has missed: a verdict is one only on a token.
    return VERDICTS[status] && !JSON.parse(body).connect.token ? null : again;
  }

  /**
   * Ask until it is answered.
   * @param {string} name
   * @param {any} options
   * @param {number} [seconds]
   * @param {boolean} [mayBeCut] It takes long by nature, and something on the way may not like that.
   * @returns {Promise<string | null>} What the answer said; null when it is over.
   */
  async insist(name, options, seconds = PATIENCE, mayBeCut = false) {
    let giveUpAt = Infinity;
    let delay = DELAY;
    for (;;) {
      const began = this.now();
      const asking = this.request(name, options, seconds);
      if (options.method) this.#flying = asking;
      const answer = await asking;
      if (this.over) return null;
      const { status, read } = answer ?? { status: 599 };
      if (status === 200 || status === 204) return read;
      const now = this.now();
      const lasted = now - began;
      if (mayBeCut && !answer && lasted > LONG && lasted < seconds - 1 && (await this.isReady())) {
        this.hear(""); // a sign of life
        giveUpAt = Infinity;
        delay = DELAY;
      }
      if (status === 429) giveUpAt = Infinity;
      else if (status < 500 || now >= giveUpAt) {
        this.end(status === 410 ? "the session is gone" : `the server answers ${name} with ${status}`);
        return null;
      }
      giveUpAt = Math.min(giveUpAt, now + GIVE_UP);
      const wait = (answer && retryAfter(answer)) || delay;
      await new Promise((resolve) => this.after(wait, () => resolve(0)));
      delay = Math.min(LONGEST_DELAY, delay * 2);
    }
  }

  /** Send what waits, one request after the other. */
  async #post() {
    if (this.#posting) return;
    this.#posting = true;
    await null; // what is sent in the same breath goes along
    while (this.#units.length && !this.over) {
      let body = "";
      let size = 0;
      for (let n = 0; n < UNITS && this.#units.length; n++) {
        size += utf8.encode(this.#units[0]).length + 1;
        if (n && size > this.#most) break;
        body += (n ? "\n" : "") + this.#units.shift();
      }
      this.#seq += 1;
      await this.insist("send", { method: "POST", body, headers: { "RT-Seq": `${this.#seq}` } });
    }
    this.#posting = false;
  }
}

/** One response that goes on: an event stream. */
export class sse extends Pipe {
  /** @param {string} frame */
  async open(frame) {
    const inTime = this.after(MUTE, () => this.end("the stream is held back on the way"));
    const answer = await this.begin("sse", frame, 0, async ({ status, headers, body }) => {
      if (status !== 200 || !/^text\/event-stream/.test(headers.get("content-type"))) return body?.cancel();
      const reader = body.getReader();
      const decoder = new TextDecoder();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return this.end("the stream has ended");
        inTime();
        const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
        rest = lines.pop() ?? "";
        const data = lines.filter((line) => line.startsWith("data:"));
        this.hear(data.map((line) => line.slice(5)).join("\n"));
      }
    });
    inTime();
    this.refused(answer);
  }
}

/** One response after another, each with what there is to say. */
export class poll extends Pipe {
  /** @param {string} frame */
  async open(frame) {
    const inTime = this.after(MUTE, async () => {
      if (await this.isReady()) this.hear(""); // somebody takes long to let us in
      else this.end("the server says nothing");
    });
    const answer = await this.begin("poll", frame, POLL);
    inTime();
    if (answer?.status !== 200) {
      this.refused(answer);
      return;
    }
    let taken = 0;
    for (let text = answer.read; text !== null; ) {
      try {
        const { batch, replies } = JSON.parse(text);
        if (batch !== taken + (replies.length ? 1 : 0)) throw new Error(`batch ${batch} after ${taken}`);
        taken = batch;
        this.hear(replies.map((/** @type {any} */ unit) => JSON.stringify(unit)).join("\n"));
      } catch (error) {
        this.end(`cannot take what the server sent: ${error}`);
      }
      text = this.over ? null : await this.insist("poll", { query: `ack=${taken}` }, POLL, true);
    }
  }
}

const PIPES = { sse, poll };

// -- choosing (T7) --------------------------------------------------------------------------------------------------

/**
 * What can be used here, the best first.
 * @param {Choice} choice
 * @throws {Error} When that is nothing.
 */
function waysOf({ transports, receiveOnly, WebSocket }) {
  const ways = transports.filter((each) => (each === "websocket" ? WebSocket : Object.hasOwn(PIPES, each)));
  if (!ways.length) throw new Error(`no transport can be used: ${transports}`);
  // Who only listens hardly needs a way up, and a stream asks less of what is on the way.
  return receiveOnly && ways.includes("sse") ? ["sse", ...ways.filter((each) => each !== "sse")] : ways;
}

/** Keep the choice, here and for other pages; or forget it. @param {Choice} choice @param {string} [kept] */
function remember(choice, kept) {
  choice.kept = kept;
  try {
    if (kept) choice.page.localStorage.rtkit = kept;
    else choice.page.localStorage.removeItem("rtkit");
  } catch {} // then this client alone remembers
}

/**
 * Open what is chosen.
 * @param {Choice} choice
 * @returns {any} A WebSocket, or what looks like one.
 * @throws {Error} When nothing can be used.
 */
export function open(choice) {
  const ways = waysOf(choice);
  let { kept = "" } = choice;
  try {
    kept = choice.page.localStorage.rtkit ?? kept;
  } catch {} // this page may not know
  const [way, until] = kept.split(" ");
  const left = Number(until) - choice.clock.wall();
  const holds = left > 0 && left <= REMEMBERED; // the clock may have been set
  if (!holds && kept) remember(choice);
  choice.way = holds && ways.includes(way) ? way : ways[0];
  choice.mute = choice.way === "websocket" && ways[1] ? MUTE : Infinity;
  if (choice.way === "websocket") return new choice.WebSocket(choice.url);
  return new PIPES[/** @type {keyof typeof PIPES} */ (choice.way)](choice);
}

/**
 * A transport failed. Unless it was the server, go on with the next; after the last one begin again, later.
 * @param {{ window?: [number, number] | null, atOnce?: boolean }} ending Is told when.
 * @param {Choice} choice
 */
export async function judge(ending, choice) {
  const { url, page, clock } = choice;
  const control = new AbortController();
  const timer = clock.setTimeout(() => control.abort(), MUTE);
  try {
    const asked = clock.monotonic();
    const answer = await page.fetch(beside(url, "ready"), { cache: "no-store", signal: control.signal });
    const crowd = answer.status === 503 || answer.status === 204 ? windowOf(answer) : null;
    if (crowd) ending.window = crowd;
    // Neither is the transport's fault: a crowd of newcomers, and a server that is slow. Anything but 204 is not the
    // hub's: a portal that wants us to log in, a proxy in trouble.
    if (crowd || answer.status !== 204 || clock.monotonic() - asked > SLOW) return;
  } finally {
    clock.clearTimeout(timer);
  }
  const ways = waysOf(choice);
  const next = ways[ways.indexOf(choice.way) + 1];
  choice.plain = false;
  remember(choice, next && `${next} ${clock.wall() + REMEMBERED}`);
  ending.atOnce = next !== undefined;
}
