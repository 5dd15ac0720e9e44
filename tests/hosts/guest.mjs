// A client of the browser SDK that tests/hosts/guests.py drives, in node (`node guest.mjs URL TRANSPORT`, a line of JSON
// each way) and in a page (`guest`).

export function guest(connect, url, transport, emit) {
  const rt = connect(url, { transports: [transport], minDelay: 0.01 });
  const room = rt.join("club", { raw: true });
  rt.on("state", (state) => emit({ state }));
  rt.on("error", (error) => emit({ wrong: String(error) }));
  room.on("message", ({ data }) => emit({ heard: data }));
  room.on("gap", (gap) => emit({ wrong: String(gap) }));
  const verbs = {
    join: async () => {
      await room.joined();
      return rt.transport;
    },
    say: async (data) => {
      await room.publish(data);
    },
    close: async () => rt.close(),
  };
  return ({ verb, data }) => verbs[verb](data);
}

if (globalThis.process) {
  const { connect } = await import("../../src/rtkit/browser/client.js");
  const { createInterface } = await import("node:readline");
  const say = (unit) => process.stdout.write(`${JSON.stringify(unit)}\n`);
  const [url, transport] = process.argv.slice(2);
  const act = guest(connect, url, transport, say);
  for await (const line of createInterface({ input: process.stdin })) {
    say({ answer: (await act(JSON.parse(line))) ?? null });
  }
}
