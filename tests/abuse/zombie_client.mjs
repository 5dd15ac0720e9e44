// Clients of the browser SDK in node that say how they are: `node zombie_client.mjs hasty|default URL…`. See zombie_client.py.

import { connect } from "../../src/rtkit/browser/client.js";

const [patience, ...urls] = process.argv.slice(2);
const hasty = { silence: 0.8, minDelay: 0.05, maxDelay: 0.2, openTimeout: 0.5 };
// CLOCK_MONOTONIC, like Python's.
const now = () => Number(process.hrtime.bigint()) / 1e9;

for (const url of urls) {
  for (const transport of ["websocket", "sse", "poll"]) {
    const rt = connect(url, { transports: [transport], ...(patience === "hasty" ? hasty : {}) });
    const name = `${url} ${transport}`;
    rt.on("state", (state) => process.stdout.write(`${JSON.stringify({ at: now(), [name]: state })}\n`));
    rt.on("error", () => {});
    for (const room of ["lobby", "news"]) rt.join(room, { raw: true });
  }
}
process.stdin.resume();
process.stdin.on("end", () => process.exit());
