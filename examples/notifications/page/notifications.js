// The same notifications twice: with rtkit's SDK, which knows what is unread, and with what every browser has.

import { connect, encodeParam } from "/rt/client.js";

const $ = (id) => document.getElementById(id);
const NEWEST = 50; // that are listed

/** An ordinary request to the application; what it says is wrong is thrown. */
async function post(path, body = {}) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (answer.ok) return;
  const { detail } = await answer.json().catch(() => ({}));
  throw new Error(typeof detail === "string" ? detail : `the server says ${answer.status}`);
}

// -- how it looks ----------------------------------------------------------------------------------------

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

function entry(notice, time) {
  const item = document.createElement("li");
  let text = document.createElement("span");
  const link = notice.link && new URL(notice.link, location.href);
  if (link && /^https?:$/.test(link.protocol)) {
    text = document.createElement("a");
    text.href = link.href;
    text.rel = "noopener noreferrer";
  }
  text.textContent = notice.text;
  const when = document.createElement("time");
  when.dateTime = time.toISOString();
  when.textContent = clock.format(time);
  item.append(text, when);
  return item;
}

function missing(text) {
  const item = document.createElement("li");
  item.className = "gap";
  item.textContent = text;
  return item;
}

/** The newest first, and not more than anybody reads. */
function show(list, item) {
  list.prepend(item);
  while (list.children.length > NEWEST) list.lastChild.remove();
}

function say(element, state, text) {
  element.dataset.state = state;
  element.textContent = text;
}

// -- with the SDK ----------------------------------------------------------------------------------------

const STATES = {
  idle: ["waiting", "Connecting …"],
  connecting: ["waiting", "Connecting …"],
  connected: ["on", "Live"],
  waiting: ["waiting", "Waiting for the network"],
  closed: ["off", "Closed"],
};

function withSdk(user) {
  const rt = connect("/rt");
  const drawState = () => say($("sdk-state"), ...STATES[rt.state]);
  rt.on("state", drawState);
  rt.on("error", (error) => console.info(error.message));
  drawState();

  // The server has put us into this room already. We want more of it: what was before, and what is unread.
  const room = rt.join(`user:${encodeParam(user)}`, { rewind: NEWEST, receipts: true });
  const items = []; // the newest last, each with its message
  const draw = () => {
    const unread = room.unread;
    $("unread").hidden = unread === 0;
    $("unread").textContent = `${unread} unread`;
    $("read-all").disabled = unread === 0;
    document.title = unread ? `(${unread}) Notifications` : "Notifications";
    // The newest are the unread ones: a mark says "everything up to here".
    items.forEach(({ item }, n) => item.classList.toggle("unread", n >= items.length - unread));
  };
  room.on("message", (message) => {
    const item = entry(message.data, message.time);
    const button = document.createElement("button");
    button.textContent = "Read up to here";
    button.addEventListener("click", () => room.markRead(message));
    item.append(button);
    items.push({ item });
    if (items.length > NEWEST) items.shift();
    show($("sdk-list"), item);
    draw();
  });
  room.on("gap", () => show($("sdk-list"), missing("Older ones are not kept.")));
  room.on("marks", draw);
  room.on("joined", draw);
  $("read-all").addEventListener("click", () => room.markRead());
}

// -- with a plain EventSource ------------------------------------------------------------------------------

function withEventSource(user) {
  const source = new EventSource(`/rt/events?room=${encodeURIComponent(`user:${encodeParam(user)}`)}`);
  const state = $("plain-state");
  say(state, "waiting", "Connecting …");
  source.addEventListener("joined", () => say(state, "on", "Live"));
  source.addEventListener("message", (event) => {
    const { data, time } = JSON.parse(event.data);
    show($("plain-list"), entry(data.data, new Date(time * 1000)));
  });
  source.addEventListener("gap", () => show($("plain-list"), missing("Some were missed, and are not kept.")));
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) say(state, "off", "Closed");
    else say(state, "waiting", "Waiting for the network"); // the browser comes back by itself
  });
}

// -- coming and going ----------------------------------------------------------------------------------------

function start(user) {
  $("welcome").hidden = true;
  $("site").hidden = false;
  $("me").textContent = $("to").value = user;
  withSdk(user);
  withEventSource(user);
}

function submitting(form, error, act) {
  $(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = $(form).querySelector("button");
    $(error).textContent = "";
    button.disabled = true;
    try {
      await act();
    } catch (problem) {
      $(error).textContent = problem instanceof TypeError ? "The server cannot be reached." : problem.message;
    } finally {
      button.disabled = false;
    }
  });
}

submitting("enter", "name-error", async () => {
  const user = $("name").value.trim();
  await post("/login", { name: user });
  start(user);
});
submitting("notify", "notify-error", async () => {
  await post("/notify", { user: $("to").value.trim(), text: $("text").value.trim() });
  $("text").value = "";
});
$("logout").addEventListener("click", async () => {
  await post("/logout").catch(() => {});
  location.reload();
});

const user = await (await fetch("/me")).json(); // the cookie is not for scripts to read
if (user) start(user);
else {
  $("welcome").hidden = false;
  $("name").focus();
}
