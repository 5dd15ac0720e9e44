/**
 * The browser SDK of rtkit: a connection to a hub that comes back by itself. One module, no dependencies; parts that
 * few need are loaded when they are needed: http.js for other transports than WebSockets, chunks.js for large units,
 * people.js for rooms that know who is there, who types, and who has read what.
 *
 *     import { connect } from "/rt/client.js";
 *
 *     const rt = connect("/rt", { token: () => fetch("/token").then((answer) => answer.text()) });
 *     const room = rt.join("chat:lobby", { rewind: 20 });
 *     room.on("Said", (data, message) => show(message.sender, data.text));
 *     room.on("gap", (gap) => showThatSomethingIsMissing(gap));
 *     await room.send("Say", { text: "hi" });
 *
 * The theory
 * ==========
 * States, the same as those of the Python client:
 *
 *     idle ──► connecting ──► connected ──► waiting ──► connecting …       closed, from anywhere, for good
 *
 * `connect()` answers in `idle` and begins in the next microtask, so that listeners can be put on before.
 * Closed is final: by `close()`, by the server's code (3500–3999, 4500–4999 and some of WebSocket's own), when
 * it refuses `connect` with an error that is not temporary, or when there is no token any more. Everything else
 * is tried again, after the window the server named, else with full jitter between 0.5 and 20 s.
 *
 * *Position.* A room with history has a place up to which everything was handed out, or told as a gap. Only
 * the next offset of the same epoch is ever taken. At or below: a duplicate, dropped. Beyond: a hole; the room
 * is joined anew, recovering from where it stands. A new epoch that is told as a *position* continues the old
 * one for who stands right there, and for everybody else is a hole as well. A reply that recovers proves
 * continuity, or there is a gap, always. A room without history is at most once, and has no position.
 *
 * *Queue.* What a room brings goes through a bounded queue to its listeners, or to who iterates. With neither it
 * waits. When the queue is full, a room with history turns deaf where it stands, and joins again from there when
 * half of it is drained; in one without history the oldest is dropped, and a gap says so.
 *
 * *Commands* wait in the order they were made, those of a room until the server has us in. What was written and
 * not answered when the connection is lost is written again, with the same key, so that it happens once; but not
 * if it was first written more than half the server's window for keys ago. Then it ends as `PublishUnknown`.
 *
 * *Time.* There is one clock, which never goes back and counts sleep, and one timer, due at least every 10 s.
 * What arrives proves that the server lives, not timers. A timer that comes late shows that it was we who slept
 * or were throttled: then the server is asked (`ping`) before it is taken for dead.
 *
 * *Transports.* One over which nothing was heard, or that was cut soon three times in a row, has failed, unless the
 * server said why: then http.js asks whether the server is there, and chooses the next one. Each is an attempt like any
 * other, with a token of its own. What http.js opens looks like a WebSocket.
 *
 * *People.* A room that asks for presence or receipts is not joined before people.js is loaded; from then on it is shown
 * everything that concerns the room, in order. Where typing or a rate for signals is told it is loaded then, and what
 * comes until then is lost: whoever goes on typing says so again. If it cannot be loaded, rooms do without it.
 *
 * *Session.* The server gives a token with each connection; shown with the next one, in time, it goes on with the
 * session. It is dropped when another connection has taken the session over, and with a goodbye.
 *
 * *The page.* Gone for good (`pagehide`): goodbye. Kept in the back-forward cache (`pagehide`, `freeze`): the connection
 * is closed; back (`pageshow`, `resume`): connected again at once. `online`, or visible again: a connection is checked, and
 * when there is none, `online` connects at once. While offline, delays are long and do not grow.
 *
 * Source of the wire: docs/reference/protocol.md; letters with a number, such as H3, are points of the
 * specification. Times are in seconds and sizes in bytes.
 *
 * @module
 */

// -- values ---------------------------------------------------------------------------------------------

/**
 * A place in a room's stream: just behind the message with this offset. Plain data: keep it as JSON.
 * @typedef {{ epoch: string, offset: number }} Position
 */

/** @typedef {"idle" | "connecting" | "connected" | "waiting" | "closed"} State */

/** @typedef {"websocket" | "sse" | "poll"} Transport */

/**
 * Why something is missing. `trimmed`: history does not reach back that far. `epoch`: the stream was replaced by
 * a new one. `rollback`: the server lost what it had acknowledged. `dropped`: messages of a room without history
 * were dropped because nobody took them.
 * @typedef {"trimmed" | "epoch" | "rollback" | "dropped"} GapReason
 */

/**
 * Whether the room was joined for the first time or again, `joined` tells.
 * @typedef {object} Joined
 * @property {any} data What the room's `on_join` returned; undefined without any.
 * @property {Position | null} position Where the room stands; null without history.
 * @property {boolean} recovered Nothing is missing since `since`, or since before the interruption.
 */

/**
 * A message without storage, for those who are there now.
 * @typedef {object} Signal
 * @property {string} event Its name; empty when it was sent without one.
 * @property {any} data
 * @property {string | null} sender The user; null when a server sent it.
 * @property {string | null} client The client id it came from.
 */

/**
 * A client that is in a room. One user may be there with several.
 * @typedef {object} Member
 * @property {string} user
 * @property {string} client
 * @property {Record<string, any>} meta What it says about itself; empty for nothing.
 */

/**
 * Who has come and gone in a room since the last time.
 * @typedef {object} PresenceChange
 * @property {Member[]} joins
 * @property {Member[]} leaves As they were.
 * @property {Member[]} updates As they are now.
 * @property {boolean} whole Nothing was known before: begin anew with `joins`, which are all. With nobody in it the room
 *     has too many to be listed, and is only counted.
 */

/**
 * How far a user has come in a room, as offsets of its present epoch; null for not at all.
 * @typedef {{ delivered: number | null, read: number | null }} Marks
 */

/**
 * A page of history.
 * @template [D=any]
 * @typedef {object} Page
 * @property {Message<D>[]} messages In the order asked for.
 * @property {Position} top Where the stream ends now.
 * @property {boolean} complete Nothing between `since` and the first message is missing.
 */

/**
 * @typedef {object} ClientEvents
 * @property {[state: State]} state After each change.
 * @property {[error: Error]} error What nobody else was told: a gap without a listener, a room that ended, a token
 *     function that failed, a refused refresh. Without a listener it goes to the console.
 * @property {[why: ConnectionClosed]} closed For good.
 * @property {[message: { event: string, data: any }]} message Sent to this session alone, at most once.
 */

/**
 * @template [D=any]
 * @typedef {object} RoomEvents
 * @property {[message: Message<D>]} message Every message, whatever its event.
 * @property {[gap: Gap]} gap Something is missing, here.
 * @property {[signal: Signal]} signal
 * @property {[change: PresenceChange]} presence
 * @property {[users: string[]]} typing Who is typing now.
 * @property {[]} marks Somebody has got or read more, or `room.unread` is less.
 * @property {[info: Joined]} joined The server has let us in: the first time, and after each interruption.
 * @property {[error: Error | null]} left It is over; null when it was this client's wish.
 */

/**
 * @typedef {object} SendOptions
 * @property {string} [key] A key of your own, 1 to 128 characters: say the same again and it happens once.
 * @property {number} [timeout] Seconds to wait for the answer; without it as long as it takes.
 * @property {AbortSignal} [signal] Gives up waiting. What was not sent yet is withdrawn.
 */

/**
 * @typedef {object} JoinOptions
 * @property {Position | null} [since] Go on from here, as `room.position` told another time.
 * @property {number} [rewind] Or begin so many messages back.
 * @property {any} [data] Handed to the room's `on_join`, with every join.
 * @property {boolean} [echo] False leaves out what this client itself has sent.
 * @property {boolean} [raw] The room publishes any JSON: never look for events in it.
 * @property {number} [maxQueue] Messages that may wait to be taken.
 * @property {boolean} [presence] Be told who is here.
 * @property {boolean} [receipts] Be told who has got and read how much; and say it of oneself.
 */

/**
 * Measures time, in seconds.
 * @typedef {object} Clock
 * @property {() => number} monotonic Never goes back.
 * @property {() => number} wall Counts sleep; may be set.
 * @property {(callback: () => void, seconds: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 */

/**
 * The way to get a token; null gives up.
 * @typedef {() => string | null | PromiseLike<string | null>} TokenSource
 */

/**
 * @typedef {object} ConnectOptions
 * @property {string | TokenSource | null} [token] A string; or a function that gets one, called for every
 *     connection and shortly before the identity expires. What it throws is told as `error`, and it is called
 *     again after a delay. When it returns null, or throws a `ConnectionClosed`, the client is closed for good.
 * @property {any} [data] Sent with `connect`, beside the token.
 * @property {number} [minDelay] Before trying again, at the least (0.5 s).
 * @property {number} [maxDelay] And at the most (20 s); a window that the server names wins over both.
 * @property {number} [openTimeout] For getting a token, for opening a connection, and for the answer to `connect` (10 s).
 * @property {number} [silence] Beyond the server's ping interval, until it counts as gone (10 s).
 * @property {number} [resendWithin] After its first writing a command may be written again (150 s).
 * @property {number} [maxOffline] Commands that may wait for an answer (1000).
 * @property {number} [maxOfflineBytes] And their payloads (8 MiB).
 * @property {Transport[]} [transports] What may be used, the best first; without it all three, WebSocket first.
 * @property {boolean} [receiveOnly] The order is for who sends little: SSE first.
 * @property {any} [WebSocket] The class to use.
 * @property {Clock} [clock] For tests.
 * @property {() => number} [random] From 0 to 1, for tests.
 * @property {any} [page] For tests: what has `addEventListener`, `document`, `navigator`, `fetch` and `localStorage`.
 */

/** A message of a room. @template [D=any] @template {string} [E=string] */
export class Message {
  /**
   * @param {D} data
   * @param {E} event
   * @param {Position | null} position
   * @param {string | null} sender
   * @param {string | null} client
   * @param {Date | null} time
   */
  constructor(data, event, position, sender, client, time) {
    /** What was published. */
    this.data = data;
    /** The name of its type; empty in raw rooms. */
    this.event = event;
    /** Null in a room without history. */
    this.position = position;
    /** The user it came from; null when a server published it. */
    this.sender = sender;
    /** The client id it came from. */
    this.client = client;
    /** When it was published, by the server's clock. */
    this.time = time;
  }
}

/** Messages with `from` < offset ≤ `to` are not available; it goes on at `to` + 1 of `epoch` (H3). */
export class Gap {
  /**
   * @param {number} from
   * @param {number} to
   * @param {string} epoch
   * @param {GapReason} reason
   */
  constructor(from, to, epoch, reason) {
    this.from = from;
    this.to = to;
    this.epoch = epoch;
    this.reason = reason;
  }

  toString() {
    return `gap (${this.reason}): ${this.from} < offset <= ${this.to} in epoch ${this.epoch || "-"}`;
  }
}

// -- errors, drawn as the tree of who must act ------------------------------------------------------------
//
//     RtkitError
//     ├── UsageError          you misused the API: the message says what to do instead
//     │   ├── NotRunning      the room was left, or the client closed
//     │   └── InvalidMessage  a value that JSON cannot hold, or too large for the server
//     ├── CallError           the server answered a command with an error
//     ├── PublishUnknown      it may have happened: sending again with the same key is safe for a while
//     ├── TimeoutError        never sent within the timeout, and withdrawn
//     ├── QueueFull           too many commands wait
//     ├── Unsubscribed        the server took us out of a room
//     └── ConnectionClosed    closed for good; has code and reason

/** Root of all errors of this library. */
export class RtkitError extends Error {
  name = "RtkitError";
}

/** The API was misused; the message says what to do instead. */
export class UsageError extends RtkitError {
  name = "UsageError";
}

/** The room was left, or the client closed. */
export class NotRunning extends UsageError {
  name = "NotRunning";
}

/** A value that JSON cannot hold, or a message too large for the server. */
export class InvalidMessage extends UsageError {
  name = "InvalidMessage";
}

/** The server answered a command with an error. */
export class CallError extends RtkitError {
  name = "CallError";

  /**
   * @param {number} code See "Codes" of the wire; from 400 on the application's own.
   * @param {string} text The server's words.
   * @param {boolean} temporary Trying again may help.
   * @param {number | null} retryAfter Seconds to wait before that, if the server said so.
   */
  constructor(code, text, temporary = false, retryAfter = null) {
    super(`${text} (code ${code})`);
    this.code = code;
    /** The server's words, without the code. */
    this.text = text;
    this.temporary = temporary;
    this.retryAfter = retryAfter;
  }
}

/** It may or may not have happened. Sending again with the same key is safe for some minutes (H7). */
export class PublishUnknown extends RtkitError {
  name = "PublishUnknown";
}

/** Never sent within the timeout, and withdrawn. */
export class TimeoutError extends RtkitError {
  name = "TimeoutError";
}

/** Too many commands wait for an answer; nothing was queued. */
export class QueueFull extends RtkitError {
  name = "QueueFull";
}

/** The server took us out of a room, and we shall not join again by ourselves. */
export class Unsubscribed extends RtkitError {
  name = "Unsubscribed";

  /** @param {number} code @param {string} reason */
  constructor(code, reason) {
    super(`taken out: ${reason} (code ${code})`);
    this.code = code;
    this.reason = reason;
  }
}

/** The connection ended and will not come back by itself. */
export class ConnectionClosed extends RtkitError {
  name = "ConnectionClosed";

  /** @param {number} code @param {string} reason @param {unknown} [cause] */
  constructor(code, reason, cause) {
    super(`closed: ${reason} (code ${code})`, { cause });
    this.code = code;
    this.reason = reason;
  }
}

// -- codes: the number's band tells what to do --------------------------------------------------------------

const NORMAL = 1000;
const LOST = 1006;
/** Codes from here on were said by the server. */
const SAID = 3000;
/** What we close with when we come back: 1000 would say that we do not. */
const RECONNECTING = 3000;
const REPLACED = 4000;
const BAD_TOKEN = 3500;
const ALREADY_SUBSCRIBED = 105;
const TOKEN_EXPIRED = 109;
const EXPIRED = 110;
const TOO_MANY_REQUESTS = 111;
const UNRECOVERABLE = 112;

/** The close code for an error that `connect` was refused with, from 3500 on. @type {Record<number, number>} */
const CLOSE_CODES = { 101: 0, 109: 0, 110: 0, 103: 7, 107: 1, 104: 1, 106: 4 };

/** Whether a client that was closed with this code must not reconnect by itself. @param {number} code */
const isTerminal = (code) => /^([34][5-9]..|100[23789]|1010)$/.test(`${code}`);

/** Whether a client that was unsubscribed with this code joins again by itself. @param {number} code */
const mayResubscribe = (code) => code >= 2500;

// -- small helpers --------------------------------------------------------------------------------------------

/** Unanswered `ping` of ours, after which a doubtful connection is given up; seconds. */
const PROBE = 5;
/** The timer is due at least this often, so that it shows when we have slept. */
const TICK = 10;
/** A timer that comes later than this shows that we were stalled, not the server silent (F5). */
const LATE = 1;
/** And later than this that we slept again while we waited for an answer; hidden pages are throttled to a minute. */
const ASLEEP = 90;
/** Without an interruption for this long, the next one counts as the first again. */
const PEACE = 20;
/** A connection that lived this long makes the delays begin anew. */
const STABLE = 5;
/** A transport that says nothing for so long does not work here, if there are others (T7). */
const MUTE = 3;
/** Cut that soon after it was opened, and so many times in a row: likewise. */
const CUT = 10;
const CUTS = 3;
/** Rounding may make a timer early: who then waited for the rest might wait for nothing, for ever. */
const HAIR = 1e-6;
/** Bytes of units put into one frame; a larger unit goes alone. */
const FRAME = 16384;
/** How much of the server's limits is used. */
const SHARE = 0.9;
/** Former client ids to know our own messages by; signals that may wait. */
const MANY = 64;
/** How long `leave()` waits for the server's word. */
const LEAVE_TIMEOUT = 5;

const utf8 = new TextEncoder();

/** @param {string} text */
const byteLength = (text) => utf8.encode(text).length;

/** @param {any} value */
const isText = (value) => typeof value === "string";

/** @param {any} value @returns {value is (...args: any[]) => any} */
const isFunction = (value) => typeof value === "function";

/** For an error message. @param {unknown} value */
const quoted = (value) => String(JSON.stringify(value)).slice(0, 80);

/** @param {string} rule What would be right. @param {unknown} value */
const misused = (rule, value) => new UsageError(value === undefined ? rule : `${rule}, not ${quoted(value)}`);

/** @param {unknown} fits @param {string} rule @param {unknown} [value] */
function check(fits, rule, value) {
  if (!fits) throw misused(rule, value);
}

/** @param {string} text */
const isWellFormed = (text) => !/\p{Cs}/u.test(text);

/** people.js, as soon as it is loaded. @type {any} */
let people;

/** And chunks.js. @type {any} */
let chunks;

async function loadPeople() {
  try {
    people ??= await import("./people.js");
  } catch (cause) {
    throw new RtkitError(`no people.js: ${cause}`, { cause });
  }
}

/** @param {() => void} callback */
const soon = (callback) => queueMicrotask(callback);

/**
 * JSON text, as the server takes it.
 * @param {unknown} value
 * @returns {string}
 */
function encode(value) {
  let text;
  try {
    text = JSON.stringify(value);
  } catch (cause) {
    throw new InvalidMessage(`no JSON: ${cause}`, { cause });
  }
  if (text === undefined) throw new InvalidMessage(`no JSON: ${typeof value}`);
  // stringify writes a lone surrogate as an escape, and nothing else that way. The server would close for it.
  if (/\\ud/.test(text.replace(/\\\\/g, ""))) {
    throw new InvalidMessage("a lone surrogate");
  }
  return text;
}

/**
 * A value for a placeholder in a room's name, escaped so that any text fits: "%", ":" and control characters
 * become %XX for each byte, everything else stays.
 *
 *     rt.join(`chat:${encodeParam(name)}`)
 *
 * @param {string | number} value Not empty.
 * @returns {string}
 * @throws {UsageError} For the empty string, and for lone surrogates, which UTF-8 cannot hold.
 */
export function encodeParam(value) {
  const text = String(value);
  check(text && isWellFormed(text), "a parameter is text", text);
  // eslint-disable-next-line no-control-regex
  return text.replace(/[%:\u0000-\u001f\u007f-\u009f]/g, encodeURIComponent);
}

/**
 * The WebSocket URL of a hub: relative to the page, http(s) becomes ws(s), and /ws is appended where it is missing.
 * @param {string | URL} url
 */
function endpoint(url) {
  let found;
  try {
    found = new URL(url, globalThis.location?.href);
    found.protocol = found.protocol.replace(/^http/, "ws");
  } catch {} // judged below
  if (!found || !/^wss?:$/.test(found.protocol)) throw misused("a URL is http or ws", String(url));
  const path = found.pathname.replace(/\/+$/, "");
  found.pathname = /\/(ws|connection\/websocket)$/.test(path) ? path : `${path}/ws`;
  found.hash = "";
  return found.href;
}

/** @param {any} position @returns {Position | null} */
function checkedPosition(position) {
  if (position == null) return null;
  const { epoch, offset } = position;
  const fits = isText(epoch) && epoch.length <= 128 && isWellFormed(epoch) && isCount(offset);
  check(fits, "a position is {epoch, offset}", position);
  return { epoch, offset };
}

/** @param {any} text 1 to 255 bytes. */
const isName = (text) => isText(text) && text && isWellFormed(text) && byteLength(text) <= 255;

/** A copy of what is JSON, and undefined of nothing. @param {unknown} value */
const copied = (value) => (value === undefined ? undefined : JSON.parse(encode(value)));

/** @param {any} value */
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;

/** What an application's callback did wrong is shown, and never breaks the client. @param {unknown} error */
function reportFault(error) {
  (globalThis.reportError ?? console.error)(error);
}

/** Listeners by event name. */
class Emitter {
  /** Each in a function of its own, so that one function can be put on twice. @type {Map<string, Set<Function>>} */
  listeners = new Map();

  /**
   * @param {string} name
   * @param {Function} listener
   * @returns {() => void} Takes it away again.
   */
  on(name, listener) {
    check(isFunction(listener), "a listener is a function", typeof listener);
    const found = this.listeners.get(name) ?? new Set();
    const entry = (/** @type {any[]} */ ...args) => listener(...args);
    this.listeners.set(name, found.add(entry));
    return () => {
      if (found.delete(entry) && !found.size) this.listeners.delete(name);
    };
  }

  /**
   * @param {string} name
   * @param {any[]} args
   * @returns {boolean} Whether anybody listened.
   */
  emit(name, ...args) {
    const found = this.listeners.get(name);
    for (const entry of [...(found ?? [])]) {
      try {
        if (found?.has(entry)) entry(...args); // not taken away by an earlier one
      } catch (error) {
        reportFault(error);
      }
    }
    return found !== undefined;
  }
}

// -- time and chance --------------------------------------------------------------------------------------------

/** @type {Clock} */
const systemClock = {
  monotonic: () => performance.now() / 1000,
  wall: () => Date.now() / 1000,
  setTimeout: (callback, seconds) => setTimeout(callback, Math.min(seconds * 1000, 2 ** 31 - 1)), // more is none
  clearTimeout: (timer) => clearTimeout(timer),
};

/**
 * Seconds that never go back and count sleep. A monotonic clock may stand still while the machine sleeps, and the
 * wall clock may be set back: whichever went further is believed.
 * @param {Clock} clock
 */
function sleepless(clock) {
  let monotonic = clock.monotonic();
  let wall = clock.wall();
  let now = 0;
  return () => {
    const before = [monotonic, wall];
    monotonic = clock.monotonic();
    wall = clock.wall();
    return (now += Math.max(0, monotonic - before[0], wall - before[1]));
  };
}

/**
 * Delays between attempts: drawn from the whole range below a ceiling that doubles (F3).
 * @param {number} minimum
 * @param {number} maximum
 * @param {() => number} random
 */
function makeBackoff(minimum, maximum, random) {
  let ceiling = 0;
  const reset = () => {
    ceiling = Math.min(maximum, minimum * 2);
  };
  reset();
  /** @param {[number, number] | null} [window] Least and most seconds, as the server said; wins. */
  const next = (window) => {
    const [low, high] = window ?? [minimum, ceiling];
    ceiling = Math.min(maximum, ceiling * 2);
    return low + (high - low) * random();
  };
  return { reset, next };
}

/** Of what is not limited there is always enough. @type {(force?: boolean | null, amount?: number) => number} */
const unlimited = () => 0;

/**
 * A token bucket for a limit of the server's, a little below it: `rate` a second, at most `burst` saved up.
 * @param {number} rate 0 for no limit.
 * @param {number} burst
 * @param {() => number} clock
 */
function makeBucket(rate, burst, clock) {
  if (rate <= 0) return unlimited;
  rate *= SHARE;
  let tokens = (burst = Math.max(1, burst * SHARE));
  let at = clock();
  /**
   * Take so many: 0. Or take none: the seconds until there are; unless they are taken by force.
   * @param {boolean | null} [force] Null takes none in any case.
   * @param {number} [amount] Of more than can be saved up a full bucket will do.
   */
  return (force, amount = 1) => {
    const now = clock();
    tokens = Math.min(burst, tokens + (now - at) * rate);
    at = now;
    const wait = (Math.min(amount, burst) - tokens) / rate;
    if (wait > HAIR && !force) return wait;
    if (force !== null) tokens -= amount;
    return 0;
  };
}

// -- reading what the server sends: every field is checked where it is read ---------------------------------------

/** @param {string} what Was expected. @returns {never} */
function bad(what) {
  throw new RtkitError(`the server sent no ${what}`);
}

/** @param {any} value @returns {any} The object; null where there is none. */
const object = (value) =>
  value == null ? null : typeof value === "object" && !Array.isArray(value) ? value : bad("object");

/**
 * @template T
 * @param {string} what
 * @param {T} zero What a missing field means.
 * @param {(value: any) => boolean} fits
 * @returns {(value: any) => T}
 */
const reader = (what, zero, fits) => (value) => (value === undefined ? zero : fits(value) ? value : bad(what));

const count = reader("count", 0, isCount);
const number = reader("number", 0, Number.isFinite);
const text = reader("text", "", isText);
const flag = reader("flag", false, (value) => typeof value === "boolean");
const epoch = reader("epoch", "", (value) => isText(value) && value.length <= 128);
/** @type {(value: any) => any[]} */
const list = reader("list", [], Array.isArray);

/** @param {any} value */
function publication(value) {
  const body = object(value) ?? bad("object");
  const info = object(body.info) ?? {};
  return {
    data: body.data,
    offset: count(body.offset),
    user: text(info.user),
    client: text(info.client),
    time: number(body.time),
  };
}

/** @param {any} value */
const publications = (value) => list(value).map(publication);

/** @param {any} value */
function gapBody(value) {
  const body = object(value);
  return body && { from: count(body.from), to: count(body.to), epoch: epoch(body.epoch), reason: text(body.reason) };
}

/** @param {any} value */
function subscribeResult(value) {
  const body = object(value) ?? {};
  return {
    recoverable: flag(body.recoverable),
    recovered: flag(body.recovered),
    epoch: epoch(body.epoch),
    offset: count(body.offset),
    publications: publications(body.publications),
    data: body.data,
    gap: gapBody(body.gap),
    body,
  };
}

/** @param {any} value @returns {CallError | null} */
function callError(value) {
  const body = object(value);
  if (!body) return null;
  const code = count(body.code);
  const temporary = flag(body.temporary) || code === 100 || code === TOO_MANY_REQUESTS;
  return new CallError(code, text(body.message), temporary, Math.max(0, number(body.retry_after)) || null);
}

/** @param {CallError} error */
const isExpired = ({ code }) => code === TOKEN_EXPIRED || code === EXPIRED;

/** When to try again, as the server said; spread over half as long again. @param {CallError} error */
const windowOf = ({ retryAfter }) =>
  retryAfter === null ? null : /** @type {[number, number]} */ ([retryAfter, retryAfter * 1.5]);

/**
 * A message as the application gets it.
 * @param {ReturnType<typeof publication>} from
 * @param {Position | null} position
 * @param {boolean} raw
 */
function message(from, position, raw) {
  const { event, data } = raw ? { event: "", data: from.data } : splitEvent(from.data);
  const time = from.time ? new Date(from.time * 1000) : null;
  return new Message(data ?? null, event, position, from.user || null, from.client || null, time);
}

/** `{event, data}` is how typed messages travel; anything else has no event. @param {any} data */
function splitEvent(data) {
  return isText(data?.event) && Object.keys(data).length === ("data" in data ? 2 : 1)
    ? { event: /** @type {string} */ (data.event), data: data.data ?? null }
    : { event: "", data };
}

// -- one room: where it stands, what is queued, and when it must say gap. Plain; see the theory --------------------

/**
 * One room, for as long as this client wants to be in it. Several methods answer what the engine has to do now:
 * join (again); leave and join, because a hole was seen; or nothing.
 */
class Membership {
  events = new Emitter();
  /** The application holds it; else the server put us in, and it gathers until somebody comes. */
  bound = false;
  /** The server puts us in by itself when we connect. */
  server = false;
  /** Everything the server pushes counts while "in" only. @type {"out" | "asked" | "in" | "ended"} */
  phase = "out";
  /** Up to here everything was queued, or told as a gap. @type {Position | null} */
  at = null;
  /** The server cannot recover from `at` and said so with an error: join without it, then tell a gap. */
  forgotten = false;
  rewind = 0;
  echo = true;
  raw = false;
  limit = 1024;
  /** Sent with every join. @type {any} */
  data = undefined;
  /** What else is asked for with every join. @type {{ presence?: boolean, marks?: boolean }} */
  wants = {};
  /** What the application holds. @type {any} */
  face = null;
  /** What people.js has for it. @type {any} */
  part = null;
  /** What the latest join was answered with. @type {any} */
  joinData = undefined;
  joins = 0;
  /** Why it ended. @type {Error | null} */
  error = null;
  began = -Infinity;
  retryAt = Infinity;
  iterators = 0;
  /** Who waits for a change. @type {Set<() => void>} */
  waiting = new Set();

  /** Where the join that is under way began. @type {Position | null} */
  #askedFrom = null;
  /** The queue was full: nothing is taken until half of it is drained; then joined again from `at`. */
  #deaf = false;
  /** @type {(Message | Gap)[]} */
  #queue = [];
  /** The oldest of the queue were dropped. */
  #holed = false;
  /** Behind the last item that was handed out. @type {Position | null} */
  #handed = null;
  /** A join that the application has not been told, and its reply. @type {[Joined, any] | null} */
  #entered = null;
  #delivering = false;

  /** @param {Engine} engine @param {string} channel @param {ReturnType<typeof makeBackoff>} backoff */
  constructor(engine, channel, backoff) {
    this.engine = engine;
    this.channel = channel;
    this.backoff = backoff;
  }

  // Joining.

  /** Begin somewhere else. @param {Position | null} since @param {number} rewind */
  rebase(since, rewind) {
    this.at = this.#handed = since;
    this.rewind = rewind;
    this.#queue = [];
    this.#holed = false;
  }

  /** The command to join with; from now on only its reply counts. */
  request() {
    this.phase = "asked";
    this.#deaf = false;
    this.#askedFrom = this.at;
    const { channel, data, at, wants } = this;
    const body = { channel, data, ...wants };
    if (!at) return { ...body, rewind: this.rewind || undefined };
    return this.forgotten ? body : { ...body, ...standing(at) };
  }

  /**
   * The reply to the join that was asked for.
   * @param {ReturnType<typeof subscribeResult>} result
   * @returns {"join" | "rejoin" | undefined}
   */
  accept(result) {
    if (this.phase !== "asked") return undefined;
    // Moved meanwhile: the answer is to another question.
    return this.at === this.#askedFrom ? this.#enter(result, this.at !== null) : "rejoin";
  }

  /**
   * The server put us into the room by itself.
   * @param {ReturnType<typeof subscribeResult>} result
   * @param {Position | null} [asked] Where the connect command had said that we stand.
   * @returns {"join" | "rejoin" | undefined}
   */
  adopt(result, asked) {
    if (this.phase !== "out") return undefined;
    // The application asked for a join of its own making.
    const { presence, marks } = result.body;
    const lacks = (this.wants.presence && !presence) || (this.wants.marks && !marks);
    if (lacks || (!this.joins && (this.rewind || this.data !== undefined))) return "rejoin";
    return this.#enter(result, this.at !== null && this.at === asked);
  }

  /**
   * @param {ReturnType<typeof subscribeResult>} result
   * @param {boolean} asked It answers where we stand.
   * @returns {"join" | "rejoin" | undefined}
   */
  #enter(result, asked) {
    const before = this.at;
    const end = (result.publications[0]?.offset ?? result.offset + 1) - 1;
    if (result.recoverable && before && !asked && !same(before, result)) {
      return "rejoin"; // the server put us at its top, unasked, and we stand elsewhere
    }
    if (result.data !== undefined) this.joinData = result.data;
    this.phase = "in";
    this.#deaf = this.forgotten = false;
    this.joins += 1;
    this.rewind = 0;
    const recovered = result.recovered && asked && result.recoverable;
    if (!result.recoverable) {
      this.at = null;
      // There was a position, and now nothing can be proven.
      if (before) this.#put(new Gap(0, 0, "", "epoch"));
    } else if (!before) {
      this.at = { epoch: result.epoch, offset: Math.max(0, end) };
    } else if (recovered) {
      // The epoch may be new: the server knows that the old position holds in it (B6).
      this.at = { epoch: result.epoch, offset: before.offset };
      if (result.offset < before.offset) {
        this.#move(new Gap(result.offset, result.offset, result.epoch, "rollback"));
      }
    } else if (asked) {
      this.#move(gapOfJoin(result, before, end));
    }
    this.#entered = [{ data: this.joinData, position: this.position, recovered }, result.body];
    for (const each of result.publications) {
      const todo = this.#take(each);
      if (todo || this.#deaf) return todo;
    }
    // The reply may end beyond what it brought.
    return this.at && this.at.offset < result.offset ? "rejoin" : undefined;
  }

  // What is pushed.

  /** @param {ReturnType<typeof publication>} from @returns {"join" | "rejoin" | undefined} */
  published(from) {
    return this.#listens ? this.#take(from) : undefined;
  }

  /** @param {ReturnType<typeof publication>} from @returns {"join" | "rejoin" | undefined} */
  #take(from) {
    const { at } = this;
    const position = at && from.offset ? { epoch: at.epoch, offset: from.offset } : null;
    if (at && position) {
      if (position.offset <= at.offset) return undefined; // a duplicate
      if (position.offset > at.offset + 1) return "rejoin"; // a hole
    }
    if (!this.echo && from.client && this.engine.own.has(from.client)) {
      if (position) this.at = position;
      return undefined;
    }
    if (at && this.#full) this.#deaf = true;
    else this.#put(message(from, position, this.raw), position);
    return undefined;
  }

  /** @param {NonNullable<ReturnType<typeof gapBody>>} body @returns {"join" | "rejoin" | undefined} */
  toldGap(body) {
    if (!this.#listens) return undefined;
    const { at } = this;
    const reason = /** @type {GapReason} */ (body.reason || (at ? "trimmed" : "dropped"));
    let { from } = body;
    if (!at) {
      this.#put(new Gap(from, body.to, body.epoch, reason));
      return undefined;
    }
    const epoch = body.epoch || at.epoch;
    // Up to there the new epoch is the old one, and we do not have all of it.
    if (epoch !== at.epoch && reason !== "epoch" && from > at.offset) return "rejoin";
    if (epoch === at.epoch && reason !== "rollback") {
      if (body.to <= at.offset) return undefined; // we have all of it
      if (from > at.offset) return "rejoin"; // and what is between?
      from = at.offset;
    }
    if (this.#full)
      this.#deaf = true; // it will be told again
    else this.#move(new Gap(from, body.to, epoch, reason));
    return undefined;
  }

  /**
   * The stream goes on behind this place, and nothing was lost (H10): for who stands right there.
   * @param {string} epoch
   * @param {number} offset
   * @returns {"join" | "rejoin" | undefined}
   */
  told(epoch, offset) {
    const { at } = this;
    if (!this.#listens || !at) return undefined;
    // Ahead: we miss something. Behind: what comes next would pass for what we have.
    if (offset !== at.offset) return "rejoin";
    this.at = { epoch: epoch || at.epoch, offset };
    return undefined;
  }

  /** The server took us out. @param {number} code @param {string} reason @returns {"join" | "rejoin" | undefined} */
  unsubscribed(code, reason) {
    if (this.phase !== "in") return undefined;
    if (mayResubscribe(code)) {
      this.phase = "out";
      return "join";
    }
    this.engine.drop(this, new Unsubscribed(code, reason));
    return undefined;
  }

  /** The connection is gone, or the room is left to be joined again. */
  reset() {
    if (this.phase !== "ended") this.phase = "out";
    this.#deaf = false;
    this.retryAt = Infinity;
    this.part?.reset();
  }

  /** How long to stay out after an interruption. @param {number} now */
  delay(now) {
    const calm = now - this.began >= PEACE;
    this.began = now;
    if (!calm) return this.backoff.next();
    this.backoff.reset();
    return 0;
  }

  /** Nothing more will come. @param {Error | null} error @param {boolean} discard */
  end(error, discard) {
    this.phase = "ended";
    this.#deaf = false;
    this.part?.reset();
    this.error = error;
    this.retryAt = Infinity;
    if (discard) this.rebase(this.position, 0);
  }

  // The queue.

  get #listens() {
    return this.phase === "in" && !this.#deaf;
  }

  /** Somebody takes what comes, at once. */
  get heard() {
    return [...this.events.listeners.keys()].some(takesMessages);
  }

  get #full() {
    return this.#queue.length >= this.limit && !this.heard;
  }

  /** Whether an item waits. */
  get filled() {
    return this.#queue.length > 0 || this.#holed;
  }

  get position() {
    return this.#queue.length ? this.#handed : this.at;
  }

  /** @param {Message | Gap} item @param {Position | null} [position] Where the room stands after it. */
  #put(item, position = this.at) {
    if (!this.#queue.length) this.#handed = this.at;
    if (position) this.at = position;
    else if (this.#full) {
      this.#queue.shift();
      this.#holed = true;
    }
    this.#queue.push(item);
  }

  /** @param {Gap} gap */
  #move(gap) {
    this.#put(gap, { epoch: gap.epoch, offset: gap.to });
  }

  /** The next item for the application. */
  next() {
    if (this.#holed) {
      this.#holed = false;
      return new Gap(0, 0, "", "dropped");
    }
    const item = this.#queue.shift();
    if (item instanceof Message) this.#handed = item.position ?? this.#handed;
    else if (item?.epoch) this.#handed = { epoch: item.epoch, offset: item.to };
    if (this.#deaf && this.#queue.length <= this.limit / 2) this.engine.resume(this);
    if (!this.#delivering) this.part?.look();
    return item;
  }

  /** Tell the application what is to be told; whatever it does meanwhile. */
  deliver() {
    if (this.#delivering || !this.bound) return;
    this.#delivering = true;
    for (;;) {
      const info = this.#entered;
      if (info) {
        this.#entered = null;
        const [joined, body] = info;
        const attend = () => people.attend(this, this.engine).joined(body);
        const tell = people && attend();
        this.events.emit("joined", joined);
        tell?.();
        // It is missed by nobody meanwhile: who types says so again.
        if (!people && (body.typing || body.signals)) loadPeople().then(attend, (error) => this.engine.tell(error));
      } else if (this.filled && this.heard) {
        this.#hand(/** @type {Message | Gap} */ (this.next()));
      } else break;
    }
    this.#delivering = false;
    this.part?.look();
    for (const wake of [...this.waiting]) wake();
  }

  /** @param {Message | Gap} item */
  #hand(item) {
    if (item instanceof Message) {
      if (item.event && !ROOM_EVENTS.has(item.event)) this.events.emit(item.event, item.data, item);
      this.events.emit("message", item);
    } else if (!this.events.emit("gap", item)) {
      const error = new RtkitError(`${quoted(this.channel)}: a ${item}, unheard`);
      console.error(error);
      this.engine.events.emit("error", error);
    }
  }

  /**
   * Look after each change until there is something.
   * @template T
   * @param {() => T | undefined} look
   * @returns {Promise<T>}
   */
  wait(look) {
    return new Promise((resolve, reject) => {
      const wake = () => {
        const found = look();
        if (found) resolve(found);
        else if (this.phase === "ended") reject(this.error ?? leftError(this.channel));
        else return;
        this.waiting.delete(wake);
      };
      this.waiting.add(wake);
      wake();
    });
  }
}

/** What a room tells about itself; every other name is that of a message type. */
const ROOM_EVENTS = new Set(["message", "gap", "signal", "joined", "left", "presence", "typing", "marks"]);

/** @param {string} name */
const takesMessages = (name) => name === "message" || !ROOM_EVENTS.has(name);

/** @param {Position} at */
const standing = (at) => ({ recover: true, epoch: at.epoch, offset: at.offset || undefined });

/** @param {Position} a @param {Position} b */
const same = (a, b) => a.epoch === b.epoch && a.offset === b.offset;

/**
 * The gap of a join that could not recover.
 * @param {ReturnType<typeof subscribeResult>} result
 * @param {Position} before
 * @param {number} end Where delivery goes on.
 */
function gapOfJoin({ gap, epoch }, before, end) {
  if (gap && (!gap.epoch || gap.epoch === epoch) && gap.to <= end) end = gap.to;
  const stayed = before.epoch === epoch;
  if (stayed && end < before.offset) return new Gap(end, end, epoch, "rollback");
  const start = stayed ? before.offset : gap ? gap.from : 0;
  return new Gap(Math.min(start, end), end, epoch, /** @type {GapReason} */ (gap?.reason || (stayed ? "trimmed" : "epoch")));
}

// -- the engine: connects, stays connected, comes back; and everything that happens on the way -----------------------

/**
 * A command that somebody waits for. Nothing for applications.
 * @typedef {object} Sending
 * @property {string} method
 * @property {string} json Its body, encoded when it was made.
 * @property {string} lane Its room; empty for none.
 * @property {boolean} keyed Safe to write again, and of effect.
 * @property {number} size Of its payload.
 * @property {number} whole Of all of it, at the most.
 * @property {boolean} flying Written on the connection that lives now, and not answered.
 * @property {number | null} since
 * @property {boolean} lost A connection was lost while it was in flight.
 * @property {(error: unknown, reply?: any) => void} settle Only the first call counts.
 */

/** @param {unknown} [cause] */
const unknown = (cause) => new PublishUnknown("not answered", { cause });

/** It is over: with this error only if it certainly was not done. @param {Sending} sending @param {Error} error */
const giveUp = (sending, error) => sending.settle(sending.since !== null && sending.keyed ? unknown(error) : error);

/** @param {string} channel */
const leftError = (channel) => new NotRunning(`room ${quoted(channel)} was left`);

/** One WebSocket, or what looks like one, and what is true as long as it lives. */
class Link {
  /** @type {any} */
  socket = null;
  /** Authenticated. */
  online = false;
  began = Infinity;
  nextId = 1;
  /**
   * Called with the reply and the error in it; with null when the connection is lost before.
   * @type {Map<number, (reply: any, error: CallError | null) => void>}
   */
  answers = new Map();
  /**
   * Joins and leaves to be written.
   * @type {[method: string, json: string, answered: (reply: any, error: CallError | null) => void][]}
   */
  asks = [];
  /**
   * What may be lost, and waits to be written: of each kind the newest.
   * @type {Map<string, [method: string, json: string]>}
   */
  signals = new Map();
  /** What the server said before it closes. @type {Ending | null} */
  closed = null;
  /** Where `connect` said that we stand, in rooms of the server's. @type {Map<string, Position | null>} */
  asked = new Map();
  /** The server is rtkit's own: it knows keys, signals and goodbyes. */
  rt = false;
  pong = false;
  ping = 0;
  /** When anything was; negative for never. */
  heardAt = -1;
  probeBy = Infinity;
  until = -Infinity;
  refreshAt = Infinity;
  refreshing = false;
  unit = Infinity;
  most = Infinity;
  /** As the server said them. @type {any} */
  limits = {};
  /** What has come while chunks.js is being loaded, in its order. @type {string[] | null} */
  held = null;
  /** Of commands. */
  bucket = unlimited;
  /** Of bytes. */
  volume = unlimited;
}

/**
 * How a connection, or the attempt at one, ended. Nothing for applications.
 * @typedef {object} Ending
 * @property {number} code
 * @property {string} reason
 * @property {boolean} [terminal] For good.
 * @property {[number, number] | null} [window] When to come back, if the server said so.
 * @property {boolean} [atOnce]
 * @property {unknown} [cause]
 */

/** What the options of these names are without them. */
const LIMITS = {
  minDelay: 0.5,
  maxDelay: 20,
  openTimeout: 10,
  silence: 10,
  resendWithin: 150,
  maxOffline: 1000,
  maxOfflineBytes: 8 * 1024 * 1024,
};

class Engine {
  events = new Emitter();
  /** @type {State} */
  state = "idle";
  /** @type {ConnectionClosed | null} */
  closed = null;
  clientId = "";
  lastFailure = "";
  /** The latest client ids we have had. @type {Set<string>} */
  own = new Set();
  /** All that are not answered yet, in the order they were made. @type {Set<Sending>} */
  commands = new Set();

  #limits = { ...LIMITS };
  #token;
  #data;
  /** What http.js chooses a transport by; as long as it is `plain`, a WebSocket will do. */
  #choice;
  /** So many connections in a row were cut early. */
  #cuts = 0;
  /** Goes on with our session (C3). */
  #resume = "";
  #clock;
  #random;
  now;
  #backoff;
  #keyPrefix;
  /** @type {Map<string, Membership>} */
  #rooms = new Map();
  #commandBytes = 0;
  #keys = 0;
  /** @type {Link | null} */
  #link = null;
  /** Counts attempts, so that what an older one brings late is not taken for the newer one's. */
  #attempt = 0;
  /** When to try again. */
  #dueAt = Infinity;
  /** The server does not want to see us before. */
  #notBefore = 0;
  #openBy = Infinity;
  /** The page is hidden for good, or kept in a cache. */
  #suspended = false;
  /** A token was refused as expired, and a new one fetched at once. */
  #renewed = false;
  #flushing = false;
  /** @type {any} */
  #timer = null;
  #timerDue = Infinity;
  /** @type {(() => void)[]} */
  #unwatch = [];

  /** @param {string | URL} url @param {ConnectOptions} options */
  constructor(url, options) {
    const {
      token = null,
      data,
      receiveOnly = false,
      transports = ["websocket", "sse", "poll"],
      WebSocket = globalThis.WebSocket,
      clock = systemClock,
      random = Math.random,
      page = globalThis,
    } = options;
    for (const [name, standard] of Object.entries(LIMITS)) {
      const value = /** @type {any} */ (options)[name] ?? standard;
      check(value > 0 && value < Infinity, `${name} is positive`, value);
      this.#limits[/** @type {keyof typeof LIMITS} */ (name)] = value;
    }
    const known = token === null || isText(token) || isFunction(token);
    check(known, "token is a string or a function", typeof token);
    this.#token = token;
    this.#data = copied(data);
    let plain = !!WebSocket && !receiveOnly && transports[0] === "websocket";
    try {
      plain &&= !page.localStorage.rtkit; // where another transport is remembered
    } catch {} // there is none, or this page may not know
    const mute = transports[1] ? MUTE : Infinity;
    const way = /** @type {Transport} */ ("websocket");
    this.#choice = { way, plain, mute, url: endpoint(url), transports, receiveOnly, WebSocket, clock, page };
    this.#clock = clock;
    this.#random = random;
    this.now = sleepless(clock);
    this.#backoff = this.#newBackoff();
    this.#keyPrefix = `${random()}${random()}`;
  }

  #newBackoff() {
    return makeBackoff(this.#limits.minDelay, this.#limits.maxDelay, this.#random);
  }

  get transport() {
    return this.#link?.online ? this.#choice.way : null;
  }

  // Life.

  start() {
    if (this.state !== "idle") return;
    this.#watchPage();
    this.#connect();
  }

  /** @param {State} state */
  #set(state) {
    if (state === this.state || this.state === "closed") return;
    this.state = state;
    this.events.emit("state", state);
  }

  /** Something the application should know, and nobody waits for. @param {Error} error */
  tell(error) {
    if (!this.events.emit("error", error)) console.error(error);
  }

  /** @throws {ConnectionClosed} When the client is closed. */
  refuse() {
    if (this.closed) throw this.closed;
  }

  close() {
    this.#parts("flush");
    this.#bye();
    this.#finish({ code: NORMAL, reason: "closed" }, true);
  }

  /** Have people.js do something in all rooms. @param {"look" | "flush"} what */
  #parts(what) {
    for (const room of [...this.#rooms.values()]) room.part?.[what]();
  }

  /** Our session shall not be kept. */
  #bye() {
    const link = this.#link;
    this.#resume = "";
    // A browser complains of what is sent on a socket that is closing.
    if (link?.online && link.rt && !(link.socket.readyState > 1)) link.socket.send('{"bye":{}}');
    this.#dropLink(NORMAL);
  }

  /** It is over: everybody who waits for something is told. @param {Ending} ending @param {boolean} [byUs] */
  #finish({ code, reason, cause }, byUs = false) {
    if (this.closed) return;
    const closed = (this.closed = new ConnectionClosed(code, reason, cause));
    this.#attempt += 1;
    this.#dropLink(NORMAL);
    this.#clearTimer();
    for (const undo of this.#unwatch) undo();
    for (const sending of this.commands) giveUp(sending, closed);
    this.#set("closed");
    for (const room of [...this.#rooms.values()]) this.drop(room, byUs ? null : closed, closed, byUs);
    if (!this.events.emit("closed", closed) && !byUs) this.tell(closed);
  }

  // One attempt.

  async #connect() {
    const attempt = ++this.#attempt;
    const choice = this.#choice;
    /** @param {(event: any) => void} handle */
    const whileMine = (handle) => (/** @type {any} */ event) => {
      if (attempt === this.#attempt) handle(event);
    };
    /** @type {any} */ let token;
    /** @type {any} */ let http;
    this.#dueAt = Infinity;
    this.#openWithin(Infinity);
    this.#set("connecting");
    try {
      token = await this.#getToken();
      if (attempt !== this.#attempt) return;
      const link = (this.#link = new Link());
      this.#openWithin();
      http = choice.plain || (await import("./http.js"));
      if (attempt !== this.#attempt) return;
      const socket = (link.socket = http === true ? new choice.WebSocket(choice.url) : http.open(choice));
      this.#openWithin();
      socket.onopen = whileMine(() => this.#introduce(link, token));
      socket.onmessage = whileMine((event) => this.#received(link, event.data));
      socket.onerror = () => {}; // told again by onclose; to WebSockets other than browsers' nobody listening is a fault
      socket.onclose = whileMine(({ code, reason, window }) => {
        this.#ended({ code, reason, window, terminal: isTerminal(code) });
      });
    } catch (cause) {
      whileMine(() => {
        if (token === undefined) this.#noToken(cause);
        // What is there and cannot be opened will never be.
        else this.#ended({ code: LOST, reason: `${cause}`, terminal: !!http, cause });
      })(0);
    }
  }

  /** @param {number} [mute] So long it may say nothing, if that is less than all of it may take. */
  #openWithin(mute = this.#choice.mute) {
    this.#openBy = this.now() + Math.min(this.#limits.openTimeout, mute);
    this.arm();
  }

  /** @returns {Promise<string>} */
  async #getToken() {
    const token = this.#token;
    const found = isFunction(token) ? await token() : (token ?? "");
    if (isText(found)) return found;
    throw new ConnectionClosed(BAD_TOKEN, "no token");
  }

  /** @param {unknown} cause */
  #noToken(cause) {
    const final = cause instanceof ConnectionClosed;
    const { code = LOST, reason = `no token: ${cause}` } = final ? cause : {};
    this.#ended({ code, reason, terminal: final, cause });
    if (!final) this.tell(new RtkitError(reason, { cause }));
  }

  /** The pipe is open. @param {Link} link @param {string} token */
  #introduce(link, token) {
    for (const room of this.#rooms.values()) {
      if (room.server && !room.forgotten) link.asked.set(room.channel, room.at);
    }
    const subs = [...link.asked].map(([channel, at]) => [
      channel,
      { ...(people && this.#rooms.get(channel)?.wants), ...(at && standing(at)) },
    ]);
    const body = {
      token: token || undefined,
      data: this.#data,
      name: "rtkit-js",
      subs: Object.fromEntries(subs),
      rt: { v: 1, resume: this.#resume || undefined },
    };
    this.#openWithin();
    this.ask("connect", body, (reply, error) => {
      if (error) this.#refused(error);
      else if (reply) this.#welcomed(link, object(reply.connect) ?? {});
    });
  }

  /** @param {Link} link @param {any} result */
  #welcomed(link, result) {
    const now = this.now();
    const rt = object(result.rt);
    const limits = object(rt?.limits) ?? {};
    const subs = Object.entries(object(result.subs) ?? {}).map(
      ([channel, body]) => /** @type {const} */ ([channel, subscribeResult(body)]),
    );
    link.rt = rt !== null;
    this.#resume = text(rt?.resume);
    link.ping = count(result.ping);
    link.pong = flag(result.pong);
    link.unit = count(limits.unit) || Infinity;
    link.most = count(limits.message) || Infinity;
    link.limits = limits;
    link.bucket = makeBucket(number(limits.rate), number(limits.burst), this.now);
    link.bucket(true); // the connect command itself
    link.volume = makeBucket(number(limits.bytes), number(limits.surge), this.now);
    if (flag(result.expires)) this.#scheduleRefresh(link, count(result.ttl));
    this.clientId = text(result.client);
    this.own.delete(this.clientId);
    this.own.add(this.clientId);
    const [oldest] = this.own;
    if (this.own.size > MANY) this.own.delete(oldest);
    this.#openBy = Infinity;
    this.#notBefore = 0;
    this.#renewed = false;
    link.online = true;
    link.began = now;

    const put = new Set();
    for (const [channel, result] of subs) put.add(this.#putIn(channel, result));
    for (const room of [...this.#rooms.values()]) {
      if (put.has(room)) continue;
      if (room.bound) this.#subscribe(room);
      else this.drop(room, null); // the server did not put us in again
    }
    this.#flushSoon();
    this.arm();
    this.#set("connected");
    for (const room of [...this.#rooms.values()]) room.deliver();
  }

  /** `connect` was answered with an error. @param {CallError} error */
  #refused(error) {
    const again = isExpired(error) && isFunction(this.#token);
    const terminal = !error.temporary && !again;
    const code = terminal ? BAD_TOKEN + (CLOSE_CODES[error.code] ?? 3) : LOST;
    const atOnce = again && !this.#renewed;
    this.#renewed ||= again;
    this.#ended({ code, reason: error.message, terminal, atOnce, window: windowOf(error), cause: error });
  }

  /** @param {string} reason */
  #lost(reason) {
    this.#ended({ code: LOST, reason });
  }

  /** The connection, or the attempt at one, is over. @param {Ending} ending */
  #ended(ending) {
    const link = this.#link;
    // What the server said before it closes counts more than how the pipe ended.
    if (link?.closed && !ending.terminal) ending = link.closed;
    const now = this.now();
    this.#attempt += 1;
    this.#openBy = Infinity;
    this.lastFailure = `${ending.reason || "connection lost"} (code ${ending.code})`;
    if (ending.terminal) {
      this.#finish(ending);
      return;
    }
    if (ending.code === REPLACED) this.#resume = "";
    this.#dropLink(RECONNECTING);
    if (this.closed) return; // by a listener
    if (link && now - link.began >= STABLE) this.#backoff.reset();
    if (ending.window) this.#notBefore = now + this.#backoff.next(ending.window);
    if (ending.code >= SAID) this.#cuts = 0;
    if (this.#suspended) this.#dueAt = Infinity;
    else if (ending.atOnce) {
      this.#connect();
      return;
    } else if (ending.window) this.#dueAt = this.#notBefore;
    else if (this.#offline) this.#dueAt = now + this.#limits.maxDelay;
    else {
      if (link && ending.code < SAID) {
        // Mute, or cut too soon, and nobody said why.
        this.#cuts = link.heardAt < 0 ? CUTS : link.online && now - link.began < CUT ? this.#cuts + 1 : 0;
        if (this.#cuts >= CUTS && this.#choice.transports[1]) {
          this.#fallBack(ending);
          return;
        }
      }
      this.#dueAt = now + this.#backoff.next();
    }
    this.arm();
    this.#set("waiting");
  }

  /**
   * The transport does not work here: try the next, at once; unless it is the server that is not to be had (T7).
   * @param {Ending} ending
   */
  async #fallBack(ending) {
    const attempt = this.#attempt;
    this.#cuts = 0;
    this.#openWithin();
    this.#set("connecting");
    try {
      await (await import("./http.js")).judge(ending, this.#choice);
    } catch {} // the server cannot be had
    if (attempt === this.#attempt) this.#ended(ending);
  }

  /** Forget the connection, if there is one. @param {number} code To close it with. */
  #dropLink(code) {
    const link = this.#link;
    if (!link) return;
    this.#link = null;
    link.socket?.close(code);
    for (const room of this.#rooms.values()) room.reset();
    for (const answered of [...link.answers.values(), ...link.asks.map((ask) => ask[2])]) answered(null, null);
    this.#expire();
  }

  // What comes in.

  /** @param {Link} link @param {any} frame */
  #received(link, frame) {
    link.heardAt = this.now();
    link.probeBy = Infinity;
    try {
      for (const line of frame.split("\n")) {
        if (link !== this.#link) return; // closed by a listener, or by what was said
        if (link.held) link.held.push(line);
        else if (line.trim()) this.#unit(link, object(JSON.parse(line)));
      }
    } catch (cause) {
      if (link === this.#link) this.#lost(`cannot take it: ${cause}`);
    }
  }

  /** @param {Link} link @param {any} unit */
  #unit(link, unit) {
    const push = object(unit.push);
    const id = count(unit.id);
    if (push) this.#pushed(link, push);
    else if (id) {
      const error = callError(unit.error);
      if (error?.code === TOO_MANY_REQUESTS) {
        link.until = Math.max(link.until, this.now() + (error.retryAfter ?? 1));
        this.#flushSoon();
      }
      const answered = link.answers.get(id);
      link.answers.delete(id);
      answered?.(unit, error);
    } else if (link.pong && !Object.keys(unit).length) link.socket.send("{}");
  }

  /** @param {Link} link @param {any} push */
  #pushed(link, push) {
    const [disconnect, message, refresh] = [push.disconnect, push.message, push.refresh].map(object);
    if (disconnect) {
      const code = count(disconnect.code);
      const rt = object(disconnect.rt);
      const low = Math.max(0, number(rt?.min));
      const window = rt && [low, Math.max(low, number(rt.max))];
      link.closed = { code, reason: text(disconnect.reason), terminal: isTerminal(code), window };
    } else if (push.chunk) this.#large(link, push.chunk);
    else if (message) this.events.emit("message", splitEvent(message.data ?? null));
    else if (refresh) {
      if (flag(refresh.expires)) this.#scheduleRefresh(link, count(refresh.ttl));
    } else this.#pushedToRoom(push);
  }

  /** What is too large to go whole (T8): a unit of ours, or a piece of theirs. @param {Link} link @param {any} it */
  async #large(link, it) {
    const theirs = !isText(it);
    try {
      if (!chunks) {
        if (theirs) link.held = [];
        chunks = await import("./chunks.js");
      }
      if (link !== this.#link) return;
      const held = theirs && link.held;
      if (held) link.held = null;
      chunks.large(link, it, this.#clock, (/** @type {string} */ unit) => this.#received(link, unit));
      if (held) this.#received(link, held.join("\n"));
    } catch (cause) {
      if (link === this.#link) this.#lost(`cannot take it: ${cause}`);
    }
  }

  /** @param {any} push */
  #pushedToRoom(push) {
    const { pub, subscribe: put } = push;
    const [gap, position, signal, out] = [push.gap, push.position, push.signal, push.unsubscribe].map(object);
    const channel = text(push.channel);
    const room = put ? this.#putIn(channel, subscribeResult(put)) : this.#rooms.get(channel);
    if (!room) return; // just left
    if (room.phase === "in" && room.part?.took(push)) return room.deliver();
    if (pub) this.act(room, room.published(publication(pub)));
    else if (gap) this.act(room, room.toldGap(gapBody(gap)));
    else if (position) this.act(room, room.told(epoch(position.epoch), count(position.offset)));
    else if (out) this.act(room, room.unsubscribed(count(out.code), text(out.reason)));
    else if (room.phase === "in" && signal) {
      const { event, data = null } = signal;
      room.events.emit("signal", {
        event: text(event),
        data,
        sender: text(signal.user) || null,
        client: text(signal.client) || null,
      });
    }
    room.deliver();
  }

  // Rooms.

  /** @param {string} channel @param {JoinOptions} options */
  join(channel, options) {
    const { since = null, rewind = 0, data, echo = true, raw = false, maxQueue = 1024, presence, receipts } = options;
    const wants = { presence, marks: receipts };
    this.refuse();
    const fits = isName(channel) && !/[\u0000-\u001f\u007f]/.test(channel);
    check(fits, "a name has 1 to 255 bytes, no controls", channel);
    const at = checkedPosition(since);
    check(isCount(rewind) && !(at && rewind), "rewind is a count, without since");
    check(maxQueue >= 1, "maxQueue is positive", maxQueue);
    const found = this.#rooms.get(channel);
    check(!found?.bound, `${quoted(channel)} is joined already`);
    const room = found ?? new Membership(this, channel, this.#newBackoff());
    Object.assign(room, { bound: true, data: copied(data), echo, raw, limit: maxQueue, wants });
    if (!found) {
      this.#rooms.set(channel, room);
      room.rebase(at, rewind);
      this.#subscribe(room);
    } else {
      const anew = at || rewind || room.data !== undefined;
      // It wants a join of its own making; what was gathered comes again, or is not wanted.
      if (anew) room.rebase(at, rewind);
      if ((anew || presence || receipts) && room.phase === "in") this.act(room, "rejoin");
    }
    soon(() => room.deliver());
    return room;
  }

  /** Leave a room for good, at once. @param {Membership} room @returns {Promise<void>} The server has confirmed it. */
  leave(room) {
    const { phase, channel } = room;
    room.part?.flush();
    return new Promise((resolve) => {
      if (this.#rooms.get(channel) === room) this.drop(room, null, leftError(channel), true);
      if (!this.#link?.online || (phase !== "asked" && phase !== "in")) {
        resolve();
        return;
      }
      const timer = this.#clock.setTimeout(resolve, LEAVE_TIMEOUT);
      this.ask("unsubscribe", { channel }, () => {
        this.#clock.clearTimeout(timer);
        resolve();
      });
    });
  }

  /**
   * A room is over.
   * @param {Membership} room
   * @param {Error | null} error Null when it was our wish.
   * @param {Error} [forCommands]
   * @param {boolean} [discard]
   */
  drop(room, error, forCommands = error ?? leftError(room.channel), discard = false) {
    this.#rooms.delete(room.channel);
    const awaited = room.waiting.size > 0;
    room.end(error, discard);
    for (const sending of this.commands) {
      if (sending.lane === room.channel && !sending.flying) giveUp(sending, forCommands);
    }
    room.deliver();
    if (!room.events.emit("left", error) && error && !awaited && !this.closed) this.tell(error);
  }

  /** The server put us in. @param {string} channel @param {ReturnType<typeof subscribeResult>} result */
  #putIn(channel, result) {
    const room = this.#rooms.get(channel) ?? new Membership(this, channel, this.#newBackoff());
    this.#rooms.set(channel, room);
    room.server = true;
    this.act(room, room.adopt(result, this.#link?.asked.get(channel)));
    return room;
  }

  /** @param {Membership} room @param {"join" | "rejoin" | undefined} todo */
  act(room, todo) {
    if (todo) {
      const now = this.now();
      if (todo === "rejoin") this.ask("unsubscribe", { channel: room.channel });
      const delay = room.delay(now);
      if (delay) this.#joinAt(room, now + delay);
      else this.#subscribe(room);
    }
    if (room.phase === "in") this.#flushSoon();
  }

  /** @param {Membership} room @param {number} when */
  #joinAt(room, when) {
    room.reset();
    room.retryAt = when;
    this.arm();
  }

  /** Enough of a full queue is drained: go on. @param {Membership} room */
  resume(room) {
    this.ask("unsubscribe", { channel: room.channel });
    this.#subscribe(room);
  }

  /** @param {Membership} room */
  #subscribe(room) {
    const link = this.#link;
    const { presence, marks } = room.wants;
    if (!link?.online) return;
    if (!people && (presence || marks)) {
      // Nothing may come before it is there.
      const join = () => {
        if (link === this.#link && /out|in/.test(room.phase)) this.#subscribe(room);
      };
      loadPeople().then(join, (error) => {
        room.wants = {};
        this.tell(error);
        join();
      });
      return;
    }
    room.retryAt = Infinity;
    this.ask("subscribe", room.request(), (reply, error) => {
      if (!reply || this.#rooms.get(room.channel) !== room) return;
      if (!error) this.act(room, room.accept(subscribeResult(reply.subscribe)));
      else if (error.code === ALREADY_SUBSCRIBED) this.act(room, "rejoin");
      else if (error.code === UNRECOVERABLE && room.at && !room.forgotten) {
        room.forgotten = true;
        this.#subscribe(room);
      } else if (error.temporary) {
        room.began = this.now();
        this.#joinAt(room, room.began + room.backoff.next(windowOf(error)));
      } else this.drop(room, error);
      room.deliver();
    });
  }

  // Commands.

  /**
   * Queue a command and wait for its reply.
   * @param {string} method
   * @param {any} body All of it but the payload.
   * @param {any} data The payload; undefined for none.
   * @param {SendOptions} options
   * @returns {Promise<any>}
   */
  submit(method, body, data, { timeout, signal }) {
    return new Promise((resolve, reject) => {
      this.refuse();
      signal?.throwIfAborted();
      const payload = data === undefined ? "" : encode(data);
      const json = payload ? `${encode(body).slice(0, -1)},"data":${payload}}` : encode(body);
      const size = byteLength(payload);
      const { maxOffline, maxOfflineBytes } = this.#limits;
      if (this.commands.size >= maxOffline || (this.commands.size && this.#commandBytes + size > maxOfflineBytes)) {
        throw new QueueFull("too many wait");
      }
      /** @type {any} */ let timer;
      const abort = () => sending.settle(signal?.reason);
      /** @type {Sending} */
      const sending = {
        method,
        json,
        lane: body.channel ?? "",
        keyed: body.key !== undefined,
        size,
        whole: byteLength(json) + 40, // around the body stand an id and the method
        flying: false,
        since: null,
        lost: false,
        settle: (error, reply) => {
          if (!this.commands.delete(sending)) return;
          this.#commandBytes -= size;
          this.#clock.clearTimeout(timer);
          signal?.removeEventListener("abort", abort);
          this.#flushSoon(); // what it was in the way of
          if (reply) resolve(reply);
          else reject(error);
        },
      };
      this.commands.add(sending);
      this.#commandBytes += size;
      signal?.addEventListener("abort", abort);
      if (timeout !== undefined) {
        timer = this.#clock.setTimeout(() => giveUp(sending, new TimeoutError("withdrawn")), timeout);
      }
      this.#flushSoon();
    });
  }

  /** @param {string} [key] */
  key(key = `${this.#keyPrefix}-${++this.#keys}`) {
    check(isName(key) && key.length <= 128, "a key has 1 to 128 characters", key);
    return key;
  }

  /** Give up what was written too long ago to be written again (H7). */
  #expire() {
    const limit = this.now() - this.#limits.resendWithin + HAIR;
    for (const sending of this.commands) {
      if (!sending.flying && sending.keyed && (sending.since ?? Infinity) <= limit) {
        sending.settle(unknown());
      }
    }
  }

  /** @param {Membership} room @param {string} event @param {unknown} data @returns {boolean} */
  signal(room, event, data) {
    const json = encode({ channel: room.channel, event: event || undefined, data });
    const send = () => this.post(room, event, "signal", json);
    return room.part?.signal(event, send) ?? send();
  }

  /**
   * Write it when there is nothing else to be written. Of the same kind only the newest.
   * @param {Membership} room
   * @param {string} kind
   * @param {string} method
   * @param {string} json
   * @returns {boolean} False when it cannot be.
   */
  post({ phase, channel }, kind, method, json) {
    const link = this.#link;
    kind = `${method}\n${channel}\n${kind}`;
    if (!link?.rt || phase !== "in" || (!link.signals.has(kind) && link.signals.size >= MANY)) return false;
    link.signals.set(kind, [method, json]);
    this.#flushSoon();
    return true;
  }

  // What goes out.

  /**
   * A command of the client's own. Joins and leaves are written in their turn, all others at once.
   * @param {string} method
   * @param {any} body
   * @param {(reply: any, error: CallError | null) => void} [answered]
   */
  ask(method, body, answered = () => {}) {
    const link = this.#link;
    const json = JSON.stringify(body);
    if (!link) return;
    if (method.endsWith("subscribe")) {
      link.asks.push([method, json, answered]);
      this.#flushSoon();
    } else {
      // A browser complains of what is sent on a socket that is closing.
      if (link.socket.readyState > 1) return;
      link.bucket(true);
      link.socket.send(this.#written(link, method, json, answered));
    }
  }

  /**
   * @param {Link} link
   * @param {string} method
   * @param {string} json
   * @param {(reply: any, error: CallError | null) => void} answered
   */
  #written(link, method, json, answered) {
    const id = link.nextId++;
    link.answers.set(id, answered);
    return `{"id":${id},"${method}":${json}}`;
  }

  #flushSoon() {
    if (this.#flushing) return;
    this.#flushing = true;
    soon(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  /** Write what may be written: joins and leaves, then commands, oldest first, then signals. */
  #flush() {
    const link = this.#link;
    if (!link?.online) return;
    this.#expire();
    let frame = "";
    let size = 0;
    for (let unit; (unit = this.#nextUnit(link));) {
      const more = byteLength(unit) + 1;
      if (more > link.unit) {
        this.#large(link, unit);
        continue;
      }
      link.volume(true, more);
      if (frame && size + more > Math.min(FRAME, link.unit)) {
        link.socket.send(frame);
        frame = "";
        size = 0;
      }
      frame += frame ? `\n${unit}` : unit;
      size += more;
    }
    if (frame) link.socket.send(frame);
  }

  /** @param {Link} link @returns {string} Empty for none now. */
  #nextUnit(link) {
    const ask = link.asks[0];
    const sending = ask ? undefined : this.#nextSending(link);
    const [signal] = link.signals;
    if (!ask && !sending && !signal) return "";
    const now = this.now();
    const held = link.until > now && link.until - now;
    // Of what goes in chunks this is the first; the others follow when there is room for them.
    const full = sending && link.volume(null, Math.min(sending.whole, link.unit));
    const wait = held || full || link.bucket();
    if (wait) {
      this.arm(now + wait);
      return "";
    }
    if (ask) {
      link.asks.shift();
      return this.#written(link, ...ask);
    }
    if (sending) {
      sending.flying = true;
      sending.since ??= now;
      return this.#written(link, sending.method, sending.json, (...answer) => this.#replied(link, sending, ...answer));
    }
    link.signals.delete(signal[0]);
    return this.#written(link, ...signal[1], () => {});
  }

  /** The next command that is within the server's limits; the others are told that they are not. @param {Link} link */
  #nextSending({ unit, most, limits }) {
    const behind = new Set();
    for (const sending of this.commands) {
      const { method, size, whole, lane, flying } = sending;
      // The chunks of what is large take their time: what follows it in its room waits for its answer.
      if (flying && lane && whole > unit) behind.add(lane);
      if (flying || behind.has(lane) || (lane && this.#rooms.get(lane)?.phase !== "in")) continue;
      if (whole <= (limits.large || unit) && (method !== "publish" || size <= most)) return sending;
      giveUp(sending, new InvalidMessage(`${size} bytes are too many`));
    }
    return undefined;
  }

  /** @param {Link} link @param {Sending} sending @param {any} reply @param {CallError | null} error */
  #replied(link, sending, reply, error) {
    const { lane } = sending;
    const gone = lane && !this.#rooms.has(lane);
    sending.flying = false;
    if (reply && error?.code !== TOO_MANY_REQUESTS) sending.settle(error, error ? null : reply);
    else if (reply) {
      // Not taken: it waits again where it stood.
      if (!sending.lost) sending.since = null;
      if (gone) giveUp(sending, leftError(lane));
    } else {
      sending.lost = true;
      if (gone || (sending.keyed && !link.rt)) giveUp(sending, new ConnectionClosed(LOST, "connection lost"));
    }
  }

  // Renewing the identity (A3).

  /**
   * It holds so long: renew it a fifth of that, but at most 10 s, before its end.
   * @param {Link} link
   * @param {number} ttl
   */
  #scheduleRefresh(link, ttl) {
    if (!isFunction(this.#token)) return;
    link.refreshAt = this.now() + ttl - Math.min(10, ttl * 0.2);
    this.arm();
  }

  /** @param {Link} link */
  async #refresh(link) {
    link.refreshAt = Infinity;
    if (link.refreshing) return;
    link.refreshing = true;
    /** @param {unknown} cause @param {boolean} again @param {CallError} [error] */
    const failed = (cause, again, error) => {
      if (link !== this.#link) return;
      // Given up, the identity expires: the server closes the connection, and the next one finds out.
      if (again) link.refreshAt = this.now() + (error?.retryAfter ?? 1 + 2 * this.#random());
      this.arm();
      this.tell(new RtkitError(`no token: ${cause}`, { cause }));
    };
    try {
      const token = await this.#getToken();
      if (link !== this.#link) return;
      this.ask("refresh", { token }, (reply, error) => {
        const result = object(reply?.refresh);
        if (error) failed(error, error.temporary || isExpired(error), error);
        else if (result && flag(result.expires)) this.#scheduleRefresh(link, count(result.ttl));
      });
    } catch (cause) {
      failed(cause, !(cause instanceof ConnectionClosed));
    } finally {
      link.refreshing = false;
    }
  }

  // Time.

  /** Have the timer come in time for what is due, or at this moment if that is sooner. @param {number} [when] */
  arm(when = Infinity) {
    if (this.closed || this.#suspended) return;
    const now = this.now();
    const link = this.#link;
    let due = Math.min(when, now + TICK, this.#dueAt, this.#openBy);
    if (link) due = Math.min(due, link.probeBy < Infinity ? link.probeBy : this.#silentAt(link), link.refreshAt);
    for (const { retryAt, part } of this.#rooms.values()) due = Math.min(due, retryAt, part?.due ?? due);
    if (this.#timerDue <= due) return;
    this.#clearTimer();
    this.#timerDue = due;
    this.#timer = this.#clock.setTimeout(() => this.#tick(), Math.max(HAIR, due - now));
  }

  #clearTimer() {
    this.#clock.clearTimeout(this.#timer);
    this.#timerDue = Infinity;
  }

  #tick() {
    const now = Math.max(this.now(), this.#timerDue); // timers may come a hair early
    const late = now - this.#timerDue;
    this.#timerDue = Infinity;
    this.#expire();
    if (this.#openBy <= now) this.#lost("no answer");
    else if (this.#dueAt <= now) this.#connect();
    const link = this.#link;
    if (link?.online) this.#checkSilence(link, now, late);
    for (const room of this.#rooms.values()) if (room.retryAt <= now) this.#subscribe(room);
    this.#parts("look");
    if (link && link === this.#link && link.refreshAt <= now) this.#refresh(link);
    this.#flush();
    this.arm();
  }

  /** When silence means that the server is gone. @param {Link} link */
  #silentAt({ ping, heardAt }) {
    return ping > 0 ? heardAt + ping + this.#limits.silence : Infinity;
  }

  /**
   * Nothing heard for too long means gone (F4); unless it was we who did not listen.
   * @param {Link} link
   * @param {number} now
   * @param {number} late
   */
  #checkSilence(link, now, late) {
    const { ping, probeBy } = link;
    const quiet = now - link.heardAt;
    const silent = this.#silentAt(link) <= now;
    const unproven = probeBy <= now;
    if (unproven ? late <= ASLEEP : silent && late <= LATE && probeBy === Infinity) {
      this.#lost(`nothing heard for ${Math.round(quiet)} s`);
    } else if (unproven || silent || (late > LATE && ping > 0 && quiet > ping)) {
      if (unproven) link.probeBy = Infinity;
      this.#probe(link, now);
    }
  }

  /** Have the server prove that it lives, soon. @param {Link} link @param {number} now */
  #probe(link, now) {
    if (link.probeBy < Infinity) return;
    // Behind a command that takes its time our ping has to wait, and the next of the server's is proof enough.
    link.probeBy = now + PROBE + (link.answers.size ? link.ping : 0);
    this.ask("ping", {});
    this.arm();
  }

  // The page (K3).

  get #offline() {
    return this.#choice.page.navigator?.onLine === false;
  }

  #watchPage() {
    const { page } = this.#choice;
    /** @param {any} target @param {string} name @param {(event: any) => void} handler */
    const watch = (target, name, handler) => {
      if (!target?.addEventListener) return;
      target.addEventListener(name, handler);
      this.#unwatch.push(() => target.removeEventListener(name, handler));
    };
    watch(page, "online", () => this.#back());
    watch(page, "offline", () => {
      if (this.state === "waiting") this.#dueAt = Math.max(this.#dueAt, this.now() + this.#limits.maxDelay);
      this.#check();
    });
    /** @param {any} event */
    const gone = (event) => this.#suspend(event);
    const back = () => {
      if (!this.#suspended) return;
      this.#suspended = false;
      this.#back();
    };
    watch(page, "pagehide", gone);
    watch(page, "pageshow", back);
    watch(page.document, "freeze", gone);
    watch(page.document, "resume", back);
    watch(page.document, "visibilitychange", () => {
      if (page.document.visibilityState === "visible") this.#check();
    });
  }

  /** Do not trust what we believed before. */
  #check() {
    const link = this.#link;
    const now = this.now();
    this.#parts("look");
    if (this.#dueAt <= now) this.#connect();
    else if (link?.online && now - link.heardAt > LATE) this.#probe(link, now);
  }

  /** The network or the page came back: waiting is over, unless the server named a window. */
  #back() {
    this.#backoff.reset();
    if (this.state === "waiting" && !this.#suspended) this.#dueAt = Math.max(this.now(), this.#notBefore);
    this.#check();
    this.arm();
  }

  /**
   * The page goes: an open connection would only go stale, or keep it from being cached. If it goes for good, others
   * shall see at once that we have left.
   * @param {any} event
   */
  #suspend({ persisted }) {
    if (this.#suspended) return;
    this.#parts("flush");
    this.#suspended = true;
    if (persisted === false) this.#bye();
    this.#clearTimer();
    this.#lost("hidden");
  }
}

// -- the face ---------------------------------------------------------------------------------------------------

/**
 * A client of the hub at `url`. It begins to connect in the next microtask and comes back after every loss.
 *
 * @param {string | URL} url Of the mounted hub, relative to the page or absolute: "/rt".
 * @param {ConnectOptions} [options]
 * @returns {Client}
 * @throws {UsageError} For a URL or an option that cannot be right.
 */
export function connect(url, options = {}) {
  return new Client(url, options);
}

/** A client of a hub; see {@link connect}. */
export class Client {
  /** @type {Engine} */
  #engine;

  /** @param {string | URL} url @param {ConnectOptions} [options] */
  constructor(url, options = {}) {
    this.#engine = new Engine(url, options);
    soon(() => this.#engine.start());
  }

  /** Where the client stands. @returns {State} */
  get state() {
    return this.#engine.state;
  }

  /** Why it is closed for good; null while it is not. @returns {ConnectionClosed | null} */
  get closed() {
    return this.#engine.closed;
  }

  /** How the server calls the latest connection; null before the first. @returns {string | null} */
  get clientId() {
    return this.#engine.clientId || null;
  }

  /**
   * Why the latest connection ended or attempt failed, in plain words; empty before the first failure.
   * @returns {string}
   */
  get lastFailure() {
    return this.#engine.lastFailure;
  }

  /** What it is connected by now; null while it is not. @returns {Transport | null} */
  get transport() {
    return this.#engine.transport;
  }

  /** Commands without an answer yet. @returns {number} */
  get pending() {
    return this.#engine.commands.size;
  }

  /**
   * Have a function called when something happens; see `ClientEvents`.
   * @template {keyof ClientEvents} K
   * @param {K} name
   * @param {(...args: ClientEvents[K]) => unknown} listener What it throws is reported, and harms nobody.
   * @returns {() => void} Takes it away again.
   */
  on(name, listener) {
    return this.#engine.events.on(name, listener);
  }

  /**
   * Wait until the client is connected.
   * @returns {Promise<void>}
   * @throws {ConnectionClosed} When it is closed for good.
   */
  connected() {
    return new Promise((resolve, reject) => {
      const check = () => {
        if (this.closed) reject(this.closed);
        else if (this.state === "connected") resolve();
        else return;
        off();
      };
      const off = this.on("state", check);
      check();
    });
  }

  /**
   * Join a room; answers at once. The room joins again by itself after every loss. Put listeners on in the same
   * task, or later: what comes before waits for them.
   *
   * @template {Record<string, any>} [E=Record<string, any>] Data by event.
   * @param {string} name The full name; see {@link encodeParam}.
   * @param {JoinOptions} [options]
   * @returns {Room<E>}
   * @throws {UsageError} For a name that cannot be one, or a room that is joined already.
   * @throws {ConnectionClosed} When the client is closed.
   */
  join(name, options = {}) {
    return new Room(this.#engine, this.#engine.join(name, options));
  }

  /**
   * Call a procedure of the server and wait for what it returns. Queued, sent again and given up like `room.send`.
   * @param {string} method
   * @param {any} [data]
   * @param {SendOptions} [options]
   * @returns {Promise<any>} Null when it returned nothing.
   */
  async call(method, data, options = {}) {
    const body = { method: named(method), key: this.#engine.key(options.key) };
    const reply = await this.#engine.submit("rpc", body, data, options);
    return object(reply.rpc)?.data ?? null;
  }

  /** Say goodbye and close for good. Commands without an answer fail, rooms end. */
  close() {
    this.#engine.close();
  }
}

/**
 * A room this client is in, or is about to be. Made by {@link Client.join}.
 *
 * Listen (`on`) or iterate (`for await`), not both: either way every message of a room with history comes exactly
 * once and in order, across any number of reconnects, and where that cannot be proven there is a {@link Gap} in the
 * place of what is missing. In a room without history messages come at most once.
 *
 * @template {Record<string, any>} [E=Record<string, any>]
 */
export class Room {
  /** @type {Engine} */ #engine;
  /** @type {Membership} */ #room;

  /** @internal @param {any} engine @param {any} room */
  constructor(engine, room) {
    this.#engine = engine;
    this.#room = room;
    room.face = this;
  }

  /**
   * Who is here, in the order they came; if asked for with `presence`. Another array after each change. Empty while it
   * is not known: in rooms that are too full, too, which are only counted.
   * @readonly
   * @type {readonly Member[]}
   */
  members = [];

  /** How many clients are here. @readonly @type {number} */
  clients = 0;

  /** How far users have come, if asked for with `receipts`. @readonly @type {ReadonlyMap<string, Marks>} */
  marks = new Map();

  /** So many messages are behind what this user has read; if asked for with `receipts`. @readonly @type {number} */
  unread = 0;

  /** The users that are typing now, in rooms that know; without this client. @returns {string[]} */
  get typists() {
    return this.#room.part?.typists ?? [];
  }

  /** The full name. */
  get name() {
    return this.#room.channel;
  }

  /** Whether the server has us in now. @returns {"joining" | "joined" | "left"} */
  get state() {
    const { phase } = this.#room;
    return phase === "in" ? "joined" : phase === "ended" ? "left" : "joining";
  }

  /**
   * Behind the last message or gap that was handed out: pass it as `since` another time. Plain data. Null in a room
   * without history, and before the room was joined.
   * @returns {Position | null}
   */
  get position() {
    const { position } = this.#room;
    return position && { ...position };
  }

  /** What the room's `on_join` returned to the latest join; undefined without any. @returns {any} */
  get data() {
    return this.#room.joinData;
  }

  /**
   * Wait until the server has let us in for the first time.
   * @returns {Promise<this>}
   * @throws {CallError} When it refuses.
   * @throws {Unsubscribed} When it has taken us out again.
   * @throws {ConnectionClosed} When the client is closed for good.
   * @throws {NotRunning} When the room was left.
   */
  joined() {
    const room = this.#room;
    return room.wait(() => (room.joins && room.phase !== "ended" ? this : undefined));
  }

  /**
   * Have a function called with every message of an event, or with what happens to the room: `message`, `gap`, `signal`,
   * `joined`, `left`, `presence`, `typing`, `marks` (see `RoomEvents`). An event that has one of these names comes as
   * `message` only.
   * What came before the first listener for messages waits for it.
   *
   * @template {keyof RoomEvents} K
   * @overload
   * @param {K} name
   * @param {(...args: RoomEvents<E[keyof E]>[K]) => unknown} listener
   * @returns {() => void}
   */
  /**
   * @template {keyof E & string} K
   * @overload
   * @param {K} name
   * @param {(data: E[K], message: Message<E[K], K>) => unknown} listener What it throws is reported, and harms nobody.
   * @returns {() => void} Takes it away again.
   */
  /**
   * @param {string} name
   * @param {(...args: any[]) => unknown} listener
   * @returns {() => void}
   */
  on(name, listener) {
    const room = this.#room;
    check(!room.iterators || !takesMessages(name), EITHER_OR);
    const off = room.events.on(name, listener);
    soon(() => room.deliver());
    return off;
  }

  /**
   * Every message and gap, from the oldest that nobody has taken.
   * @returns {AsyncIterableIterator<Message<E[keyof E]> | Gap>} Ends when the room is left.
   * @throws {UsageError} When there are listeners for messages.
   */
  [Symbol.asyncIterator]() {
    const room = this.#room;
    check(!room.heard, EITHER_OR);
    room.iterators += 1;
    let over = false;
    /** @type {AsyncIterableIterator<Message | Gap>} */
    const iterator = {
      [Symbol.asyncIterator]: () => iterator,
      next: () =>
        room.wait(() => {
          if (!over && room.filled) return { done: false, value: /** @type {Message | Gap} */ (room.next()) };
          return over || (room.phase === "ended" && !room.error) ? { done: true, value: undefined } : undefined;
        }),
      return: async () => {
        if (!over) room.iterators -= 1;
        over = true;
        room.deliver();
        return { done: true, value: undefined };
      },
    };
    return iterator;
  }

  /**
   * Send a message to the room's handler and wait for the acknowledgement. While there is no connection it is
   * queued; after a reconnect it is sent again until it is answered, and its key makes that happen once.
   *
   * @param {string} event The type of the message.
   * @param {any} [data]
   * @param {SendOptions} [options]
   * @returns {Promise<any>} What the handler returned; null for nothing.
   * @throws {CallError} The server refused it.
   * @throws {PublishUnknown} Sent, but not answered in time: it may have happened.
   * @throws {TimeoutError} Never sent within the timeout, and withdrawn.
   * @throws {QueueFull} Too many commands wait.
   * @throws {InvalidMessage} JSON cannot hold it, or it is too large for the server.
   * @throws {Unsubscribed} The server took us out of the room.
   * @throws {ConnectionClosed} The client is closed; not sent.
   * @throws {NotRunning} The room was left; not sent.
   */
  async send(event, data = null, options = {}) {
    return this.#publish({ event: named(event), data }, options);
  }

  /**
   * Publish to a raw room, which takes any JSON; else like {@link Room.send}.
   * @param {any} data
   * @param {SendOptions} [options]
   * @returns {Promise<any>} Its position; null in a room without history.
   */
  async publish(data, options = {}) {
    if (data === undefined) encode(data); // which says what is wrong with it
    return this.#publish(data, options);
  }

  /** @param {any} data @param {SendOptions} options */
  async #publish(data, options) {
    const room = this.#alive();
    const body = { channel: room.channel, key: this.#engine.key(options.key) };
    room.part?.sending();
    const reply = await this.#engine.submit("publish", body, data, options);
    const result = object(reply.publish) ?? {};
    if (result.data !== undefined || !result.epoch) return result.data ?? null;
    return { epoch: epoch(result.epoch), offset: count(result.offset) };
  }

  /**
   * Tell those who are in the room now: at most once, not stored, never waits (D5). Of signals of the same event
   * that wait to be written only the newest is sent.
   * @param {string} event
   * @param {any} [data]
   * @returns {boolean} False when it cannot be sent now: not in the room, or too many wait.
   */
  signal(event, data = null) {
    this.#engine.refuse();
    return this.#engine.signal(this.#alive(), event, data);
  }

  /**
   * This user is typing: call it with each key. Others are told every now and then, and that it is over when it was
   * not called for a while, and with `send`. Nothing happens while not in the room, or in one without typing (X1).
   * @param {boolean} [on] False: no more.
   */
  typing(on = true) {
    this.#room.part?.typing(on);
  }

  /**
   * Replace what this client says about itself to the others in the room. A client that had to come back as another
   * one says it again.
   * @param {Record<string, any>} meta
   * @returns {Promise<void>}
   * @throws {CallError} The server refused it.
   */
  async updatePresence(meta) {
    const room = this.#alive();
    meta = copied(meta);
    await loadPeople();
    await people.attend(room, this.#engine).update(meta);
  }

  /**
   * This user has read everything up to here, on whatever device. Told at once, but once a second at most (X2).
   * @param {Message | Position | null} [place] Without it, what was handed out last.
   */
  markRead(place) {
    this.#room.part?.read(placeOf(place ?? this.position));
  }

  /**
   * The users that are as far as this, or further.
   * @param {Message | Position} place
   * @param {"delivered" | "read"} [kind]
   * @returns {string[]}
   */
  reached(place, kind = "read") {
    return this.#room.part?.reached(placeOf(place), kind) ?? [];
  }

  /**
   * A page of the room's history: what follows `since`, or from the oldest kept; in reverse what comes before it,
   * or from the newest.
   * @param {{ limit?: number, since?: Position | null, reverse?: boolean, timeout?: number, signal?: AbortSignal }} [options]
   *     `limit` is 100 unless given; 0 asks for the top alone.
   * @returns {Promise<Page<E[keyof E]>>}
   * @throws {CallError} Code 112 when `since` cannot be continued from.
   */
  async history(options = {}) {
    const { limit = 100, reverse = false } = options;
    check(isCount(limit), "limit is a count", limit);
    const since = checkedPosition(options.since);
    const room = this.#alive();
    const body = { channel: room.channel, limit, since: since ?? undefined, reverse: reverse || undefined };
    const reply = await this.#engine.submit("history", body, undefined, options);
    const result = object(reply.history) ?? {};
    const top = { epoch: epoch(result.epoch), offset: count(result.offset) };
    const found = publications(result.publications);
    const next = found[0]?.offset ?? (reverse ? 0 : top.offset + 1);
    const complete =
      !since || (since.epoch === top.epoch && (reverse ? since.offset - next : next - since.offset) <= 1);
    const messages = found.map((each) =>
      message(each, each.offset ? { epoch: top.epoch, offset: each.offset } : null, room.raw),
    );
    return { messages, top, complete };
  }

  /**
   * Leave the room: what is queued is forgotten, unsent commands to it fail. Idempotent.
   * @returns {Promise<void>} When the server has confirmed it; at most 5 s, and at once without a connection.
   */
  leave() {
    return this.#engine.leave(this.#room);
  }

  #alive() {
    const room = this.#room;
    this.#engine.refuse();
    if (room.phase === "ended") throw room.error ?? leftError(room.channel);
    return room;
  }
}

/** @param {any} place Of a message, or a position. */
const placeOf = (place) => checkedPosition(place?.position ?? place);

const EITHER_OR = "listen or iterate";

/** @param {string} name */
function named(name) {
  check(isName(name), "a name has 1 to 255 bytes", name);
  return name;
}
