/**
 * Drives unmodified centrifuge-js clients: takes commands, and tells what they answer and what events come.
 *
 * Runs in node (`node driver.js`, a line of JSON each way) and in a page (`makeDriver`). Commands, results and events
 * have the names and shapes that tests/foreign/clients.py describes; nothing else of a client is touched.
 */
"use strict";

function makeDriver(Centrifuge, defaults, emit) {
  const clients = {};

  /** What a list of answers gives: one after the other, the last for ever; `null` raises UnauthorizedError. */
  function giving(answers, name, more) {
    if (!answers) return undefined;
    const left = [...answers];
    return async () => {
      const answer = left.length > 1 ? left.shift() : left[0];
      emit({ ...more, event: name });
      if (answer === null) throw new Centrifuge.UnauthorizedError("");
      return answer;
    };
  }

  function subscribed(ctx) {
    return {
      recovered: ctx.recovered,
      was_recovering: ctx.wasRecovering,
      recoverable: ctx.recoverable,
      positioned: ctx.positioned,
      position: ctx.streamPosition || null,
      data: ctx.data,
    };
  }

  function publication(ctx) {
    return { data: ctx.data, offset: ctx.offset || 0, info: ctx.info ? named(ctx.info) : null };
  }

  function named(info) {
    return { user: info.user, client: info.client };
  }

  function watch(source, kinds, more) {
    const shapes = {
      subscribed,
      publication,
      join: (ctx) => ({ info: named(ctx.info) }),
      leave: (ctx) => ({ info: named(ctx.info) }),
      message: (ctx) => ({ data: ctx.data }),
      connected: (ctx) => ({ id: ctx.client, data: ctx.data }),
      error: (ctx) => ({ type: ctx.type, code: ctx.error.code, reason: ctx.error.message }),
    };
    for (const kind of kinds) {
      const shape = shapes[kind] || ((ctx) => ({ code: ctx.code, reason: ctx.reason }));
      source.on(kind, (ctx) => emit({ ...more, event: kind, channel: ctx.channel, ...shape(ctx) }));
    }
  }

  const verbs = {
    open(it, args) {
      const { tokens, ...options } = args.options || {};
      const more = { client: args.client };
      const client = new Centrifuge(args.url, {
        ...defaults,
        minReconnectDelay: 5,
        maxReconnectDelay: 20,
        ...options,
        getToken: giving(tokens, "get_token", more) || null,
      });
      watch(client, ["connecting", "connected", "disconnected", "message", "error"], more);
      // Of rooms that the server chose; those of the client have events of their own.
      const kinds = ["subscribed", "subscribing", "unsubscribed", "publication", "join", "leave"];
      watch(client, kinds, { ...more, server: true });
      clients[args.client] = client;
    },
    connect: (it) => it.connect(),
    disconnect: (it) => it.disconnect(),
    subscribe(it, args) {
      const { tokens, states, ...options } = args.options || {};
      const more = { client: args.client, channel: args.channel };
      const sub = it.newSubscription(args.channel, {
        minResubscribeDelay: 5,
        maxResubscribeDelay: 20,
        ...options,
        getToken: giving(tokens, "get_token", more),
        getState: giving(states, "get_state", more),
      });
      const kinds = ["subscribed", "subscribing", "unsubscribed", "publication", "join", "leave", "error"];
      watch(sub, kinds, more);
      sub.subscribe();
    },
    again: (it, args) => it.getSubscription(args.channel).subscribe(),
    unsubscribe: (it, args) => it.getSubscription(args.channel).unsubscribe(),
    // Leaves the room from within the very event that says it was joined.
    unsubscribe_when_subscribed(it, args) {
      const sub = it.getSubscription(args.channel);
      sub.once("subscribed", () => sub.unsubscribe());
    },
    async publish(it, args) {
      await it.publish(args.channel, args.data);
    },
    history: (it, args) => it.history(args.channel, args.options),
    rpc: async (it, args) => (await it.rpc(args.method, args.data)).data,
    send: (it, args) => it.send(args.data),
    presence: async (it, args) => (await it.presence(args.channel)).clients,
    async presence_stats(it, args) {
      const found = await it.presenceStats(args.channel);
      return { clients: found.numClients, users: found.numUsers };
    },
    // Several commands in one frame.
    async batch(it, args) {
      it.startBatching();
      const results = args.commands.map((each) => answered({ ...each, client: args.client }));
      it.stopBatching();
      return Promise.all(results);
    },
    close(it, args) {
      it.disconnect();
      delete clients[args.client];
    },
  };

  async function answered(command) {
    try {
      const result = await verbs[command.verb](clients[command.client], command);
      return { result: result === undefined ? null : result };
    } catch (error) {
      if (typeof error.code !== "number") return { broken: `${error.stack || JSON.stringify(error)}` };
      return { error: { code: error.code, message: error.message } };
    }
  }

  return answered;
}

if (typeof module !== "undefined") {
  const { Centrifuge } = require("centrifuge");
  const say = (unit) => process.stdout.write(JSON.stringify(unit) + "\n");
  // As the package's own tests do: old nodes have no WebSocket.
  const driver = makeDriver(Centrifuge, { websocket: require("ws") }, say);
  const lines = require("node:readline").createInterface({ input: process.stdin });
  lines.on("line", async (line) => {
    const command = JSON.parse(line);
    say({ ...(await driver(command)), answers: command.id });
  });
  // An exception in here is a fault of the test, and shall be seen.
  process.on("unhandledRejection", (error) => {
    process.stderr.write(`${error.stack || error}\n`);
    process.exit(1);
  });
  lines.on("close", () => process.exit(0));
} else {
  globalThis.makeDriver = makeDriver;
}
