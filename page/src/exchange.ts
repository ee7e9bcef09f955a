/** Conversations as a JSON file, and back from one that may be anything. */

import type { Attachment, Conversation, Settings, Stats, Thread, ToolCall, Turn } from "./types";
import { ENDS, SAMPLERS } from "./types";

const FORMAT = "halfbyte conversations";
const VERSION = 1;
export const LARGEST_IMPORT = 256 << 20;

export function exported(threads: Thread[]): string {
  const conversations = threads.map(({ conversation, turns }) => ({ ...conversation, turns: [...turns.values()] }));
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/** The conversations of a file. Throws an `Error` with a sentence that says what is wrong with it. */
export function imported(text: string): Thread[] {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  const file = fields(parsed, "The file");
  if (file.format !== FORMAT) throw new Error("The file holds no conversations of Halfbyte.");
  if (file.version !== VERSION) throw new Error(`The file has version ${String(file.version)}; this page reads ${VERSION}.`);
  return list(file.conversations, "conversations").map(thread);
}

type Fields = Record<string, unknown>;

function fields(value: unknown, what: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`${what} is no object.`);
  return value as Fields;
}

function list(value: unknown, name: string): unknown[] {
  if (!Array.isArray(value)) throw new Error(`“${name}” is no list.`);
  return value;
}

function string(from: Fields, name: string): string {
  const value = from[name];
  if (typeof value !== "string") throw new Error(`“${name}” is no text.`);
  return value;
}

function number(from: Fields, name: string): number {
  const value = from[name];
  if (typeof value !== "number") throw new Error(`“${name}” is no number.`);
  return value;
}

/** The same object without the fields that are absent. */
function present<T extends object>(all: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as T;
}

function optional<T>(from: Fields, name: string, read: (from: Fields, name: string) => T): T | undefined {
  return from[name] === undefined ? undefined : read(from, name);
}

function thread(value: unknown): Thread {
  const from = fields(value, "A conversation");
  const conversation: Conversation = {
    id: string(from, "id"),
    title: string(from, "title"),
    created: number(from, "created"),
    updated: number(from, "updated"),
    model: string(from, "model"),
    settings: settings(fields(from.settings, "“settings”")),
    leaf: from.leaf === null ? null : string(from, "leaf"),
  };
  const turns = new Map<string, Turn>();
  for (const read of list(from.turns, "turns").map(turn)) {
    if (read.parent !== null && !turns.has(read.parent)) throw new Error("A message comes before the one that it answers.");
    turns.set(read.id, read);
  }
  if (conversation.leaf !== null && !turns.has(conversation.leaf)) throw new Error("A conversation ends with no message.");
  return { conversation, turns };
}

function settings(from: Fields): Settings {
  const read: Settings = { system: string(from, "system"), tools: string(from, "tools") };
  for (const name of SAMPLERS) if (from[name] !== undefined) read[name] = number(from, name);
  return read;
}

function turn(value: unknown): Turn {
  const from = fields(value, "A message");
  const role = from.role;
  if (role !== "user" && role !== "assistant" && role !== "tool") throw new Error("A message has no known role.");
  return present<Turn>({
    id: string(from, "id"),
    parent: from.parent === null ? null : string(from, "parent"),
    role,
    text: string(from, "text"),
    created: number(from, "created"),
    files: optional(from, "files", () => list(from.files, "files").map(file)),
    reasoning: optional(from, "reasoning", string),
    calls: optional(from, "calls", () => list(from.calls, "calls").map(call)),
    call: optional(from, "call", string),
    model: optional(from, "model", string),
    stats: optional(from, "stats", () => stats(fields(from.stats, "“stats”"))),
    end: ENDS.find((end) => end === from.end),
    error: optional(from, "error", string),
  });
}

function file(value: unknown): Attachment {
  const from = fields(value, "A file");
  return { name: string(from, "name"), text: string(from, "text") };
}

function call(value: unknown): ToolCall {
  const from = fields(value, "A tool call");
  return { id: string(from, "id"), name: string(from, "name"), arguments: string(from, "arguments") };
}

function stats(from: Fields): Stats {
  return present<Stats>({
    tokens: number(from, "tokens"),
    counted: from.counted === true,
    firstMs: optional(from, "firstMs", number),
    thoughtMs: optional(from, "thoughtMs", number),
    rate: optional(from, "rate", number),
    prompt: optional(from, "prompt", number),
    cached: optional(from, "cached", number),
  });
}
