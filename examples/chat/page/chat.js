// The page as a whole: coming in, the connection, the rooms, the keyboard. One room is in talk.js, and how things look in
// view.js.

import { connect } from "/rt/client.js";
import { memory } from "./memory.js";
import { Talk } from "./talk.js";
import * as view from "./view.js";
import { $ } from "./view.js";

const FIRST_ROOMS = ["lobby", "kitchen", "music"];
const LONGEST_NAME = 32; // as the server has it
const LONGEST_TEXT = 4000;

const tidy = (name) => name.normalize("NFC").trim().replace(/\s+/g, " ");
const tidyRoom = (name) => tidy(name.replace(/^#+/, "")).toLowerCase().replaceAll(" ", "-");
const length = (text) => [...text].length; // characters, as the server counts them

// -- all of them ---------------------------------------------------------------------------------------

let rt = null;
let me = "";
let current = null;
const talks = new Map();
const opened = new Set(); // by anybody, as the server tells

const page = { shows: (talk) => talk === current, changed: drawRooms, write, away: () => away };
const talkOf = (name) => new Talk(rt, me, name, page);

function start(name) {
  me = name;
  memory.set("name", me);
  localStore("set", me);
  rt = connect("/rt", { token: me });
  rt.on("state", drawState);
  rt.on("closed", onClosed);
  rt.on("error", (error) => console.warn(error.message));
  const directory = rt.join("rooms", { rewind: 100 });
  directory.on("Opened", ({ room }) => {
    opened.delete(room); // to the end
    opened.add(room);
    drawRooms();
  });
  directory.on("gap", () => {}); // which rooms there were is nothing to worry about
  for (const room of memory.get(`${me} rooms`, FIRST_ROOMS)) talks.set(room, talkOf(room));
  $("welcome").hidden = true;
  $("chat").hidden = false;
  $("me").replaceChildren(...view.person(me));
  open(roomOfAddress() || memory.get(`${me} current`, FIRST_ROOMS[0]));
  drawState();
}

/** The name that is offered the next time, in any tab. */
function localStore(verb, name) {
  try {
    if (verb === "set") localStorage.setItem("chat name", name);
    return localStorage.getItem("chat name") ?? "";
  } catch {
    return "";
  }
}

function roomOfAddress() {
  try {
    return tidyRoom(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return "";
  }
}

function open(name) {
  let talk = talks.get(name);
  if (!talk) {
    talk = talkOf(name);
    talks.set(name, talk);
    rememberRooms();
  }
  if (roomOfAddress() !== name) history[location.hash ? "pushState" : "replaceState"](null, "", `#${encodeURIComponent(name)}`);
  memory.set(`${me} current`, name);
  if (current && current !== talk) {
    current.firstNew = null;
    current.typing(false);
  }
  current = talk;
  $("title").textContent = name;
  $("leave").hidden = FIRST_ROOMS.includes(name);
  $("text").placeholder = `Message #${name}`;
  write(memory.get(`draft ${name}`, ""), { instead: true });
  view.draw(talk);
  talk.fresh = 0;
  view.drawPeople(talk);
  view.drawTyping(talk);
  if (talk.joined) talk.markRead();
  drawRooms();
  closeDrawer();
}

const rememberRooms = () => memory.set(`${me} rooms`, [...talks.keys()]);

function drawRooms() {
  if (!current) return;
  const others = [...opened].filter((name) => !talks.has(name)).toReversed();
  view.drawRooms([...talks.values()], others, current.name);
  const unread = [...talks.values()].reduce((sum, talk) => sum + talk.unread, 0);
  document.title = `${unread ? `(${unread}) ` : ""}#${current.name} · rtkit chat`;
}

function leaveRoom() {
  const { name, room, outbox } = current;
  if (outbox.length && !confirm("There are messages that were not sent. Leave all the same?")) return;
  room.leave();
  talks.delete(name);
  opened.add(name);
  rememberRooms();
  for (const what of [`${me} outbox ${name}`, `draft ${name}`]) memory.set(what, null);
  open(FIRST_ROOMS[0]);
  focusText();
}

// -- the connection ----------------------------------------------------------------------------------------

let wasConnected = false;

function drawState() {
  const { state } = rt;
  const offline = navigator.onLine === false;
  const words = { idle: "Connecting", connecting: "Connecting", connected: "Connected", waiting: "Reconnecting", closed: "Closed" };
  $("state").dataset.state = state;
  setText($("state-text"), state === "waiting" && offline ? "Offline" : words[state]);
  wasConnected ||= state === "connected";
  const trouble = state === "waiting" || state === "closed" || !$("trouble").hidden;
  $("trouble").hidden = state === "connected" || !trouble;
  if (state === "closed") {
    setText($("trouble-text"), `The connection is closed: ${rt.closed.reason}.`);
    $("trouble-act").textContent = "Connect again";
  } else if (state === "waiting") {
    const what = offline ? "You are offline." : wasConnected ? "The connection is lost." : "The server does not answer.";
    setText($("trouble-text"), `${what} What you write is sent when you are back.`);
    $("trouble-act").textContent = "Try now";
  }
  $("trouble-act").disabled = state === "connecting";
  setText($("people-title"), state === "connected" ? "Here now" : "Were here");
}

/** Said once, however often it is drawn: it is read out. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function onClosed(why) {
  drawState();
  if (why.code !== 3500) return;
  // The server does not take this name. What was written stays in memory under it.
  memory.set("name", null);
  memory.set("refused", why.cause?.text ?? why.reason);
  location.reload();
}

$("trouble-act").addEventListener("click", () => {
  if (rt.closed) location.reload();
  // The client tries at once when the browser says that the network is back.
  else dispatchEvent(new Event("online"));
});
addEventListener("online", () => rt && drawState());
addEventListener("offline", () => rt && drawState());

// -- writing ---------------------------------------------------------------------------------------------

const text = $("text");

function write(words, { instead = false } = {}) {
  text.value = instead || !text.value ? words : `${words}\n${text.value}`;
  onInput();
  if (instead) return;
  memory.set(`draft ${current.name}`, text.value);
  focusText();
}

function onInput() {
  const over = length(text.value.trim()) - LONGEST_TEXT;
  $("send").disabled = !text.value.trim() || over > 0;
  setText($("left"), over > 0 ? `${over} ${over === 1 ? "character" : "characters"} too many` : "");
  if (!CSS.supports("field-sizing", "content")) {
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight}px`;
  }
}

text.addEventListener("input", () => {
  onInput();
  current.typing(text.value.trim() !== "");
  memory.set(`draft ${current.name}`, text.value);
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = text.value.trim();
  if (!words || length(words) > LONGEST_TEXT) return;
  memory.set(`draft ${current.name}`, null);
  write("", { instead: true });
  current.say(words);
  view.toEnd();
  text.focus();
});

text.addEventListener("keydown", (event) => {
  // While an input method composes, Enter belongs to it.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
  if ((event.key === "PageUp" || event.key === "PageDown") && !event.shiftKey) {
    event.preventDefault();
    $("scroller").scrollBy(0, (event.key === "PageUp" ? -0.85 : 0.85) * $("scroller").clientHeight);
  }
});

/** Not on a phone, where it would bring up the keyboard. */
function focusText() {
  if (matchMedia("(pointer: fine)").matches) text.focus();
}

// -- moving about ------------------------------------------------------------------------------------------

function neighbour(step) {
  const names = [...talks.keys()];
  open(names[(names.indexOf(current.name) + step + names.length) % names.length]);
  focusText();
}

function closeDrawer() {
  view.drawer("", false);
}

addEventListener("keydown", (event) => {
  if (!current || $("help").open) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    closeDrawer();
    if (matchMedia("(max-width: 46rem)").matches) view.drawer("sidebar", true);
    $("go-to").focus();
  } else if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
    event.preventDefault();
    neighbour(event.key === "ArrowUp" ? -1 : 1);
  } else if (event.key === "Escape") {
    closeDrawer();
    text.focus();
  }
});

$("go").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = tidyRoom($("go-to").value);
  if (!name || length(name) > LONGEST_NAME) return;
  $("go-to").value = "";
  open(name);
  focusText();
});

$("sidebar").addEventListener("click", (event) => {
  if (event.target.closest("a")) setTimeout(() => (closeDrawer(), focusText()));
});
addEventListener("hashchange", () => current && roomOfAddress() && open(roomOfAddress()));
// -- being away: who does not look at the page, or has not touched it for a while ------------------------------

const IDLE = 5 * 60_000;
let away = false;
let touched = Date.now();

function look() {
  const now = document.hidden || Date.now() - touched >= IDLE;
  if (now === away) return;
  away = now;
  for (const talk of talks.values()) if (talk.joined) talk.sayAway(away);
}

for (const sign of ["pointerdown", "pointermove", "keydown", "wheel", "touchstart", "focus"]) {
  addEventListener(sign, () => ((touched = Date.now()), look()), { passive: true });
}
setInterval(look, 15_000);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) touched = Date.now();
  look();
  if (!current) return;
  if (document.hidden) {
    current.firstNew = null;
    view.clearNew();
  } else {
    current.markRead();
    drawRooms();
  }
});

$("newer").addEventListener("click", () => (view.toEnd(), focusText()));
$("scroller").addEventListener("scroll", () => $("scroller").scrollTop < 60 && current?.loadOlder());
$("menu").addEventListener("click", () => view.drawer("sidebar", true));
$("people-open").addEventListener("click", () => view.drawer("people", true));
$("shade").addEventListener("click", closeDrawer);
for (const button of document.querySelectorAll(".close")) button.addEventListener("click", closeDrawer);
$("leave").addEventListener("click", leaveRoom);
$("help-open").addEventListener("click", () => $("help").showModal());
$("rename").addEventListener("click", () => {
  rt.close();
  memory.set("name", null);
  location.reload();
});

// The keyboard of a phone takes its part of the page; not all browsers tell the style sheet.
globalThis.visualViewport?.addEventListener("resize", () => {
  if (Math.abs(visualViewport.scale - 1) > 0.01) return; // somebody has a closer look
  document.documentElement.style.setProperty("--height", `${Math.round(visualViewport.height)}px`);
});

// -- coming in ----------------------------------------------------------------------------------------------

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = tidy($("name").value);
  if (!name) return;
  start(name);
  focusText();
});

const known = memory.get("name", "");
if (known) {
  start(known);
  focusText();
} else {
  $("welcome").hidden = false;
  $("name").value = localStore("get");
  $("name-error").textContent = memory.get("refused", "");
  memory.set("refused", null);
  $("name").select();
}
