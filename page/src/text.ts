/** Numbers as text, and text that leaves the page. */

import type { Quality, Stats } from "./types";

export function seconds(ms: number): string {
  return ms < 9950 ? `${(ms / 1000).toFixed(ms < 995 ? 2 : 1)} s` : `${Math.round(ms / 1000)} s`;
}

const whole = new Intl.NumberFormat("en");
export const integer = (value: number): string => whole.format(value);

function figures(value: number, digits: number): string {
  return Number(value.toPrecision(digits)).toString();
}

/** Each fact of a model that is known: its name, its value, and what it means. */
export function facts(quality: Quality): { name: string; value: string; meaning: string }[] {
  const { bits_per_weight: bits, kl_divergence: kl, perplexity_ratio: ratio, device, context } = quality;
  const found: [string, string | undefined, string][] = [
    ["Bits per weight", bits === undefined ? undefined : figures(bits, 3), "Most models have 16 before quantization."],
    [
      "KL divergence",
      kl === undefined ? undefined : `${figures(kl, 2)} nats`,
      "How far the probabilities of the next token are from those before quantization, on average per token. 0 means the same.",
    ],
    ["Perplexity", ratio === undefined ? undefined : `× ${ratio.toFixed(3)}`, "Compared with the model before quantization. 1 means the same."],
    ["Device", device, ""],
    ["Context", context === undefined ? undefined : `${integer(context)} tokens`, "The longest conversation, answers included."],
  ];
  return found.flatMap(([name, value, meaning]) => (value === undefined ? [] : [{ name, value, meaning }]));
}

/** A model's measured quality in a few words; nothing where nothing was measured. */
export function brief({ bits_per_weight: bits, kl_divergence: kl }: Quality): string[] {
  return [bits === undefined ? "" : `${figures(bits, 3)} bits`, kl === undefined ? "" : `KL ${figures(kl, 2)}`].filter(Boolean);
}

/** What an answer took; numbers that the page estimated have a sign for it. */
export function took(stats: Stats): string[] {
  const about = stats.counted ? "" : "≈ ";
  return [
    stats.rate === undefined ? "" : `${about}${stats.rate < 99.95 ? stats.rate.toFixed(1) : integer(Math.round(stats.rate))} tokens/s`,
    stats.firstMs === undefined ? "" : `first token ${seconds(stats.firstMs)}`,
    `${about}${integer(stats.tokens)} ${stats.tokens === 1 ? "token" : "tokens"}`,
    stats.prompt === undefined ? "" : `prompt ${integer(stats.prompt)}${stats.cached ? `, ${integer(stats.cached)} cached` : ""}`,
  ].filter(Boolean);
}

/** Put a text on the clipboard, also on pages without TLS, where browsers have no clipboard of the newer kind. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "sr-only";
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return copied;
  }
}

/** Have the browser save a text as a file. */
export function download(name: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  window.setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
