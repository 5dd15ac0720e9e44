/** What this tab remembers. Another tab may be somebody else; one that was duplicated is the same again. */
export const memory = {
  get(name, otherwise) {
    try {
      return JSON.parse(sessionStorage.getItem(`chat ${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      if (value == null || value === "" || value.length === 0) sessionStorage.removeItem(`chat ${name}`);
      else sessionStorage.setItem(`chat ${name}`, JSON.stringify(value));
    } catch {
      // full, or forbidden: then a reload forgets
    }
  },
};
