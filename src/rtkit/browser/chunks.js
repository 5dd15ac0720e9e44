/** Units too large to go whole (T8). @module */

/** @param {any} link @param {any} it @param {(unit: string) => void} received */
export function large(link, it, received) {}
