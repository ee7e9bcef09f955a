/** What the page keeps and what the server says. */

export interface Quality {
  bits_per_weight?: number;
  kl_divergence?: number;
  perplexity_ratio?: number;
  device?: string;
  context?: number;
}

export interface Model {
  id: string;
  quality: Quality;
}

export const SAMPLERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "max_tokens",
  "seed",
] as const;
export type Sampler = (typeof SAMPLERS)[number];

/** How answers of one conversation are made; what is absent is left to the server. */
export interface Settings extends Partial<Record<Sampler, number>> {
  system: string;
  /** Definitions of tools as the API takes them: a JSON list, or nothing. */
  tools: string;
}

export type SettingsChange = { [K in keyof Settings]?: Settings[K] | undefined };

export interface Attachment {
  name: string;
  text: string;
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

/** Times in milliseconds, numbers of tokens as the server counted them; `counted` is false where the page did. */
export interface Stats {
  firstMs?: number;
  thoughtMs?: number;
  rate?: number;
  tokens: number;
  counted: boolean;
  prompt?: number;
  cached?: number;
}

/** How an answer ended; an answer without an end is under way or was cut off with the page. */
export type End = "stop" | "length" | "tool_calls" | "stopped" | "error";
export const ENDS: readonly End[] = ["stop", "length", "tool_calls", "stopped", "error"];

/** A message. Its siblings are the other messages with the same parent: edited questions, answers made again. */
export interface Turn {
  id: string;
  parent: string | null;
  role: "user" | "assistant" | "tool";
  text: string;
  created: number;
  files?: Attachment[];
  reasoning?: string;
  calls?: ToolCall[];
  /** Of a tool's result: the call it belongs to. */
  call?: string;
  model?: string;
  stats?: Stats;
  end?: End;
  error?: string;
}

export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  model: string;
  settings: Settings;
  /** The last message of the branch that is shown. */
  leaf: string | null;
}

/** A conversation with its messages by id, in the order in which they were made. */
export interface Thread {
  conversation: Conversation;
  turns: Map<string, Turn>;
}

/** An id, also where `crypto.randomUUID` is missing: pages from other machines without TLS. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newThread(model: string): Thread {
  const now = Date.now();
  const settings: Settings = { system: "", tools: "" };
  return {
    conversation: { id: newId(), title: "New conversation", created: now, updated: now, model, settings, leaf: null },
    turns: new Map(),
  };
}
