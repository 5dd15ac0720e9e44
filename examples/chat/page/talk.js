// One room: what was said in it, who is there, who is typing, who has read what, and what waits to be sent.
//
// What is *read* is a mark of the user in the room, which the server keeps: so what was read in one tab is not new in
// another, nor after a reload. Those marks of the others make the ticks beside one's own messages.
//
// A message that was written stays in the *outbox* of its room until it is seen in the room's stream. The outbox lies in
// sessionStorage, so that it survives a reload, and each message has a key, which comes back with the message: seen
// again means sent. The server publishes once what it is given twice under one key, so that a message can be sent again
// for some minutes, and appears once. After a reload, and after minutes without an answer, the stream itself is asked.

import { CallError, ConnectionClosed, PublishUnknown, encodeParam } from "/rt/client.js";
import { memory } from "./memory.js";
import * as view from "./view.js";

const PAGE = 50; // messages loaded at once
const MOST = 2000; // messages of a room kept here; older ones are loaded again

const said = ({ data, position, sender, time }) => ({
  kind: "said",
  from: sender ?? "the server",
  text: data.text,
  key: data.key,
  position,
  at: time ? +time : Date.now(),
});

function newKey() {
  // randomUUID would want https, and a phone in the same network has none.
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Talk {
  /**
   * @param rt the client
   * @param me the user's name
   * @param name the room's
   * @param page what shows it: `shows(talk)`, `changed()`, and `write(text)` into the field where one writes
   */
  constructor(rt, me, name, page) {
    this.rt = rt;
    this.me = me;
    this.name = name;
    this.page = page;
    this.items = []; // messages, notes, and holes where messages are missing; oldest first
    this.fresh = 0; // how many of them are not drawn yet
    this.older = ""; // "more" can be loaded, "loading", "gone", or "" when this is the beginning
    this.firstNew = null; // where "New" is written
    this.people = []; // { name, devices, away }, oneself first
    this.count = 0;
    this.typists = [];
    this.read = null; // up to here, as it was said to the server
    this.readers = 0; // the others whose marks are known, and who may tick a message off
    this.joined = false;
    this.refused = "";
    this.outbox = memory.get(`${this.me} outbox ${name}`, []);
    this.room = rt.join(`chat:${encodeParam(name)}`, { rewind: PAGE, presence: true, receipts: true });
    this.room.on("joined", (info) => this.onJoined(info));
    this.room.on("Said", (_, message) => this.onSaid(message));
    this.room.on("gap", (gap) => this.onGap(gap));
    this.room.on("presence", () => this.onPresence());
    this.room.on("typing", (users) => this.onTyping(users));
    this.room.on("marks", () => this.onMarks());
    this.room.on("left", (error) => this.onLeft(error));
    // What a reload left over goes out first: whatever is written meanwhile waits for it.
    this.leftovers = this.sendLeftovers();
  }

  // What comes.

  onJoined({ position }) {
    if (!this.joined) {
      // Who comes for the first time has nothing to catch up with.
      const { marks, unread } = this.room;
      if (!marks.get(this.me)?.read) this.markRead({ epoch: position.epoch, offset: unread });
      if (this.page.away()) this.sayAway(true);
      this.older = "unknown";
      // Nothing is sent to a room before it is joined: what has waited since then is not in it.
      for (const entry of this.outbox) entry.after ??= position;
      this.keep();
    }
    this.joined = true;
    this.onPresence();
    this.drawSoon();
  }

  onSaid(message) {
    this.add(this.arrived(message));
  }

  /** A message, as an item of the conversation; once for each. */
  arrived(message) {
    const item = said(message);
    const { position, sender } = message;
    const mine = sender === this.me;
    if (mine && item.key) this.done(this.outbox.find((entry) => entry.key === item.key));
    if (!mine && !this.watched && !this.isRead(position)) this.firstNew ??= item;
    return item;
  }

  /** Whether this user has read so far, here or anywhere. */
  isRead(position) {
    const here = this.read?.epoch === position.epoch && position.offset <= this.read.offset;
    return here || this.room.reached(position).includes(this.me);
  }

  get unread() {
    return this.joined ? this.room.unread : 0;
  }

  get shown() {
    return this.page.shows(this);
  }

  /** Somebody looks at it. */
  get watched() {
    return this.shown && !document.hidden;
  }

  onGap({ from, to, epoch, reason }) {
    if (reason === "epoch") this.add({ kind: "note", text: "The server has forgotten what was said before" });
    if (reason === "rollback") this.add({ kind: "note", text: "The server has lost some of what was said before" });
    for (const entry of this.outbox) {
      if (!entry.taken) continue;
      if (entry.taken.epoch !== epoch) this.fail(entry, "the server had it, and has forgotten it");
      else this.settle(entry);
    }
    // A gap says what was not delivered. Some of it may still be in the history.
    const hole = { kind: "hole", from: reason === "epoch" ? 0 : from, to, epoch, state: "open" };
    if (hole.to <= hole.from) return;
    this.add(hole);
    this.fillHole(hole);
  }

  /** Load the newest messages of what is missing; they go below the hole, which gets smaller. */
  async fillHole(hole, limit = PAGE) {
    if (hole.state !== "open") return;
    hole.state = "loading";
    try {
      const since = { epoch: hole.epoch, offset: hole.to + 1 };
      const page = await this.room.history({ limit, reverse: true, since });
      const found = page.complete ? page.messages.filter(({ position }) => position.offset > hole.from).toReversed() : [];
      if (found.length) hole.to = found[0].position.offset - 1;
      hole.state = found.length ? "open" : "gone";
      const rest = hole.to > hole.from ? [hole] : [];
      const items = found.map((message) => this.arrived(message));
      const at = this.items.indexOf(hole);
      if (at >= 0) this.items.splice(at, 1, ...rest, ...items);
    } catch {
      hole.state = "open"; // closed, or not reachable now: the button is there again
    }
    if (!this.shown) return;
    view.drawOlder(this);
    this.fresh = 0;
  }

  add(item) {
    this.items.push(item);
    this.fresh += 1;
    this.drawSoon();
  }

  /** Several tabs and devices of one person are one person; who is away is so on all of them. */
  onPresence() {
    const people = new Map();
    for (const { user, meta } of this.room.members) {
      const person = people.get(user) ?? { name: user, devices: 0, away: true };
      person.devices += 1;
      person.away &&= Boolean(meta.away);
      people.set(user, person);
    }
    const rank = ({ name, away }) => (name === this.me ? 0 : away ? 2 : 1);
    this.people = [...people.values()].sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
    this.count = this.people.length || this.room.clients; // too many to be listed, they are only counted
    if (this.shown) view.drawPeople(this);
  }

  onTyping(users) {
    this.typists = users.filter((name) => name !== this.me);
    if (this.shown) view.drawTyping(this);
  }

  onMarks() {
    this.readers = [...this.room.marks.keys()].filter((name) => name !== this.me).length;
    // It was read in another tab, or on another device.
    if (this.firstNew && !this.unread && !this.watched) this.clearNew();
    if (this.shown) view.drawTicks(this);
    this.page.changed();
  }

  /** Who of the others has got, or read, a message of one's own. */
  ticks({ position }) {
    const others = (kind) => this.room.reached(position, kind).filter((name) => name !== this.me).length;
    return { read: others("read"), delivered: others("delivered"), of: this.readers };
  }

  clearNew() {
    this.firstNew = null;
    if (this.shown) view.clearNew();
  }

  /** Say to the others that one is away, or is back. */
  sayAway(away) {
    if (this.refused) return;
    this.room.updatePresence(away ? { away } : {}).catch(() => {}); // the room was left, or the connection closed
  }

  /** A key was touched; or what was written is gone again. */
  typing(on) {
    if (!this.refused) this.room.typing(on);
  }

  onLeft(error) {
    if (!error || error instanceof ConnectionClosed) return;
    this.refused = error instanceof CallError ? `This room cannot be opened: ${error.text}.` : error.message;
    if (this.shown) view.drawTop(this);
  }

  /** What comes in one go is drawn in one go. */
  drawSoon() {
    if (this.drawing) return;
    this.drawing = true;
    queueMicrotask(() => {
      this.drawing = false;
      this.drawNow();
    });
  }

  drawNow() {
    const begin = this.older === "unknown";
    if (begin) {
      const first = this.items.find((item) => item.kind === "said");
      this.older = first && first.position.offset > 1 ? "more" : "";
    }
    if (this.items.length > MOST && !(this.shown && view.readsBack())) {
      this.items.splice(0, this.items.length - MOST / 2);
      this.older = "more";
      this.fresh = this.items.length;
    }
    if (this.shown) {
      if (begin || this.fresh >= this.items.length) view.draw(this);
      else view.append(this, this.fresh);
      this.fresh = 0;
      if (this.watched) this.markRead();
    }
    this.page.changed();
  }

  markRead(position = this.room.position) {
    if (this.refused || !position) return;
    if (!this.unread) this.firstNew = null;
    this.read = position;
    this.room.markRead(position);
  }

  get oldest() {
    const first = this.items.find((item) => item.kind === "said");
    // What is on the screen from before the server forgot it has nothing in front of it any more.
    return first && first.position.epoch === this.room.position?.epoch ? first.position : null;
  }

  async loadOlder() {
    if (this.older !== "more") return;
    const before = this.oldest;
    this.older = before ? "loading" : "gone";
    view.drawTop(this);
    if (!before) return;
    try {
      const page = await this.room.history({ limit: PAGE, reverse: true, since: before });
      const found = page.complete ? page.messages.toReversed() : [];
      this.items.unshift(...found.map(said));
      this.older = (found[0]?.position ?? before).offset === 1 ? "" : found.length ? "more" : "gone";
    } catch {
      this.older = "more"; // the connection was closed; the button is there again
    }
    if (!this.shown) return;
    view.drawOlder(this);
    this.fresh = 0;
  }

  // What goes.

  say(text) {
    const entry = { key: newKey(), text, after: this.room.position }; // if it is in the stream, then behind `after`
    this.outbox.push(entry);
    this.keep();
    this.leftovers.then(() => this.send(entry));
  }

  async send(entry) {
    entry.abort = new AbortController();
    try {
      entry.taken = await this.room.send("Say", { text: entry.text }, { key: entry.key, signal: entry.abort.signal });
      this.settle(entry);
    } catch (error) {
      if (!this.outbox.includes(entry)) return; // seen in the stream before it was acknowledged, or discarded
      if (error instanceof PublishUnknown && !this.rt.closed) await this.sendUnlessThere(entry);
      else if (error instanceof ConnectionClosed || error instanceof PublishUnknown) return; // a reload goes on with it
      else this.fail(entry, error.text ?? error.message);
    }
  }

  /** It was acknowledged. It shows up in the stream, unless it has been there for so long that it is not loaded. */
  settle(entry) {
    const at = this.room.position;
    if (entry.taken && at?.epoch === entry.taken.epoch && entry.taken.offset <= at.offset) this.done(entry);
  }

  async sendLeftovers() {
    for (const entry of [...this.outbox]) {
      if (!entry.why) await this.sendUnlessThere(entry, false);
    }
  }

  /** Whether it was sent before is not known any more, but the stream knows: then it is in it, behind `entry.after`. */
  async sendUnlessThere(entry, wait = true) {
    try {
      await this.room.joined();
      const there = await this.find(entry);
      if (there) this.done(entry);
      else if (there === null) this.fail(entry, "it may have been, but history does not reach back far enough to tell");
      else if (this.outbox.includes(entry)) {
        const sent = this.send(entry);
        if (wait) await sent;
      }
    } catch (error) {
      // When the connection was closed for good it stays where it is, and a reload goes on with it.
      if (error instanceof CallError) this.fail(entry, error.text);
    }
  }

  /** Whether a message is in the stream; null when that cannot be told. */
  async find(entry) {
    let since = null;
    for (;;) {
      const page = await this.room.history({ limit: 500, reverse: true, since });
      const floor = entry.after?.epoch === page.top.epoch ? entry.after.offset : 0;
      for (const message of page.messages) {
        if (message.position.offset <= floor) return false;
        if (message.sender === this.me && message.data.key === entry.key) return true;
      }
      const end = page.messages.at(-1)?.position ?? since ?? page.top;
      if (end.offset <= floor + 1) return false;
      if (!page.messages.length || !page.complete) return null;
      since = end;
    }
  }

  fail(entry, why) {
    if (!this.outbox.includes(entry)) return;
    entry.why = why;
    this.keep();
  }

  retry(entry) {
    delete entry.why;
    delete entry.taken;
    this.keep();
    this.send(entry);
  }

  takeBack(entry) {
    this.done(entry);
    this.page.write(entry.text);
  }

  /** It is in the conversation, or it is not wanted any more. */
  done(entry) {
    if (!entry || !this.outbox.includes(entry)) return;
    this.outbox = this.outbox.filter((each) => each !== entry);
    entry.abort?.abort();
    this.keep();
  }

  keep() {
    const entries = this.outbox.map(({ key, text, after, why }) => ({ key, text, after, why }));
    memory.set(`${this.me} outbox ${this.name}`, entries);
    if (this.shown) view.drawOutbox(this);
  }
}
