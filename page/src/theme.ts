/** Light, dark, or as the system has it. */

import { remembered } from "./remember";

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const kept = remembered("localStorage", "halfbyte.theme");

export function theme(): Theme {
  return THEMES.find((name) => name === kept.get()) ?? "system";
}

export function setTheme(name: Theme): void {
  kept.set(name);
  document.documentElement.dataset.theme = name;
}
