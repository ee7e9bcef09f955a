/** The two requests that the page makes of the server. */

import { remembered } from "./remember";
import { events } from "./sse";
import type { Model, Quality, Settings, Turn } from "./types";
import { SAMPLERS } from "./types";

/** The API key, for as long as the tab lives. */
export const apiKey = remembered("sessionStorage", "halfbyte.key");

/** What a person can read about a request that failed. */
export class RequestError extends Error {
  constructor(
    message: string,
    /** The HTTP status; 0 where the server could not be reached. */
    readonly status: number,
  ) {
    super(message);
  }
}

const UNREACHABLE = "The server cannot be reached. See whether it is running, then try again.";
export const CUT_OFF = "The connection was lost before the answer was complete.";

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const key = apiKey.get();
  const headers = new Headers(init.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new RequestError(UNREACHABLE, 0);
  }
  if (response.ok) return response;
  throw new RequestError(await explanation(response), response.status);
}

async function explanation(response: Response): Promise<string> {
  const said = serverMessage(await response.json().catch(() => undefined));
  const wait = Number(response.headers.get("Retry-After"));
  const sentence = said || `The server answered with status ${response.status}.`;
  return wait > 0 ? `${sentence} Try again in ${wait} s.` : sentence;
}

function serverMessage(body: unknown): string {
  const error = (body as { error?: unknown } | undefined)?.error;
  const message = typeof error === "string" ? error : (error as { message?: unknown } | undefined)?.message;
  return typeof message === "string" ? message : "";
}

export async function fetchModels(): Promise<Model[]> {
  const response = await request("v1/models");
  const body = (await response.json().catch(() => undefined)) as { data?: unknown } | undefined;
  if (!Array.isArray(body?.data)) throw new RequestError("The server's list of models cannot be read.", response.status);
  return body.data.flatMap((entry: { id?: unknown; halfbyte?: unknown }) =>
    typeof entry?.id === "string" ? [{ id: entry.id, quality: quality(entry.halfbyte) }] : [],
  );
}

function quality(entry: unknown): Quality {
  const given = (entry ?? {}) as Record<string, unknown>;
  const found: Quality = {};
  for (const name of ["bits_per_weight", "kl_divergence", "perplexity_ratio", "context"] as const) {
    const value = given[name];
    if (typeof value === "number" && Number.isFinite(value)) found[name] = value;
  }
  if (typeof given.device === "string") found.device = given.device;
  return found;
}

export interface Delta {
  content?: string | null;
  reasoning_content?: string | null;
  tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number } | null;
}

export interface Chunk {
  choices?: { delta?: Delta; finish_reason?: string | null }[];
  usage?: Usage | null;
}

/** The chunks of an answer, to the last.
 *
 * Throws a `RequestError` where the server refuses, fails or goes away before the end, an `AbortError` where `signal` asks
 * for the end. */
export async function* chat(body: object, signal: AbortSignal): AsyncGenerator<Chunk> {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.body) throw new RequestError(CUT_OFF, 0);
  const answer = events(response.body);
  for (;;) {
    let data: string;
    try {
      const next = await answer.next();
      if (next.done) throw new RequestError(CUT_OFF, 0);
      data = next.value;
    } catch (error) {
      if (signal.aborted || error instanceof RequestError) throw error;
      throw new RequestError(CUT_OFF, 0);
    }
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    const failure = serverMessage(chunk);
    if (failure) throw new RequestError(failure, response.status);
    yield chunk;
  }
}

function parsed(data: string): Chunk {
  try {
    return JSON.parse(data) as Chunk;
  } catch {
    throw new RequestError("The server sent an event that is not JSON.", 0);
  }
}

/** The body of a request for the next message after `path`. */
export function requestBody(model: string, settings: Settings, path: Turn[]): object {
  const system = settings.system.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...path.map(message)];
  const chosen = SAMPLERS.flatMap((name) => (settings[name] === undefined ? [] : [[name, settings[name]]]));
  return {
    model,
    messages,
    ...Object.fromEntries(chosen),
    ...(settings.tools.trim() ? { tools: JSON.parse(settings.tools) as unknown } : {}),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
}

function message(turn: Turn): object {
  if (turn.role === "tool") return { role: "tool", tool_call_id: turn.call, content: turn.text };
  if (turn.role === "user") return { role: "user", content: [...(turn.files ?? []).map(quoted), turn.text].join("\n\n") };
  if (!turn.calls?.length) return { role: "assistant", content: turn.text };
  const calls = turn.calls.map((call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  return { role: "assistant", content: turn.text || null, tool_calls: calls };
}

/** A file as part of a message, in a fence longer than any within. */
function quoted(file: { name: string; text: string }): string {
  const longest = Math.max(2, ...Array.from(file.text.matchAll(/`+/g), (run) => run[0].length));
  const fence = "`".repeat(longest + 1);
  return `${file.name}:\n${fence}\n${file.text}\n${fence}`;
}
