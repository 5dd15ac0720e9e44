// The first large unit of all, for which chunks.js has to be loaded. In a file of its own: that happens once (T8).

import assert from "node:assert/strict";
import { test } from "node:test";
import "../../../src/rtkit/browser/chunks.js"; // so that loading it takes a few microtasks, and no more
import { client, recorded, settle } from "./harness.mjs";

const CHANNEL = "chat:lobby";

test("what comes while the module is being loaded is taken after it, in its order", async (t) => {
  const { rt, server } = await client(t);
  const room = rt.join(CHANNEL); // without history: nothing would show, and mend, a wrong order
  const items = recorded(room);
  await room.joined();
  const call = rt.call("Add");
  await settle();
  const { id } = server.socket.commands.findLast((command) => command.rpc);
  const unit = Buffer.from(JSON.stringify({ push: { channel: CHANNEL, pub: { data: "large" } } }));
  const [first, last] = [unit.subarray(0, 20), unit.subarray(20)].map((part) => part.toString("base64"));
  server.socket.pub(CHANNEL, 0, "before");
  server.socket.say({ push: { chunk: { of: 1, data: first } } }, {});
  server.socket.push({ chunk: { of: 1, n: 1, last: true, data: last } });
  server.socket.pub(CHANNEL, 0, "after");
  server.socket.say({ push: { channel: CHANNEL, pub: { data: "after that" } } }, { id, rpc: { data: 5 } });
  assert.deepEqual(items, ['"before"'], "the module is not there yet");
  await settle();
  assert.deepEqual(items, ["before", "large", "after", "after that"].map((word) => `"${word}"`));
  assert.equal(server.socket.pongs, 1);
  assert.equal(await call, null);
});
