/** A short text that the browser remembers, or only this page where the browser keeps nothing. */

export interface Remembered {
  get(): string;
  set(value: string): void;
}

export function remembered(storage: "localStorage" | "sessionStorage", key: string): Remembered {
  let own = "";
  return {
    get() {
      try {
        return window[storage].getItem(key) ?? own;
      } catch {
        return own;
      }
    },
    set(value) {
      own = value;
      try {
        window[storage].setItem(key, value);
      } catch {
        // This page goes on with its own copy.
      }
    },
  };
}
