/**
 * What people in a room do besides sending messages: who is here (P1), who is typing (X1), who has got and read how
 * much (X2); and signals at the pace that a room allows (D5). client.js loads this module when a room has some of
 * that. Nothing for applications, which see it through `Room`.
 *
 * *Presence* is a snapshot and numbered changes. A jump in the numbers is a hole: the room is joined again. Another
 * snapshot, after a reconnect for one, is told as the difference to what was known; as a whole only if nothing was.
 *
 * *Typing*: who hears `true` counts that client as typing, until `false`, a message of its, or the room's time has
 * passed. Who types says `true` again when half of that has passed, and `false` when nobody typed for all of it.
 *
 * *Receipts*: of each kind there is one mark that is wanted, the newest. It goes out at once, but only once a second.
 * Nobody waits for an answer: after each join what the server knows is compared with what is wanted. Offsets of two
 * epochs cannot be compared, except where a stream was taken over: up to there the old epoch is the new one.
 *
 * *Time* is that of client.js: one clock, one timer, which may come late. So what is due is seen to whenever something
 * happens, too, and who asks is never told what is over.
 *
 * @module
 */

/** Seconds between two marks of a kind, and until what failed is tried again. */
const SECOND = 1;
/** Users whose marks are kept at the most. */
const MOST = 10_000;

/** @typedef {{ epoch: string, offset: number }} Position */
/** @typedef {{ user: string, client: string, meta: any }} Member */
/** @typedef {"delivered" | "read"} Kind */

/** @type {Kind[]} In this order `read` goes first, and says both. */
const KINDS = ["read", "delivered"];

// -- reading what the server sends ----------------------------------------------------------------------------

/** @param {string} what Was expected. @returns {never} */
function bad(what) {
  throw new Error(`the server sent no ${what}`);
}

/** @param {any} value @returns {value is string} */
const isText = (value) => typeof value === "string";

/** @param {any} value @returns {string} */
const text = (value = "") => (isText(value) ? value : bad("text"));

/** @param {any} value @returns {number} */
const count = (value = 0) => (Number.isSafeInteger(value) && value >= 0 ? value : bad("count"));

/** @param {any} value @returns {number} */
const seconds = (value = 0) => (value >= 0 && Number.isFinite(value) ? value : bad("number"));

/** @param {any} value @returns {any} */
const object = (value = {}) => (value && typeof value === "object" && !Array.isArray(value) ? value : bad("object"));

/** @param {any} value @returns {Member[]} */
const members = (value = []) =>
  (Array.isArray(value) ? value : bad("list")).map((each) => {
    const { user, client, meta } = object(each);
    return { user: text(user), client: text(client), meta: meta && typeof meta === "object" ? meta : {} };
  });

// -- small helpers ----------------------------------------------------------------------------------------------

/** @param {Position | null} a @param {Position | null} b */
const same = (a, b) => a?.epoch === b?.epoch && a?.offset === b?.offset;

/** Whether they are the same JSON, as far as that is easily told. @param {any} a @param {any} b */
const alike = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** Names in the server's order: by code points, as `<` does not. @param {string} a @param {string} b */
function order(a, b) {
  const [one, other] = [a, b].map((name) => [...name].map((character) => Number(character.codePointAt(0))));
  const at = one.findIndex((code, n) => code !== other[n]);
  return at < 0 ? one.length - other.length : one[at] - (other[at] ?? -1);
}

// -- a room -------------------------------------------------------------------------------------------------------

/** What a room of client.js needs to have all that. @param {any} room @param {any} engine */
export const attend = (room, engine) => (room.part ??= new Part(room, engine));

class Part {
  /** When something has to be done, by the engine's clock. */
  due = Infinity;

  #room;
  #engine;

  // Presence.

  /** Who is here, by client; null while that is not known. @type {Map<string, Member> | null} */
  #known = null;
  /** The number of the latest push; negative before the first snapshot. */
  #v = -1;
  /** What this client says about itself; undefined for nothing. @type {any} */
  #meta = undefined;
  /** How often it is being said. */
  #saying = 0;
  /** When it is to be said again, refused for now. */
  #again = Infinity;

  // Typing.

  /** Seconds until somebody who says nothing more has stopped; 0 in a room without typing. */
  #expires = 0;
  /** Who is typing, by client, and until when. @type {Map<string, { user: string, until: number }>} */
  #typing = new Map();
  /** As it was told. @type {string[]} */
  #typists = [];
  /** When this client typed, and when it said so; negative for not. */
  #typedAt = -1;
  #saidAt = -1;

  // Signals.

  /** Seconds between two of an event; 0 for whatever. */
  #pace = 0;
  /**
   * By event: when the next may go, and the newest that waits for that.
   * @type {Map<string, { at: number, send?: () => boolean }>}
   */
  #paced = new Map();

  // Receipts.

  #hasMarks = false;
  /** That the marks are of. */
  #epoch = "";
  /** The newest message that is known, in the room's present epoch. @type {Position} */
  #top = { epoch: "", offset: 0 };
  /** Where the room stood. @type {Position | null} */
  #at = null;
  /** Former epochs, and up to where they are the present one. @type {Map<string, number>} */
  #carried = new Map();
  /** What the server shall know. @type {Record<Kind, Position | null>} */
  #wanted = { delivered: null, read: null };
  /** What it knows, or was told since the join. @type {Record<Kind, Position | null>} */
  #said = { delivered: null, read: null };
  /** When the next mark may go. @type {Record<Kind, number>} */
  #next = { delivered: 0, read: 0 };
  /** This user; empty while that is not known. */
  #me = "";
  /** Counts whole sets of marks: a page of an older one is not wanted any more. */
  #sets = 0;
  /** Behind whom the next page begins, and when to ask for it. @type {{ after: string, at: number } | null} */
  #page = null;

  /** @param {any} room @param {any} engine */
  constructor(room, engine) {
    this.#room = room;
    this.#engine = engine;
  }

  // What happens to the room.

  /** It was joined. @param {any} result @returns {() => void} To be called when the application knows. */
  joined({ presence, marks, signals, typing, epoch, offset, recovered }) {
    const rate = seconds(signals);
    this.#expires = seconds(typing);
    this.#saidAt = -1;
    this.#pace = rate && 1 / rate;
    const change = presence && this.#snapshot(object(presence));
    this.#sayAgain();
    this.#hasMarks = !!marks;
    if (marks) {
      this.#epochIs(text(epoch), recovered && this.#at ? Math.min(this.#at.offset, count(offset)) : -1);
      this.#top.offset = count(offset);
      this.#said = { delivered: null, read: null };
      this.#replace(object(marks));
    }
    this.tend();
    return () => {
      if (change) this.#tell("presence", change);
      if (marks) this.#tell("marks");
    };
  }

  /** Something was pushed. @param {any} push @returns {boolean} Whether that is all that is to be done about it. */
  took({ pub, presence, marks, signal, position }) {
    if (pub) this.#spoke(object(pub.info), count(pub.offset));
    else if (position) this.#took(object(position));
    else if (presence) this.#present(object(presence));
    else if (marks) this.#marked(object(marks));
    else if (this.#expires && signal?.event === "typing") this.#heard(signal);
    else return false;
    return !pub && !position;
  }

  /** A message was published: its client types no more. @param {any} info @param {number} offset */
  #spoke({ user, client }, offset) {
    if (this.#engine.own.has(client)) this.#is(text(user));
    this.#see(offset);
    this.#stop(client);
  }

  /** The application may have been handed something. */
  look() {
    const { position, phase } = this.#room;
    if (this.#hasMarks && phase === "in" && position) {
      this.#see(0);
      if (!same(position, this.#wanted.delivered)) {
        this.#wanted.delivered = position;
        this.tend();
      }
    }
    if (this.due <= this.#engine.now()) this.tend();
  }

  /** The connection is gone, or the room is left to be joined again. */
  reset() {
    this.#saidAt = -1; // others do not know any more that we type
    this.#paced.clear();
    this.#typing.clear();
    this.#page = null;
    this.#tellTyping();
  }

  /** Say what waits to be said: there is no later. */
  flush() {
    this.#mark(true);
  }

  /** See to what is due. */
  tend() {
    const now = this.#engine.now();
    for (const [client, { until }] of this.#typing) if (until <= now) this.#typing.delete(client);
    this.#tellTyping();
    this.#goOnTyping(now);
    for (const [event, { at, send }] of this.#paced) {
      if (at > now) continue;
      if (send) this.signal(event, send);
      else this.#paced.delete(event);
    }
    this.#mark();
    if (this.#again <= now) {
      this.#again = Infinity;
      if (this.#room.phase === "in") this.#sayAgain();
    }
    if (this.#page && this.#page.at <= now) this.#ask(this.#page.after);

    const dues = [this.#page?.at ?? Infinity, this.#again];
    if (this.#saidAt >= 0) dues.push(this.#goesOn ? this.#saidAt + this.#expires / 2 : this.#typedAt + this.#expires);
    for (const { until } of this.#typing.values()) dues.push(until);
    for (const { at, send } of this.#paced.values()) if (send) dues.push(at);
    for (const kind of KINDS) if (this.#isBehind(kind)) dues.push(this.#next[kind]);
    this.due = Math.min(...dues);
    this.#engine.arm(this.due);
  }

  /** @param {string} event @param {any[]} args */
  #tell(event, ...args) {
    this.#room.events.emit(event, ...args);
  }

  /** This is our name. @param {string} user */
  #is(user) {
    this.#me ||= user;
    this.#count();
  }

  // Presence.

  /** All that are here, or how many. @param {any} body @returns {any} What has changed; undefined for nothing. */
  #snapshot(body) {
    const before = this.#known;
    const first = this.#v < 0;
    const whole = !before;
    /** @type {Member[]} */ const joins = [];
    /** @type {Member[]} */ const leaves = [];
    /** @type {Member[]} */ const updates = [];
    this.#v = count(body.v);
    if (!body.members) {
      const clients = count(body.clients);
      const calm = !first && !before && clients === this.#room.face.clients;
      this.#known = null;
      this.#show(clients);
      return calm ? undefined : { joins, leaves, updates, whole: true }; // nobody has left
    }
    const now = new Map(members(body.members).map((each) => [each.client, each]));
    const known = (this.#known = new Map());
    for (const [client, was] of before ?? []) {
      const is = now.get(client);
      if (!is) leaves.push(was);
      else if (!alike(is, was)) updates.push(is);
      if (is) known.set(client, is); // in the order they had
    }
    for (const [client, is] of now) {
      if (!known.has(client)) joins.push(is);
      known.set(client, is);
    }
    this.#show(known.size);
    const calm = !whole && !joins.length && !leaves.length && !updates.length;
    return calm ? undefined : { joins, leaves, updates, whole };
  }

  /** @param {any} body */
  #present(body) {
    if (this.#v < 0) return; // we did not ask
    if (body.members || body.clients !== undefined || body.users !== undefined) {
      const change = this.#snapshot(body);
      if (change) this.#tell("presence", change);
      return;
    }
    const v = count(body.v);
    const [joins, leaves, updates] = [body.joins, body.leaves, body.updates].map(members);
    const known = this.#known;
    if (v <= this.#v) return;
    if (!known || v > this.#v + 1) {
      this.#engine.act(this.#room, "rejoin");
      return;
    }
    this.#v = v;
    for (const { client } of leaves) known.delete(client);
    for (const each of [...joins, ...updates]) known.set(each.client, each);
    this.#show(known.size);
    this.#tell("presence", { joins, leaves, updates, whole: false });
    for (const { client } of leaves) this.#stop(client);
  }

  /** @param {number} clients */
  #show(clients) {
    const { face } = this.#room;
    face.clients = clients;
    face.members = [...(this.#known?.values() ?? [])];
    this.#is(this.#known?.get(this.#engine.clientId)?.user ?? "");
  }

  /** Say something about oneself. @param {any} meta */
  async update(meta) {
    this.#saying += 1;
    try {
      await this.#engine.submit("presence_update", { channel: this.#room.channel, meta }, undefined, {});
      this.#meta = meta;
    } finally {
      this.#saying -= 1;
    }
  }

  /** After a join the server may know nothing of it: we may be another client. */
  #sayAgain() {
    const said = this.#known?.get(this.#engine.clientId);
    if (this.#meta === undefined || this.#saying || (said && alike(said.meta, this.#meta))) return;
    this.update(this.#meta).catch((error) => {
      if (!error.temporary) return; // refused, or the room was left
      this.#again = this.#engine.now() + (error.retryAfter ?? SECOND);
      this.tend();
    });
  }

  // Typing.

  /** Who types, by now. @returns {string[]} */
  get typists() {
    const now = this.#engine.now();
    const users = new Set();
    for (const { user, until } of this.#typing.values()) if (until > now) users.add(user);
    return [...users];
  }

  /** Somebody types, or does not any more. @param {any} signal */
  #heard({ client, user, data = true }) {
    if (this.#engine.own.has(text(client))) return;
    if (data) {
      this.#typing.set(client, { user: text(user), until: this.#engine.now() + this.#expires });
      this.tend();
    } else this.#stop(client);
  }

  /** @param {string} client */
  #stop(client) {
    if (this.#typing.delete(client)) this.#tellTyping();
  }

  #tellTyping() {
    const { typists } = this;
    if (alike(typists, this.#typists)) return;
    this.#typists = typists;
    this.#tell("typing", typists);
  }

  /** The user has touched a key; or has given up. @param {boolean} on */
  typing(on) {
    const { phase } = this.#room;
    if (!on && phase !== "in") this.sending(); // it is over before anybody could be told
    if (!this.#expires || phase !== "in") return;
    if (on) this.#typedAt = this.#engine.now();
    else this.#typingEnds();
    this.tend();
  }

  #typingEnds() {
    if (this.#saidAt >= 0) this.#sayTyping(false);
    this.sending();
  }

  /** A message is sent: whoever gets it knows that we type no more. */
  sending() {
    this.#typedAt = this.#saidAt = -1;
  }

  /** We have typed since we said so. */
  get #goesOn() {
    return this.#typedAt > this.#saidAt;
  }

  /** @param {number} now */
  #goOnTyping(now) {
    if (this.#typedAt < 0 || this.#room.phase !== "in") return;
    if (now >= this.#typedAt + this.#expires) this.#typingEnds();
    else if (this.#saidAt < 0 || (this.#goesOn && now >= this.#saidAt + this.#expires / 2)) {
      // If it cannot be said now, the next key will.
      if (this.#sayTyping(true)) this.#saidAt = now;
      else this.sending();
    }
  }

  /** @param {boolean} on @returns {boolean} */
  #sayTyping(on) {
    return this.#engine.signal(this.#room, "typing", on);
  }

  // Signals.

  /**
   * Send a signal now, or when its turn comes, if no newer one takes its place.
   * @param {string} event
   * @param {() => boolean} send
   * @returns {boolean} False when it cannot be sent now, and does not wait.
   */
  signal(event, send) {
    // Of typing the server takes care, and it is rare.
    if (!this.#pace || (this.#expires && event === "typing")) return send();
    const now = this.#engine.now();
    const paced = this.#paced.get(event);
    if (paced && paced.at > now) {
      if (this.#room.phase !== "in") return false;
      paced.send = send;
      this.tend();
      return true;
    }
    const sent = send();
    if (sent) this.#paced.set(event, { at: now + this.#pace });
    else this.#paced.delete(event);
    return sent;
  }

  // Receipts.

  /** The stream goes on in a new epoch, if we stand where it does. @param {any} position */
  #took({ epoch, offset }) {
    const { at } = this.#room;
    if (at && epoch && at.offset === offset) this.#epochIs(text(epoch), count(offset));
  }

  /** The room's epoch. @param {string} epoch @param {number} until Up to there the former one is this one. */
  #epochIs(epoch, until) {
    const before = this.#top.epoch;
    if (epoch === before) return;
    if (until < 0 || !before) this.#carried.clear();
    else {
      for (const [each, offset] of this.#carried) this.#carried.set(each, Math.min(offset, until));
      this.#carried.set(before, until);
    }
    this.#top = { epoch, offset: Math.max(0, until) };
  }

  /** A place as an offset of the room's present epoch; negative where there is none. @param {Position | null} place */
  #place(place) {
    if (!place) return -1;
    if (place.epoch === this.#top.epoch) return place.offset;
    return place.offset <= (this.#carried.get(place.epoch) ?? -1) ? place.offset : -1;
  }

  /** There is a message. @param {number} offset */
  #see(offset) {
    const { at } = this.#room;
    if (!this.#hasMarks || !at) return;
    this.#epochIs(at.epoch, -1);
    this.#at = at;
    const top = Math.max(this.#top.offset, offset, at.offset);
    if (top === this.#top.offset) return;
    this.#top.offset = top;
    this.#count();
  }

  /** Count what is unread. */
  #count() {
    if (!this.#hasMarks) return;
    const { face } = this.#room;
    const offset = face.marks.get(this.#me)?.read ?? -1;
    const read = [{ epoch: this.#epoch, offset }, this.#wanted.read].map((each) => this.#place(each));
    face.unread = Math.max(0, this.#top.offset - Math.max(0, ...read));
  }

  /** @param {any} body */
  #marked(body) {
    if (!this.#hasMarks) return;
    if (body.whole) this.#replace(body);
    else if (text(body.epoch) === this.#epoch) this.#merge(body);
    else return; // all of the new epoch is on its way
    this.#tell("marks");
  }

  /** @param {any} body */
  #replace(body) {
    const epoch = text(body.epoch);
    // If there are more, those of before are as good until they come.
    if (epoch !== this.#epoch || !body.more) this.#room.face.marks = new Map();
    this.#epoch = epoch;
    this.#sets += 1;
    this.#merge(body);
    this.#page = null;
    if (body.more) this.#askFor(body, "");
  }

  /** @param {any} body */
  #merge(body) {
    const { marks } = this.#room.face;
    this.#is(text(body.user));
    for (const kind of KINDS) {
      for (const [user, offset] of Object.entries(object(body[kind]))) {
        if (marks.size >= MOST && !marks.has(user) && user !== this.#me) continue;
        const mark = { delivered: null, read: null, ...marks.get(user) };
        mark[kind] = Math.max(count(offset), mark[kind] ?? 0);
        if (kind === "read") mark.delivered = Math.max(mark.read, mark.delivered ?? 0);
        marks.set(user, mark);
      }
      const mine = marks.get(this.#me)?.[kind];
      if (mine) this.#said[kind] = { epoch: this.#epoch, offset: mine };
    }
    this.#count();
  }

  /**
   * Ask for those behind the ones listed. The last of them may be ourselves, who are always listed, so that there may
   * be others before: rather one twice.
   * @param {any} body
   * @param {string} before That it began behind.
   */
  #askFor({ delivered, read }, before) {
    const users = Object.keys({ ...delivered, ...read }).sort(order);
    const [last, other] = [users.at(-1), users.at(-2)];
    const after = other && order(other, before) > 0 ? other : last;
    if (after && order(after, before) > 0 && this.#room.face.marks.size < MOST) this.#ask(after);
  }

  /** @param {string} after */
  async #ask(after) {
    const set = this.#sets;
    this.#page = null;
    try {
      const { marks } = await this.#engine.submit("marks", { channel: this.#room.channel, after }, undefined, {});
      const body = object(marks);
      // Of another epoch we are told without asking.
      if (set !== this.#sets || text(body.epoch) !== this.#epoch) return;
      this.#merge(body);
      if (body.more) this.#askFor(body, after);
      this.#tell("marks");
    } catch (/** @type {any} */ error) {
      if (set !== this.#sets || !error.temporary) return;
      this.#page = { after, at: this.#engine.now() + (error.retryAfter ?? SECOND) };
      this.tend();
    }
  }

  /** The user has read up to here. @param {Position | null} place */
  read(place) {
    if (!place) return;
    const { epoch, offset } = place;
    const { face } = this.#room;
    const known = this.#place(this.#wanted.read);
    if (known >= 0 && known >= this.#place(place)) return;
    const before = face.unread;
    this.#wanted.read = { epoch, offset };
    this.#count();
    this.tend();
    if (before !== face.unread) this.#tell("marks");
  }

  /** Who has got, or read, that much. @param {Position | null} place @param {Kind} kind @returns {string[]} */
  reached(place, kind) {
    const offset = this.#place(place);
    // Marks of another epoch than the room's are about to come anew.
    if (!this.#hasMarks || offset < 0 || this.#epoch !== this.#top.epoch) return [];
    const there = [...this.#room.face.marks].filter(([, mark]) => mark[kind] !== null && mark[kind] >= offset);
    return there.map(([user]) => user).sort();
  }

  /** @param {Kind} kind @returns {boolean} */
  #isBehind(kind) {
    if (!this.#hasMarks || this.#room.phase !== "in") return false;
    const wanted = this.#place(this.#wanted[kind]);
    // What is in no place any more does not matter.
    if (wanted < 0 || this.#place(this.#said[kind]) >= wanted) return false;
    // Who has read it has got it, and is about to say so.
    return kind === "read" || !(this.#isBehind("read") && this.#place(this.#wanted.read) >= wanted);
  }

  /** Tell the server how far we are. @param {boolean} [atOnce] */
  #mark(atOnce = false) {
    const now = this.#engine.now();
    for (const kind of KINDS) {
      if (!this.#isBehind(kind) || (!atOnce && now < this.#next[kind])) continue;
      const place = this.#wanted[kind];
      const body = { channel: this.#room.channel, kind, ...place };
      this.#next[kind] = now + SECOND;
      if (atOnce) this.#engine.ask("mark", body);
      else if (!this.#engine.post(this.#room, `\n${kind}`, "mark", JSON.stringify(body))) continue;
      this.#said[kind] = place;
      if (this.#place(this.#said.delivered) < this.#place(place)) this.#said.delivered = place;
    }
  }
}
