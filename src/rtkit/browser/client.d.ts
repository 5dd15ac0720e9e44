/**
 * The browser SDK of rtkit: a connection to a hub that comes back by itself. One module, no dependencies; parts that
 * few need are loaded when they are needed: http.js for other transports than WebSockets, chunks.js for large units,
 * people.js for rooms that know who is there, who types, and who has read what.
 *
 *     import { connect } from "/rt/client.js";
 *
 *     const rt = connect("/rt", { token: () => fetch("/token").then((answer) => answer.text()) });
 *     const room = rt.join("chat:lobby", { rewind: 20 });
 *     room.on("Said", (data, message) => show(message.sender, data.text));
 *     room.on("gap", (gap) => showThatSomethingIsMissing(gap));
 *     await room.send("Say", { text: "hi" });
 *
 * The theory
 * ==========
 * States, the same as those of the Python client:
 *
 *     idle ──► connecting ──► connected ──► waiting ──► connecting …       closed, from anywhere, for good
 *
 * `connect()` answers in `idle` and begins in the next microtask, so that listeners can be put on before.
 * Closed is final: by `close()`, by the server's code (3500–3999, 4500–4999 and some of WebSocket's own), when
 * it refuses `connect` with an error that is not temporary, or when there is no token any more. Everything else
 * is tried again, after the window the server named, else with full jitter between 0.5 and 20 s.
 *
 * *Position.* A room with history has a place up to which everything was handed out, or told as a gap. Only
 * the next offset of the same epoch is ever taken. At or below: a duplicate, dropped. Beyond: a hole; the room
 * is joined anew, recovering from where it stands. A new epoch that is told as a *position* continues the old
 * one for who stands right there, and for everybody else is a hole as well. A reply that recovers proves
 * continuity, or there is a gap, always. A room without history is at most once, and has no position.
 *
 * *Queue.* What a room brings goes through a bounded queue to its listeners, or to who iterates. With neither it
 * waits. When the queue is full, a room with history turns deaf where it stands, and joins again from there when
 * half of it is drained; in one without history the oldest is dropped, and a gap says so.
 *
 * *Commands* wait in the order they were made, those of a room until the server has us in. What was written and
 * not answered when the connection is lost is written again, with the same key, so that it happens once; but not
 * if it was first written more than half the server's window for keys ago. Then it ends as `PublishUnknown`.
 *
 * *Time.* There is one clock, which never goes back and counts sleep, and one timer, due at least every 10 s.
 * What arrives proves that the server lives, not timers. A timer that comes late shows that it was we who slept
 * or were throttled: then the server is asked (`ping`) before it is taken for dead.
 *
 * *Transports.* One over which nothing was heard, or that was cut soon three times in a row, has failed, unless the
 * server said why: then http.js asks whether the server is there, and chooses the next one. Each is an attempt like any
 * other, with a token of its own. What http.js opens looks like a WebSocket.
 *
 * *People.* A room that asks for presence or receipts is not joined before people.js is loaded; from then on it is shown
 * everything that concerns the room, in order. Where typing or a rate for signals is told it is loaded then, and what
 * comes until then is lost: whoever goes on typing says so again. If it cannot be loaded, rooms do without it.
 *
 * *Session.* The server gives a token with each connection; shown with the next one, in time, it goes on with the
 * session. It is dropped when another connection has taken the session over, and with a goodbye.
 *
 * *The page.* Gone for good (`pagehide`): goodbye. Kept in the back-forward cache (`pagehide`, `freeze`): the connection
 * is closed; back (`pageshow`, `resume`): connected again at once. `online`, or visible again: a connection is checked, and
 * when there is none, `online` connects at once. While offline, delays are long and do not grow.
 *
 * Source of the wire: docs/reference/protocol.md; letters with a number, such as H3, are points of the
 * specification. Times are in seconds and sizes in bytes.
 *
 * @module
 */
export type Position = {
    epoch: string;
    offset: number;
};
export type State = "idle" | "connecting" | "connected" | "waiting" | "closed";
export type Transport = "websocket" | "sse" | "poll";
export type GapReason = "trimmed" | "epoch" | "rollback" | "dropped";
export type Joined = {
    /**
     * What the room's `on_join` returned; undefined without any.
     */
    data: any;
    /**
     * Where the room stands; null without history.
     */
    position: Position | null;
    /**
     * Nothing is missing since `since`, or since before the interruption.
     */
    recovered: boolean;
};
export type Signal = {
    /**
     * Its name; empty when it was sent without one.
     */
    event: string;
    data: any;
    /**
     * The user; null when a server sent it.
     */
    sender: string | null;
    /**
     * The client id it came from.
     */
    client: string | null;
};
export type Member = {
    user: string;
    client: string;
    /**
     * What it says about itself; empty for nothing.
     */
    meta: Record<string, any>;
};
export type PresenceChange = {
    joins: Member[];
    /**
     * As they were.
     */
    leaves: Member[];
    /**
     * As they are now.
     */
    updates: Member[];
    /**
     * Nothing was known before: begin anew with `joins`, which are all. With nobody in it the room
     * has too many to be listed, and is only counted.
     */
    whole: boolean;
};
export type Marks = {
    delivered: number | null;
    read: number | null;
};
export type Page<D = any> = {
    /**
     * In the order asked for.
     */
    messages: Message<D>[];
    /**
     * Where the stream ends now.
     */
    top: Position;
    /**
     * Nothing between `since` and the first message is missing.
     */
    complete: boolean;
};
export type ClientEvents = {
    /**
     * After each change.
     */
    state: [state: State];
    /**
     * What nobody else was told: a gap without a listener, a room that ended, a token
     * function that failed, a refused refresh. Without a listener it goes to the console.
     */
    error: [error: Error];
    /**
     * For good.
     */
    closed: [why: ConnectionClosed];
    /**
     * Sent to this session alone, at most once.
     */
    message: [message: {
        event: string;
        data: any;
    }];
};
export type RoomEvents<D = any> = {
    /**
     * Every message, whatever its event.
     */
    message: [message: Message<D>];
    /**
     * Something is missing, here.
     */
    gap: [gap: Gap];
    signal: [signal: Signal];
    presence: [change: PresenceChange];
    /**
     * Who is typing now.
     */
    typing: [users: string[]];
    /**
     * Somebody has got or read more, or `room.unread` is less.
     */
    marks: [];
    /**
     * The server has let us in: the first time, and after each interruption.
     */
    joined: [info: Joined];
    /**
     * It is over; null when it was this client's wish.
     */
    left: [error: Error | null];
};
export type SendOptions = {
    /**
     * A key of your own, 1 to 128 characters: say the same again and it happens once.
     */
    key?: string;
    /**
     * Seconds to wait for the answer; without it as long as it takes.
     */
    timeout?: number;
    /**
     * Gives up waiting. What was not sent yet is withdrawn.
     */
    signal?: AbortSignal;
};
export type JoinOptions = {
    /**
     * Go on from here, as `room.position` told another time.
     */
    since?: Position | null;
    /**
     * Or begin so many messages back.
     */
    rewind?: number;
    /**
     * Handed to the room's `on_join`, with every join.
     */
    data?: any;
    /**
     * False leaves out what this client itself has sent.
     */
    echo?: boolean;
    /**
     * The room publishes any JSON: never look for events in it.
     */
    raw?: boolean;
    /**
     * Messages that may wait to be taken.
     */
    maxQueue?: number;
    /**
     * Be told who is here.
     */
    presence?: boolean;
    /**
     * Be told who has got and read how much; and say it of oneself.
     */
    receipts?: boolean;
};
export type Clock = {
    /**
     * Never goes back.
     */
    monotonic: () => number;
    /**
     * Counts sleep; may be set.
     */
    wall: () => number;
    setTimeout: (callback: () => void, seconds: number) => any;
    clearTimeout: (timer: any) => void;
};
export type TokenSource = () => string | null | PromiseLike<string | null>;
export type ConnectOptions = {
    /**
     * A string; or a function that gets one, called for every
     * connection and shortly before the identity expires. What it throws is told as `error`, and it is called
     * again after a delay. When it returns null, or throws a `ConnectionClosed`, the client is closed for good.
     */
    token?: string | TokenSource | null;
    /**
     * Sent with `connect`, beside the token.
     */
    data?: any;
    /**
     * Before trying again, at the least (0.5 s).
     */
    minDelay?: number;
    /**
     * And at the most (20 s); a window that the server names wins over both.
     */
    maxDelay?: number;
    /**
     * For getting a token, for opening a connection, and for the answer to `connect` (10 s).
     */
    openTimeout?: number;
    /**
     * Beyond the server's ping interval, until it counts as gone (10 s).
     */
    silence?: number;
    /**
     * After its first writing a command may be written again (150 s).
     */
    resendWithin?: number;
    /**
     * Commands that may wait for an answer (1000).
     */
    maxOffline?: number;
    /**
     * And their payloads (8 MiB).
     */
    maxOfflineBytes?: number;
    /**
     * What may be used, the best first; without it all three, WebSocket first.
     */
    transports?: Transport[];
    /**
     * The order is for who sends little: SSE first.
     */
    receiveOnly?: boolean;
    /**
     * The class to use.
     */
    WebSocket?: any;
    /**
     * For tests.
     */
    clock?: Clock;
    /**
     * From 0 to 1, for tests.
     */
    random?: () => number;
    /**
     * For tests: what has `addEventListener`, `document`, `navigator`, `fetch` and `localStorage`.
     */
    page?: any;
};
/**
 * A place in a room's stream: just behind the message with this offset. Plain data: keep it as JSON.
 * @typedef {{ epoch: string, offset: number }} Position
 */
/** @typedef {"idle" | "connecting" | "connected" | "waiting" | "closed"} State */
/** @typedef {"websocket" | "sse" | "poll"} Transport */
/**
 * Why something is missing. `trimmed`: history does not reach back that far. `epoch`: the stream was replaced by
 * a new one. `rollback`: the server lost what it had acknowledged. `dropped`: messages of a room without history
 * were dropped because nobody took them.
 * @typedef {"trimmed" | "epoch" | "rollback" | "dropped"} GapReason
 */
/**
 * Whether the room was joined for the first time or again, `joined` tells.
 * @typedef {object} Joined
 * @property {any} data What the room's `on_join` returned; undefined without any.
 * @property {Position | null} position Where the room stands; null without history.
 * @property {boolean} recovered Nothing is missing since `since`, or since before the interruption.
 */
/**
 * A message without storage, for those who are there now.
 * @typedef {object} Signal
 * @property {string} event Its name; empty when it was sent without one.
 * @property {any} data
 * @property {string | null} sender The user; null when a server sent it.
 * @property {string | null} client The client id it came from.
 */
/**
 * A client that is in a room. One user may be there with several.
 * @typedef {object} Member
 * @property {string} user
 * @property {string} client
 * @property {Record<string, any>} meta What it says about itself; empty for nothing.
 */
/**
 * Who has come and gone in a room since the last time.
 * @typedef {object} PresenceChange
 * @property {Member[]} joins
 * @property {Member[]} leaves As they were.
 * @property {Member[]} updates As they are now.
 * @property {boolean} whole Nothing was known before: begin anew with `joins`, which are all. With nobody in it the room
 *     has too many to be listed, and is only counted.
 */
/**
 * How far a user has come in a room, as offsets of its present epoch; null for not at all.
 * @typedef {{ delivered: number | null, read: number | null }} Marks
 */
/**
 * A page of history.
 * @template [D=any]
 * @typedef {object} Page
 * @property {Message<D>[]} messages In the order asked for.
 * @property {Position} top Where the stream ends now.
 * @property {boolean} complete Nothing between `since` and the first message is missing.
 */
/**
 * @typedef {object} ClientEvents
 * @property {[state: State]} state After each change.
 * @property {[error: Error]} error What nobody else was told: a gap without a listener, a room that ended, a token
 *     function that failed, a refused refresh. Without a listener it goes to the console.
 * @property {[why: ConnectionClosed]} closed For good.
 * @property {[message: { event: string, data: any }]} message Sent to this session alone, at most once.
 */
/**
 * @template [D=any]
 * @typedef {object} RoomEvents
 * @property {[message: Message<D>]} message Every message, whatever its event.
 * @property {[gap: Gap]} gap Something is missing, here.
 * @property {[signal: Signal]} signal
 * @property {[change: PresenceChange]} presence
 * @property {[users: string[]]} typing Who is typing now.
 * @property {[]} marks Somebody has got or read more, or `room.unread` is less.
 * @property {[info: Joined]} joined The server has let us in: the first time, and after each interruption.
 * @property {[error: Error | null]} left It is over; null when it was this client's wish.
 */
/**
 * @typedef {object} SendOptions
 * @property {string} [key] A key of your own, 1 to 128 characters: say the same again and it happens once.
 * @property {number} [timeout] Seconds to wait for the answer; without it as long as it takes.
 * @property {AbortSignal} [signal] Gives up waiting. What was not sent yet is withdrawn.
 */
/**
 * @typedef {object} JoinOptions
 * @property {Position | null} [since] Go on from here, as `room.position` told another time.
 * @property {number} [rewind] Or begin so many messages back.
 * @property {any} [data] Handed to the room's `on_join`, with every join.
 * @property {boolean} [echo] False leaves out what this client itself has sent.
 * @property {boolean} [raw] The room publishes any JSON: never look for events in it.
 * @property {number} [maxQueue] Messages that may wait to be taken.
 * @property {boolean} [presence] Be told who is here.
 * @property {boolean} [receipts] Be told who has got and read how much; and say it of oneself.
 */
/**
 * Measures time, in seconds.
 * @typedef {object} Clock
 * @property {() => number} monotonic Never goes back.
 * @property {() => number} wall Counts sleep; may be set.
 * @property {(callback: () => void, seconds: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 */
/**
 * The way to get a token; null gives up.
 * @typedef {() => string | null | PromiseLike<string | null>} TokenSource
 */
/**
 * @typedef {object} ConnectOptions
 * @property {string | TokenSource | null} [token] A string; or a function that gets one, called for every
 *     connection and shortly before the identity expires. What it throws is told as `error`, and it is called
 *     again after a delay. When it returns null, or throws a `ConnectionClosed`, the client is closed for good.
 * @property {any} [data] Sent with `connect`, beside the token.
 * @property {number} [minDelay] Before trying again, at the least (0.5 s).
 * @property {number} [maxDelay] And at the most (20 s); a window that the server names wins over both.
 * @property {number} [openTimeout] For getting a token, for opening a connection, and for the answer to `connect` (10 s).
 * @property {number} [silence] Beyond the server's ping interval, until it counts as gone (10 s).
 * @property {number} [resendWithin] After its first writing a command may be written again (150 s).
 * @property {number} [maxOffline] Commands that may wait for an answer (1000).
 * @property {number} [maxOfflineBytes] And their payloads (8 MiB).
 * @property {Transport[]} [transports] What may be used, the best first; without it all three, WebSocket first.
 * @property {boolean} [receiveOnly] The order is for who sends little: SSE first.
 * @property {any} [WebSocket] The class to use.
 * @property {Clock} [clock] For tests.
 * @property {() => number} [random] From 0 to 1, for tests.
 * @property {any} [page] For tests: what has `addEventListener`, `document`, `navigator`, `fetch` and `localStorage`.
 */
/** A message of a room. @template [D=any] @template {string} [E=string] */
export declare class Message<D = any, E extends string = string> {
    /** What was published. */
    data: D;
    /** The name of its type; empty in raw rooms. */
    event: E;
    /** Null in a room without history. */
    position: Position | null;
    /** The user it came from; null when a server published it. */
    sender: string | null;
    /** The client id it came from. */
    client: string | null;
    /** When it was published, by the server's clock. */
    time: Date | null;
    /**
     * @param {D} data
     * @param {E} event
     * @param {Position | null} position
     * @param {string | null} sender
     * @param {string | null} client
     * @param {Date | null} time
     */
    constructor(data: D, event: E, position: Position | null, sender: string | null, client: string | null, time: Date | null);
}
/** Messages with `from` < offset ≤ `to` are not available; it goes on at `to` + 1 of `epoch` (H3). */
export declare class Gap {
    from: number;
    to: number;
    epoch: string;
    reason: GapReason;
    /**
     * @param {number} from
     * @param {number} to
     * @param {string} epoch
     * @param {GapReason} reason
     */
    constructor(from: number, to: number, epoch: string, reason: GapReason);
    toString(): string;
}
/** Root of all errors of this library. */
export declare class RtkitError extends Error {
    name: string;
}
/** The API was misused; the message says what to do instead. */
export declare class UsageError extends RtkitError {
    name: string;
}
/** The room was left, or the client closed. */
export declare class NotRunning extends UsageError {
    name: string;
}
/** A value that JSON cannot hold, or a message too large for the server. */
export declare class InvalidMessage extends UsageError {
    name: string;
}
/** The server answered a command with an error. */
export declare class CallError extends RtkitError {
    code: number;
    /** The server's words, without the code. */
    text: string;
    temporary: boolean;
    retryAfter: number | null;
    name: string;
    /**
     * @param {number} code See "Codes" of the wire; from 400 on the application's own.
     * @param {string} text The server's words.
     * @param {boolean} temporary Trying again may help.
     * @param {number | null} retryAfter Seconds to wait before that, if the server said so.
     */
    constructor(code: number, text: string, temporary?: boolean, retryAfter?: number | null);
}
/** It may or may not have happened. Sending again with the same key is safe for some minutes (H7). */
export declare class PublishUnknown extends RtkitError {
    name: string;
}
/** Never sent within the timeout, and withdrawn. */
export declare class TimeoutError extends RtkitError {
    name: string;
}
/** Too many commands wait for an answer; nothing was queued. */
export declare class QueueFull extends RtkitError {
    name: string;
}
/** The server took us out of a room, and we shall not join again by ourselves. */
export declare class Unsubscribed extends RtkitError {
    code: number;
    reason: string;
    name: string;
    /** @param {number} code @param {string} reason */
    constructor(code: number, reason: string);
}
/** The connection ended and will not come back by itself. */
export declare class ConnectionClosed extends RtkitError {
    code: number;
    reason: string;
    name: string;
    /** @param {number} code @param {string} reason @param {unknown} [cause] */
    constructor(code: number, reason: string, cause?: unknown);
}
/**
 * A value for a placeholder in a room's name, escaped so that any text fits: "%", ":" and control characters
 * become %XX for each byte, everything else stays.
 *
 *     rt.join(`chat:${encodeParam(name)}`)
 *
 * @param {string | number} value Not empty.
 * @returns {string}
 * @throws {UsageError} For the empty string, and for lone surrogates, which UTF-8 cannot hold.
 */
export declare function encodeParam(value: string | number): string;
export type Sending = {
    method: string;
    /**
     * Its body, encoded when it was made.
     */
    json: string;
    /**
     * Its room; empty for none.
     */
    lane: string;
    /**
     * Safe to write again, and of effect.
     */
    keyed: boolean;
    /**
     * Of its payload.
     */
    size: number;
    /**
     * Of all of it, at the most.
     */
    whole: number;
    /**
     * Written on the connection that lives now, and not answered.
     */
    flying: boolean;
    since: number | null;
    /**
     * A connection was lost while it was in flight.
     */
    lost: boolean;
    /**
     * Only the first call counts.
     */
    settle: (error: unknown, reply?: any) => void;
};
export type Ending = {
    code: number;
    reason: string;
    /**
     * For good.
     */
    terminal?: boolean;
    /**
     * When to come back, if the server said so.
     */
    window?: [number, number] | null;
    atOnce?: boolean;
    cause?: unknown;
};
/**
 * A client of the hub at `url`. It begins to connect in the next microtask and comes back after every loss.
 *
 * @param {string | URL} url Of the mounted hub, relative to the page or absolute: "/rt".
 * @param {ConnectOptions} [options]
 * @returns {Client}
 * @throws {UsageError} For a URL or an option that cannot be right.
 */
export declare function connect(url: string | URL, options?: ConnectOptions): Client;
/** A client of a hub; see {@link connect}. */
export declare class Client {
    #private;
    /** @param {string | URL} url @param {ConnectOptions} [options] */
    constructor(url: string | URL, options?: ConnectOptions);
    /** Where the client stands. @returns {State} */
    get state(): State;
    /** Why it is closed for good; null while it is not. @returns {ConnectionClosed | null} */
    get closed(): ConnectionClosed | null;
    /** How the server calls the latest connection; null before the first. @returns {string | null} */
    get clientId(): string | null;
    /**
     * Why the latest connection ended or attempt failed, in plain words; empty before the first failure.
     * @returns {string}
     */
    get lastFailure(): string;
    /** What it is connected by now; null while it is not. @returns {Transport | null} */
    get transport(): Transport | null;
    /** Commands without an answer yet. @returns {number} */
    get pending(): number;
    /**
     * Have a function called when something happens; see `ClientEvents`.
     * @template {keyof ClientEvents} K
     * @param {K} name
     * @param {(...args: ClientEvents[K]) => unknown} listener What it throws is reported, and harms nobody.
     * @returns {() => void} Takes it away again.
     */
    on<K extends keyof ClientEvents>(name: K, listener: (...args: ClientEvents[K]) => unknown): () => void;
    /**
     * Wait until the client is connected.
     * @returns {Promise<void>}
     * @throws {ConnectionClosed} When it is closed for good.
     */
    connected(): Promise<void>;
    /**
     * Join a room; answers at once. The room joins again by itself after every loss. Put listeners on in the same
     * task, or later: what comes before waits for them.
     *
     * @template {Record<string, any>} [E=Record<string, any>] Data by event.
     * @param {string} name The full name; see {@link encodeParam}.
     * @param {JoinOptions} [options]
     * @returns {Room<E>}
     * @throws {UsageError} For a name that cannot be one, or a room that is joined already.
     * @throws {ConnectionClosed} When the client is closed.
     */
    join<E extends Record<string, any> = Record<string, any>>(name: string, options?: JoinOptions): Room<E>;
    /**
     * Call a procedure of the server and wait for what it returns. Queued, sent again and given up like `room.send`.
     * @param {string} method
     * @param {any} [data]
     * @param {SendOptions} [options]
     * @returns {Promise<any>} Null when it returned nothing.
     */
    call(method: string, data?: any, options?: SendOptions): Promise<any>;
    /** Say goodbye and close for good. Commands without an answer fail, rooms end. */
    close(): void;
}
/**
 * A room this client is in, or is about to be. Made by {@link Client.join}.
 *
 * Listen (`on`) or iterate (`for await`), not both: either way every message of a room with history comes exactly
 * once and in order, across any number of reconnects, and where that cannot be proven there is a {@link Gap} in the
 * place of what is missing. In a room without history messages come at most once.
 *
 * @template {Record<string, any>} [E=Record<string, any>]
 */
export declare class Room<E extends Record<string, any> = Record<string, any>> {
    #private;
    /**
     * Who is here, in the order they came; if asked for with `presence`. Another array after each change. Empty while it
     * is not known: in rooms that are too full, too, which are only counted.
     * @readonly
     * @type {readonly Member[]}
     */
    readonly members: readonly Member[];
    /** How many clients are here. @readonly @type {number} */
    readonly clients: number;
    /** How far users have come, if asked for with `receipts`. @readonly @type {ReadonlyMap<string, Marks>} */
    readonly marks: ReadonlyMap<string, Marks>;
    /** So many messages are behind what this user has read; if asked for with `receipts`. @readonly @type {number} */
    readonly unread: number;
    /** The users that are typing now, in rooms that know; without this client. @returns {string[]} */
    get typists(): string[];
    /** The full name. */
    get name(): string;
    /** Whether the server has us in now. @returns {"joining" | "joined" | "left"} */
    get state(): "joining" | "joined" | "left";
    /**
     * Behind the last message or gap that was handed out: pass it as `since` another time. Plain data. Null in a room
     * without history, and before the room was joined.
     * @returns {Position | null}
     */
    get position(): Position | null;
    /** What the room's `on_join` returned to the latest join; undefined without any. @returns {any} */
    get data(): any;
    /**
     * Wait until the server has let us in for the first time.
     * @returns {Promise<this>}
     * @throws {CallError} When it refuses.
     * @throws {Unsubscribed} When it has taken us out again.
     * @throws {ConnectionClosed} When the client is closed for good.
     * @throws {NotRunning} When the room was left.
     */
    joined(): Promise<this>;
    /**
     * Have a function called with every message of an event, or with what happens to the room: `message`, `gap`, `signal`,
     * `joined`, `left`, `presence`, `typing`, `marks` (see `RoomEvents`). An event that has one of these names comes as
     * `message` only.
     * What came before the first listener for messages waits for it.
     *
     * @template {keyof RoomEvents} K
     * @overload
     * @param {K} name
     * @param {(...args: RoomEvents<E[keyof E]>[K]) => unknown} listener
     * @returns {() => void}
     */
    /**
     * @template {keyof E & string} K
     * @overload
     * @param {K} name
     * @param {(data: E[K], message: Message<E[K], K>) => unknown} listener What it throws is reported, and harms nobody.
     * @returns {() => void} Takes it away again.
     */
    /**
     * @param {string} name
     * @param {(...args: any[]) => unknown} listener
     * @returns {() => void}
     */
    on<K extends keyof RoomEvents>(name: K, listener: (...args: RoomEvents<E[keyof E]>[K]) => unknown): () => void;
    /**
     * Have a function called with every message of an event, or with what happens to the room: `message`, `gap`, `signal`,
     * `joined`, `left`, `presence`, `typing`, `marks` (see `RoomEvents`). An event that has one of these names comes as
     * `message` only.
     * What came before the first listener for messages waits for it.
     *
     * @template {keyof RoomEvents} K
     * @overload
     * @param {K} name
     * @param {(...args: RoomEvents<E[keyof E]>[K]) => unknown} listener
     * @returns {() => void}
     */
    /**
     * @template {keyof E & string} K
     * @overload
     * @param {K} name
     * @param {(data: E[K], message: Message<E[K], K>) => unknown} listener What it throws is reported, and harms nobody.
     * @returns {() => void} Takes it away again.
     */
    /**
     * @param {string} name
     * @param {(...args: any[]) => unknown} listener
     * @returns {() => void}
     */
    on<K extends keyof E & string>(name: K, listener: (data: E[K], message: Message<E[K], K>) => unknown): () => void;
    /**
     * Every message and gap, from the oldest that nobody has taken.
     * @returns {AsyncIterableIterator<Message<E[keyof E]> | Gap>} Ends when the room is left.
     * @throws {UsageError} When there are listeners for messages.
     */
    [Symbol.asyncIterator](): AsyncIterableIterator<Message<E[keyof E]> | Gap>;
    /**
     * Send a message to the room's handler and wait for the acknowledgement. While there is no connection it is
     * queued; after a reconnect it is sent again until it is answered, and its key makes that happen once.
     *
     * @param {string} event The type of the message.
     * @param {any} [data]
     * @param {SendOptions} [options]
     * @returns {Promise<any>} What the handler returned; null for nothing.
     * @throws {CallError} The server refused it.
     * @throws {PublishUnknown} Sent, but not answered in time: it may have happened.
     * @throws {TimeoutError} Never sent within the timeout, and withdrawn.
     * @throws {QueueFull} Too many commands wait.
     * @throws {InvalidMessage} JSON cannot hold it, or it is too large for the server.
     * @throws {Unsubscribed} The server took us out of the room.
     * @throws {ConnectionClosed} The client is closed; not sent.
     * @throws {NotRunning} The room was left; not sent.
     */
    send(event: string, data?: any, options?: SendOptions): Promise<any>;
    /**
     * Publish to a raw room, which takes any JSON; else like {@link Room.send}.
     * @param {any} data
     * @param {SendOptions} [options]
     * @returns {Promise<any>} Its position; null in a room without history.
     */
    publish(data: any, options?: SendOptions): Promise<any>;
    /**
     * Tell those who are in the room now: at most once, not stored, never waits (D5). Of signals of the same event
     * that wait to be written only the newest is sent.
     * @param {string} event
     * @param {any} [data]
     * @returns {boolean} False when it cannot be sent now: not in the room, or too many wait.
     */
    signal(event: string, data?: any): boolean;
    /**
     * This user is typing: call it with each key. Others are told every now and then, and that it is over when it was
     * not called for a while, and with `send`. Nothing happens while not in the room, or in one without typing (X1).
     * @param {boolean} [on] False: no more.
     */
    typing(on?: boolean): void;
    /**
     * Replace what this client says about itself to the others in the room. A client that had to come back as another
     * one says it again.
     * @param {Record<string, any>} meta
     * @returns {Promise<void>}
     * @throws {CallError} The server refused it.
     */
    updatePresence(meta: Record<string, any>): Promise<void>;
    /**
     * This user has read everything up to here, on whatever device. Told at once, but once a second at most (X2).
     * @param {Message | Position | null} [place] Without it, what was handed out last.
     */
    markRead(place?: Message | Position | null): void;
    /**
     * The users that are as far as this, or further.
     * @param {Message | Position} place
     * @param {"delivered" | "read"} [kind]
     * @returns {string[]}
     */
    reached(place: Message | Position, kind?: "delivered" | "read"): string[];
    /**
     * A page of the room's history: what follows `since`, or from the oldest kept; in reverse what comes before it,
     * or from the newest.
     * @param {{ limit?: number, since?: Position | null, reverse?: boolean, timeout?: number, signal?: AbortSignal }} [options]
     *     `limit` is 100 unless given; 0 asks for the top alone.
     * @returns {Promise<Page<E[keyof E]>>}
     * @throws {CallError} Code 112 when `since` cannot be continued from.
     */
    history(options?: {
        limit?: number;
        since?: Position | null;
        reverse?: boolean;
        timeout?: number;
        signal?: AbortSignal;
    }): Promise<Page<E[keyof E]>>;
    /**
     * Leave the room: what is queued is forgotten, unsent commands to it fail. Idempotent.
     * @returns {Promise<void>} When the server has confirmed it; at most 5 s, and at once without a connection.
     */
    leave(): Promise<void>;
}
