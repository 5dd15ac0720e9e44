// The vectors that hold both SDKs together (K1): tests/vectors, read by the Python tests too.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { UsageError, encodeParam } from "../../../src/rtkit/browser/client.js";
import { client, fate, joined, recorded, settle } from "./harness.mjs";

const load = (name) => JSON.parse(readFileSync(new URL(`../../vectors/${name}.json`, import.meta.url), "utf-8"));
const codes = load("codes");
const units = load("units");

for (const { value, encoded } of load("room_names")) {
  test(`a room's parameter: ${JSON.stringify(value)}`, () => {
    if (encoded === null) assert.throws(() => encodeParam(value), UsageError);
    else assert.equal(encodeParam(value), encoded);
  });
}

test("a number will do as a room's parameter", () => assert.equal(encodeParam(42), "42"));

/** All codes of a kind: those that are named, and both ends of every band. */
const of = (kind) => [
  ...codes.codes.filter((each) => each.kind === kind),
  ...codes.bands
    .filter((each) => each.kind === kind)
    .flatMap((band) => [band.from, band.to].map((code) => ({ ...band, code }))),
];

for (const { code, reconnect } of of("close")) {
  test(`closed with ${code}: ${reconnect ? "comes back" : "stays away"}`, async (t) => {
    const { rt, server } = await client(t);
    await server.socket.drop(code, "words");
    assert.equal(rt.state, reconnect ? "waiting" : "closed");
    if (!reconnect) assert.deepEqual([rt.closed.code, rt.closed.reason], [code, "words"]);
  });
}

for (const { code, resubscribe } of of("unsubscribe")) {
  test(`unsubscribed with ${code}: ${resubscribe ? "joins again" : "stays out"}`, async (t) => {
    const { rt, server } = await client(t);
    const room = rt.join("c");
    room.on("left", () => {});
    await settle();
    server.socket.push({ channel: "c", unsubscribe: { code, reason: "words" } });
    await settle();
    assert.equal(room.state, resubscribe ? "joined" : "left");
  });
}

for (const { code, temporary } of codes.codes.filter(({ kind }) => kind === "error")) {
  if (code === 111) continue; // never seen by the application: the command is sent again
  test(`a command that failed with ${code}`, async (t) => {
    const { rt, server } = await client(t);
    server.on("rpc", () => {});
    server.handle = (socket, { id }) => socket.say({ id, error: { code, message: "no" } });
    const { error } = await fate(rt.call("Add"));
    assert.deepEqual([error.code, error.temporary], [code, temporary]);
  });
}

// Whatever a server may send is taken: no unit of the vectors ends the connection.
for (const { name, kind, unit } of units.vectors.filter(({ unit, kind }) => unit && !kind.includes("command"))) {
  test(`taken: ${kind}, ${name}`, async (t) => {
    const { rt, server } = await client(t);
    server.on("subscribe", joined("Ab", 16));
    const room = rt.join("c");
    recorded(room);
    room.on("left", () => {});
    await settle();
    server.socket.raw(unit);
    if (!unit.includes("disconnect")) assert.equal(rt.state, "connected");
  });
}

for (const { name, frame, expected } of units.vectors.filter(({ kind }) => kind === "frame")) {
  test(`a frame of ${expected.units.length} units: ${name}`, async (t) => {
    const { rt, server } = await client(t);
    server.socket.raw(frame);
    assert.equal(rt.state, "connected");
    assert.equal(server.socket.pongs, expected.units.filter((unit) => unit === "{}").length);
  });
}
