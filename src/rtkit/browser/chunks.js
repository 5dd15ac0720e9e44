/**
 * Units that are too large to go whole (T8): cut into chunks, and put together. client.js loads this module when there
 * is one. Nothing for applications.
 *
 * One large unit at a time goes out, a chunk whenever the pipe has passed on what it had and the server's limit of
 * bytes a second, which it shares with all the rest, allows it; so nothing else waits for more than two chunks. What comes in has to be begun, continued
 * and ended in order; else the connection is given up, and everything is recovered over the next.
 *
 * @module
 */

/** Bytes of a unit in one chunk: 64 KiB in base64. */
const SLICE = 48 * 1024;
/** Bytes around them. */
const AROUND = 96;
/** What a unit may have. */
const MOST = 17 * 1024 * 1024;
/** Seconds until a pipe that was full is looked at again. */
const AGAIN = 0.05;
/** Arguments of one call. */
const ARGUMENTS = 8192;

/** @typedef {{ of: number, n: number, size: number, parts: Uint8Array[] }} Incoming */

/** By connection. @type {WeakMap<any, { incoming: Incoming, outgoing: string[] }>} */
const states = new WeakMap();

/**
 * @param {any} link The connection, as client.js has it.
 * @param {any} it A unit of ours to send; or a chunk of theirs.
 * @param {any} clock
 * @param {(unit: string) => void} received Gets what is whole.
 * @throws {Error} When it makes no sense.
 */
export function large(link, it, clock, received) {
  const state = states.get(link) ?? { incoming: { of: 0, n: 0, size: 0, parts: [] }, outgoing: [] };
  states.set(link, state);
  if (typeof it === "string") {
    if (state.outgoing.push(it) === 1) send(link, state.outgoing, clock);
  } else if (it.error) received(JSON.stringify({ id: it.of, error: it.error }));
  else {
    const whole = add(state.incoming, it);
    if (whole !== null) received(whole);
  }
}

/** @param {Incoming} incoming @param {any} chunk @returns {string | null} The unit, when it is whole. */
function add(incoming, { of, n = 0, last = false, data }) {
  // The sender may give up a unit, and begin with another one.
  if (n === 0 && of !== incoming.of) Object.assign(incoming, { of, n: 0, size: 0, parts: [] });
  if (!(of > 0) || of !== incoming.of || n !== incoming.n) throw new Error(`chunk ${n} of ${of} is out of turn`);
  const part = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  incoming.n += 1;
  incoming.size += part.length;
  if (incoming.size > MOST || !part.length) throw new Error(`chunk ${n} of ${of} is too much`);
  incoming.parts.push(part);
  if (!last) return null;
  const whole = new Uint8Array(incoming.size);
  let at = 0;
  for (const each of incoming.parts.splice(0)) {
    whole.set(each, at);
    at += each.length;
  }
  incoming.n = -1;
  return new TextDecoder("utf-8", { fatal: true }).decode(whole);
}

/** Send what there is, one after the other. @param {any} link @param {string[]} outgoing @param {any} clock */
function send(link, outgoing, clock) {
  const { volume, unit, socket } = link;
  const slice = Math.min(SLICE, Math.floor(((unit - AROUND) * 3) / 4));
  let bytes = new Uint8Array();
  let of = 0;
  let n = 0;
  /** @type {any} */ let timer;
  // What waits for answers is told when the connection is lost; no command has this id.
  link.answers.set("chunks", () => clock.clearTimeout(timer));
  const go = () => {
    for (;;) {
      if (!n) {
        bytes = new TextEncoder().encode(outgoing[0]);
        of = Number(/^\{"id":(\d+)/.exec(outgoing[0])?.[1]);
      }
      const piece = bytes.subarray(n * slice, (n + 1) * slice);
      const cost = (piece.length * 4) / 3 + AROUND;
      const wait = socket.bufferedAmount > 2 * SLICE ? AGAIN : volume(false, cost);
      if (wait) {
        timer = clock.setTimeout(go, Math.max(wait, 0.001));
        return;
      }
      const last = (n + 1) * slice >= bytes.length;
      socket.send(JSON.stringify({ chunk: { of, n, last: last || undefined, data: base64(piece) } }));
      n = last ? 0 : n + 1;
      if (last) outgoing.shift();
      if (!outgoing.length) break;
    }
    link.answers.delete("chunks");
  };
  go();
}

/** @param {Uint8Array} bytes */
function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += ARGUMENTS) {
    text += String.fromCharCode(...bytes.subarray(at, at + ARGUMENTS));
  }
  return btoa(text);
}
