// What is seen: everything here turns values into elements, and knows nothing of the network. Text from people only
// ever becomes text nodes.

const SAME_BREATH = 5 * 60_000; // messages of one person within this belong together
const NEAR = 80; // pixels from the end that still count as reading along

export const $ = (id) => document.getElementById(id);

const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const short = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat([], { weekday: "long", day: "numeric", month: "long" });
const full = new Intl.DateTimeFormat([], { dateStyle: "full", timeStyle: "medium" });

/** An element with attributes and children; strings among the children become text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

/** Everybody has a colour: the same one on every screen, because it is made of the name. */
function coloured(element, name) {
  let hash = 0;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 100_003;
  element.style.setProperty("--hue", Math.round((hash * 137.508) % 360)); // the golden angle: neighbours differ
  return element;
}

function face(name) {
  const [first = "?"] = new Intl.Segmenter().segment(name);
  return coloured(make("span", { class: "face", "aria-hidden": "true" }, (first.segment ?? first).toUpperCase()), name);
}

export function person(name, more = null) {
  return [face(name), make("span", { class: "who" }, make("bdi", {}, name), more && make("span", { class: "you" }, ` ${more}`))];
}

/** The text, its addresses made into links. */
function linked(text) {
  const pieces = [];
  let at = 0;
  for (const found of text.matchAll(/https?:\/\/[^\s<>"'`]+/gi)) {
    let address = found[0].replace(/[.,;:!?]+$/, "");
    // A closing bracket belongs to the sentence unless it was opened in the address.
    while (address.endsWith(")") && address.split(")").length > address.split("(").length)
      address = address.slice(0, -1).replace(/[.,;:!?]+$/, "");
    if (!URL.canParse(address)) continue;
    pieces.push(text.slice(at, found.index));
    pieces.push(make("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, address));
    at = found.index + address.length;
  }
  pieces.push(text.slice(at));
  return pieces;
}

const onlyEmoji = /^(?:[\p{Extended_Pictographic}\p{Emoji_Modifier}\p{Regional_Indicator}\u200d\ufe0f]|\s){1,12}$/u;

function textOf(text) {
  return make("div", { class: onlyEmoji.test(text) ? "text emoji" : "text", dir: "auto" }, ...linked(text));
}

function timeOf(at, format) {
  const date = new Date(at);
  return make("time", { datetime: date.toISOString(), title: full.format(date) }, format.format(date));
}

function rule(kind, text, more = null) {
  return make("div", { class: `rule ${kind}` }, make("span", {}, text, more && " ", more));
}

function dayName(at) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(at).setHours(0, 0, 0, 0)) / 86_400_000);
  return days === 0 ? "Today" : days === 1 ? "Yesterday" : day.format(at);
}

const sameDay = (one, other) => new Date(one).toDateString() === new Date(other).toDateString();

function holeOf(hole, talk) {
  const what = hole.to > hole.from + 1 ? `Messages ${hole.from + 1}–${hole.to} are` : `Message ${hole.to} is`;
  if (hole.state === "gone") return rule("gap", `${what} no longer available`);
  const more = make("button", { type: "button", click: () => talk.fillHole(hole, 250) }, "Show more of them");
  return rule("gap", `${what} not shown`, more);
}

/** The elements of one item of a conversation, given the item and the message before it. */
function itemOf(item, before, last, talk) {
  const { me } = talk;
  if (item.kind === "note") return [rule("gap", item.text)];
  if (item.kind === "hole") return [holeOf(item, talk)];
  const elements = [];
  const sameDayAgain = last && sameDay(last.at, item.at);
  if (!sameDayAgain) elements.push(rule("day", dayName(item.at)));
  const goesOn = sameDayAgain && last === before && last.from === item.from && item.at - last.at < SAME_BREATH;
  const message = make("div", { class: goesOn ? "message" : "message first" });
  if (goesOn) {
    message.append(timeOf(item.at, short), make("span", { class: "unseen" }, `${item.from}: `));
  } else {
    const name = coloured(make("bdi", { class: "name" }, item.from), item.from);
    const by = make("div", { class: "by" }, name, item.from === me && make("span", { class: "you" }, "you"), " ");
    by.append(timeOf(item.at, clock));
    message.append(face(item.from), by);
  }
  message.append(textOf(item.text));
  if (item.from === me && item.position) message.append(ticksOf(item));
  elements.push(message);
  return elements;
}

// What became of a message of one's own: drawn again whenever somebody has got or read more.

const ticksByItem = new WeakMap();

function ticksOf(item) {
  const ticks = make("p", { class: "ticks" });
  ticksByItem.set(item, ticks);
  return ticks;
}

/** Of several messages in a row that have come equally far, only the last one says so. */
export function drawTicks(talk) {
  let below = "";
  for (const item of talk.items.toReversed()) {
    const ticks = ticksByItem.get(item);
    const words = ticks?.isConnected ? wordsOf(talk.ticks(item)) : "";
    if (words) {
      if (ticks.dataset.words !== words) {
        ticks.dataset.words = words;
        ticks.replaceChildren(make("span", { "aria-hidden": "true" }, words.startsWith("read") ? "✓✓ " : "✓ "), words);
      }
      ticks.hidden = words === below;
    }
    below = words;
  }
}

function wordsOf({ read, delivered, of }) {
  return read ? `read by ${read} of ${of}` : delivered ? `delivered to ${delivered}` : "sent";
}

/** Who is typing: in a line of its own, so that nothing moves; names that are too long give way to the rest. */
export function drawTyping({ typists }) {
  const name = (text) => make("bdi", {}, text);
  const plain = (text) => make("span", {}, text);
  const [one, other] = typists;
  const more = typists.length - 2;
  const words = [];
  if (typists.length) words.push(name(one));
  if (more >= 0) words.push(plain(more ? ", " : " and "), name(other));
  if (more > 0) words.push(plain(` and ${more} more`));
  if (typists.length) words.push(plain(more < 0 ? " is typing …" : " are typing …"));
  $("typing").replaceChildren(...words);
}

// -- the conversation ------------------------------------------------------------------------------

const scroller = $("scroller");
const log = $("log");
let following = true; // the end of the conversation is in sight, and stays there
let missed = 0;

export function toEnd() {
  scroller.scrollTop = scroller.scrollHeight;
  atEnd();
}

function atEnd() {
  following = true;
  missed = 0;
  $("newer").hidden = true;
}

scroller.addEventListener("scroll", () => {
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  if (following) atEnd();
});

// A keyboard that opens, a banner that comes, a text that grows: who was at the end stays there.
const keep = new ResizeObserver(() => following && toEnd());
keep.observe(scroller);
keep.observe(scroller.firstElementChild);

function elementsFrom(talk, start) {
  const elements = [];
  const { items } = talk;
  let last = items.slice(0, start).findLast((item) => item.kind === "said");
  for (let at = start; at < items.length; at += 1) {
    if (items[at] === talk.firstNew) elements.push(rule("new", "New"));
    elements.push(...itemOf(items[at], items[at - 1], last, talk));
    if (items[at].kind === "said") last = items[at];
  }
  return elements;
}

/** Draw a conversation anew. It is not read out: a screen reader only hears what comes in afterwards. */
function fill(talk) {
  log.setAttribute("aria-live", "off");
  log.replaceChildren(...elementsFrom(talk, 0));
  drawTicks(talk);
  setTimeout(() => log.setAttribute("aria-live", "polite"), 300);
}

export function draw(talk) {
  fill(talk);
  drawTop(talk);
  drawOutbox(talk);
  const divider = log.querySelector(".rule.new");
  toEnd();
  if (divider && divider.offsetTop < scroller.scrollTop) {
    scroller.scrollTop = divider.offsetTop - 24;
    following = false;
  }
}

/** Older items came in above: what is read stays where it is. */
export function drawOlder(talk) {
  const fromEnd = scroller.scrollHeight - scroller.scrollTop;
  fill(talk);
  drawTop(talk);
  scroller.scrollTop = scroller.scrollHeight - fromEnd;
}

/** So many items came in at the end. */
export function append(talk, count) {
  const wasFollowing = following;
  const fresh = count ? talk.items.slice(-count) : [];
  log.append(...elementsFrom(talk, talk.items.length - count));
  drawTicks(talk);
  if (wasFollowing || fresh.some((item) => item.from === talk.me)) {
    toEnd();
    return;
  }
  missed += fresh.filter((item) => item.kind === "said").length;
  $("newer").textContent = missed === 1 ? "↓ 1 new message" : `↓ ${missed} new messages`;
  $("newer").hidden = !missed;
}

/** What was new has been seen. */
export const clearNew = () => log.querySelector(".rule.new")?.remove();

/** Whether the person has scrolled up. */
export const readsBack = () => !following;

/** What stands above the first message. */
export function drawTop(talk) {
  const top = $("top");
  top.className = "top";
  if (talk.refused) top.replaceChildren(make("p", { class: "error" }, talk.refused));
  else if (!talk.joined && !talk.items.length) top.replaceChildren("Opening the room …");
  else if (talk.older === "loading") top.replaceChildren("Loading …");
  else if (talk.older === "more") top.replaceChildren(make("button", { click: () => talk.loadOlder() }, "Older messages"));
  else if (talk.older === "gone") top.replaceChildren("Older messages are no longer kept.");
  else {
    top.classList.add("begin");
    const what = talk.items.length ? "This is where it began." : "Nobody has said anything here yet. Say hello.";
    top.replaceChildren(make("h2", {}, `#${talk.name}`), make("p", {}, what));
  }
}

/** What was written and is not in the conversation yet. */
export function drawOutbox(talk) {
  const wasFollowing = following;
  const last = talk.items.at(-1);
  const entries = talk.outbox.map((entry, index) => {
    const failed = Boolean(entry.why);
    // It looks as it will when it is said.
    const goesOn = index > 0 || (last?.from === talk.me && Date.now() - last.at < SAME_BREATH);
    const fate = make("div", { class: "fate" }, failed ? `Not sent: ${entry.why}` : "sending …");
    if (failed)
      fate.append(
        make("button", { type: "button", click: () => talk.retry(entry) }, "Try again"),
        make("button", { type: "button", click: () => talk.takeBack(entry) }, "Edit"),
        make("button", { type: "button", click: () => talk.done(entry) }, "Discard"),
      );
    const row = make("li", { class: `message ${goesOn ? "" : "first "}${failed ? "failed" : ""}`.trim() });
    if (!goesOn) {
      const name = coloured(make("bdi", { class: "name" }, talk.me), talk.me);
      row.append(face(talk.me), make("div", { class: "by" }, name, make("span", { class: "you" }, "you")));
    }
    row.append(textOf(entry.text), fate);
    return row;
  });
  $("outbox").replaceChildren(...entries);
  if (wasFollowing) toEnd();
}

// -- around it -------------------------------------------------------------------------------------

export function drawRooms(talks, others, current) {
  const link = (name, unread = 0) =>
    make(
      "li",
      {},
      make(
        "a",
        { href: `#${encodeURIComponent(name)}`, "aria-current": name === current && "page", class: unread && "unread" },
        make("span", {}, name),
        unread > 0 && make("span", { class: "badge" }, unread > 99 ? "99+" : `${unread}`, make("span", { class: "unseen" }, " unread")),
      ),
    );
  const held = document.activeElement?.closest?.("#sidebar li a")?.getAttribute("href");
  $("rooms").replaceChildren(...talks.map((talk) => link(talk.name, talk.unread)));
  $("others").replaceChildren(...others.map((name) => link(name)));
  $("others-part").hidden = !others.length;
  if (held) for (const a of $("sidebar").querySelectorAll("li a")) if (a.getAttribute("href") === held) a.focus();
  const elsewhere = talks.some((talk) => talk.unread && talk.name !== current);
  $("menu-unread").hidden = !elsewhere;
  $("menu").setAttribute("aria-label", elsewhere ? "Rooms, some with unread messages" : "Rooms");
}

const SHOWN = 100; // people that the list names; the rest is a number

export function drawPeople(talk) {
  const row = ({ name, devices, away }) => {
    const notes = [name === talk.me && "you", devices > 1 && `${devices} devices`, away && "away"].filter(Boolean);
    return make("li", { class: away ? "person away" : "person" }, ...person(name, notes.length ? `(${notes.join(", ")})` : null));
  };
  const shown = talk.people.slice(0, SHOWN);
  $("people-list").replaceChildren(...shown.map(row));
  $("people-count").textContent = talk.count;
  const more = talk.count - shown.length;
  $("people-more").textContent = more > 0 ? `${shown.length ? "and " : ""}${more} more` : "";
}

/** Open or close a drawer of a small screen; the rest of the page is out of reach meanwhile. */
export function drawer(which, open) {
  for (const [name, button] of [["sidebar", "menu"], ["people", "people-open"]]) {
    const on = open && name === which;
    $(name).classList.toggle("open", on);
    $(button).setAttribute("aria-expanded", on);
  }
  $("shade").hidden = !open;
  for (const part of [$("sidebar"), $("people"), document.querySelector(".talk")]) part.inert = open && part !== $(which);
  if (open) $(which).querySelector("a[aria-current], input, a, h2")?.focus();
}
