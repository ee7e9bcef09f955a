/** What the page knows and does: conversations, models, and the answers under way. */

import type { Chunk, Delta } from "./api";
import { apiKey, chat, fetchModels, requestBody, RequestError } from "./api";
import { exported, imported, LARGEST_IMPORT } from "./exchange";
import type { Store } from "./store";
import { newestLeaf, pathTo, shown } from "./tree";
import type { Attachment, Conversation, Model, Settings, SettingsChange, Thread, ToolCall, Turn } from "./types";
import { newId, newThread } from "./types";

const SAVE_EVERY_MS = 1000;
const TITLE_LENGTH = 60;

interface Run {
  thread: Thread;
  turn: Turn;
  abort: AbortController;
}

export class Session {
  conversations: Conversation[] = [];
  thread: Thread;
  models: Model[] = [];
  /** Why there is no list of models. */
  modelsError = "";
  notice = "";
  keyWanted = false;
  private readonly runs = new Map<string, Run>();
  private readonly keyWaits: ((given: boolean) => void)[] = [];
  private listener: () => void = () => undefined;
  private drawing = 0;

  constructor(private readonly store: Store) {
    this.thread = newThread("");
    if (!store.lasting) this.notice = "This browser keeps no data: conversations are lost when the page closes.";
  }

  listen(listener: () => void): () => void {
    this.listener = listener;
    return () => (this.listener = () => undefined);
  }

  /** Have the page drawn again with the next frame. */
  private changed(): void {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.listener();
    });
  }

  say(notice: string): void {
    this.notice = notice;
    this.changed();
  }

  // Models

  get model(): Model | undefined {
    return this.modelOf(this.thread.conversation);
  }

  private modelOf(conversation: Conversation): Model | undefined {
    return this.models.find((model) => model.id === conversation.model) ?? this.models[0];
  }

  async loadModels(): Promise<void> {
    try {
      this.models = await this.withKey(fetchModels);
      this.modelsError = this.models.length ? "" : "The server has no model.";
    } catch (error) {
      this.modelsError = sentence(error);
    }
    this.changed();
  }

  chooseModel(id: string): void {
    this.thread.conversation.model = id;
    this.keep(this.thread);
  }

  // The API key

  /** Do something; where the server asks for a key, ask the person for one and do it again. */
  private async withKey<T>(action: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await action();
      } catch (error) {
        if (!(error instanceof RequestError) || error.status !== 401 || !(await this.askForKey())) throw error;
      }
    }
  }

  private askForKey(): Promise<boolean> {
    this.keyWanted = true;
    this.changed();
    return new Promise((resolve) => this.keyWaits.push(resolve));
  }

  giveKey(key: string | undefined): void {
    if (key !== undefined) apiKey.set(key);
    this.keyWanted = false;
    for (const resolve of this.keyWaits.splice(0)) resolve(key !== undefined);
    this.changed();
  }

  // Conversations

  async start(): Promise<void> {
    this.conversations = await this.store.list();
    await this.openFromAddress();
    this.changed();
    await this.loadModels();
  }

  async openFromAddress(): Promise<void> {
    const id = location.hash.slice(1);
    if (id ? id !== this.thread.conversation.id : this.thread.turns.size) await this.open(id);
  }

  async open(id: string): Promise<void> {
    const thread = this.runs.get(id)?.thread ?? (await this.store.load(id));
    if (!thread) return this.begin();
    this.thread = thread;
    this.address(id);
    this.changed();
  }

  /** A new conversation; it is kept from its first message on. */
  begin(): void {
    this.thread = newThread(this.model?.id ?? "");
    this.address("");
    this.changed();
  }

  private address(id: string): void {
    if (location.hash.slice(1) !== id) history.pushState(null, "", id ? `#${id}` : location.pathname + location.search);
  }

  rename(id: string, title: string): void {
    const live = this.thread.conversation.id === id ? this.thread : this.runs.get(id)?.thread;
    const conversation = live?.conversation ?? this.conversations.find((one) => one.id === id);
    if (!conversation || !title.trim()) return;
    conversation.title = title.trim();
    void this.save(conversation, []);
  }

  /** Delete a conversation for good; it leaves the list once it is gone. */
  async remove(id: string): Promise<void> {
    this.runs.get(id)?.abort.abort();
    this.runs.delete(id);
    try {
      await this.store.remove(id);
    } catch (error) {
      return this.say(`The browser could not delete this conversation: ${sentence(error)}`);
    }
    this.conversations = this.conversations.filter((one) => one.id !== id);
    if (this.thread.conversation.id === id) this.begin();
    this.changed();
  }

  /** Change some settings of the conversation; `undefined` leaves one to the server. */
  set(change: SettingsChange): void {
    const { conversation } = this.thread;
    const known = Object.entries({ ...conversation.settings, ...change }).filter(([, value]) => value !== undefined);
    conversation.settings = Object.fromEntries(known) as unknown as Settings;
    this.keep(this.thread);
  }

  /** Save a conversation that has messages already. */
  private keep(thread: Thread): void {
    if (thread.turns.size) void this.save(thread.conversation, []);
    this.changed();
  }

  private async save(conversation: Conversation, turns: Turn[]): Promise<void> {
    const others = this.conversations.filter((one) => one.id !== conversation.id);
    this.conversations = [conversation, ...others].sort((a, b) => b.updated - a.updated);
    this.changed();
    try {
      await this.store.save(conversation, turns);
    } catch (error) {
      this.say(`The browser could not keep this conversation: ${sentence(error)}`);
    }
  }

  async export(ids: string[]): Promise<string> {
    const threads = await Promise.all(ids.map((id) => this.store.load(id)));
    return exported(threads.filter((thread) => thread !== undefined));
  }

  /** Take conversations from a file; of one that is here already, the one changed last stays. */
  async import(file: File): Promise<void> {
    try {
      if (file.size > LARGEST_IMPORT) throw new Error("The file is larger than 256 MiB.");
      const threads = imported(await file.text());
      const here = new Map(this.conversations.map((one) => [one.id, one.updated]));
      const news = threads.filter(({ conversation }) => conversation.updated > (here.get(conversation.id) ?? -Infinity));
      for (const { conversation, turns } of news) await this.save(conversation, [...turns.values()]);
      if (news.some(({ conversation }) => conversation.id === this.thread.conversation.id)) {
        await this.open(this.thread.conversation.id);
      }
      const rest = threads.length - news.length;
      this.say(`${count(news.length, "conversation")} imported${rest ? `, ${rest} already here` : ""}.`);
    } catch (error) {
      this.say(`Nothing was imported. ${sentence(error)}`);
    }
  }

  // Messages and answers

  get running(): boolean {
    return this.runs.has(this.thread.conversation.id);
  }

  isUnderWay(turn: Turn): boolean {
    return this.runs.get(this.thread.conversation.id)?.turn.id === turn.id;
  }

  send(text: string, files: Attachment[]): void {
    this.ask(this.thread.conversation.leaf, text, files);
  }

  /** Ask something else in place of a message; what followed it stays beside it. */
  edit(turn: Turn, text: string): void {
    this.ask(turn.parent, text, turn.files ?? []);
  }

  private ask(parent: string | null, text: string, files: Attachment[]): void {
    if (this.running) return;
    const { conversation, turns } = this.thread;
    if (!turns.size) conversation.title = titleOf(text || files[0]?.name || "");
    const turn = this.add(parent, { role: "user", text, ...(files.length ? { files } : {}) });
    this.address(conversation.id);
    void this.answer(this.thread, turn);
  }

  /** Give results of the calls that an answer ended with, in their order. */
  giveResults(turn: Turn, results: string[]): void {
    if (this.running) return;
    let last = turn;
    for (const [i, call] of (turn.calls ?? []).entries()) {
      last = this.add(last.id, { role: "tool", call: call.id, text: results[i] ?? "" });
      void this.save(this.thread.conversation, [last]);
    }
    void this.answer(this.thread, last);
  }

  /** Answer the same once more; the answers so far stay beside the new one. */
  again(turn: Turn): void {
    const before = turn.parent === null ? undefined : this.thread.turns.get(turn.parent);
    if (before && !this.running) void this.answer(this.thread, before);
  }

  /** Show another version of a message. */
  show(turn: Turn): void {
    this.thread.conversation.leaf = newestLeaf(this.thread.turns, turn.id);
    this.keep(this.thread);
  }

  stop(): void {
    this.runs.get(this.thread.conversation.id)?.abort.abort();
  }

  private add(parent: string | null, fields: Omit<Turn, "id" | "parent" | "created">): Turn {
    const { conversation, turns } = this.thread;
    const before = parent === null ? undefined : turns.get(parent);
    const turn = { id: newId(), parent, created: Math.max(Date.now(), (before?.created ?? 0) + 1), ...fields };
    turns.set(turn.id, turn);
    conversation.leaf = turn.id;
    conversation.updated = Date.now();
    return turn;
  }

  private async answer(thread: Thread, question: Turn): Promise<void> {
    const { conversation, turns } = thread;
    const turn = this.add(question.id, { role: "assistant", text: "" });
    const run: Run = { thread, turn, abort: new AbortController() };
    this.runs.set(conversation.id, run);
    const saved = this.save(conversation, [question, turn]);

    let savedAt = performance.now();
    const progress = (): void => {
      turns.set(turn.id, { ...turn });
      if (performance.now() - savedAt > SAVE_EVERY_MS) {
        savedAt = performance.now();
        void this.save(conversation, [turn]);
      }
      this.changed();
    };
    try {
      if (!this.models.length) await this.loadModels();
      const model = this.modelOf(conversation)?.id;
      if (model === undefined) throw new RequestError(this.modelsError, 0);
      conversation.model = turn.model = model;
      const body = requestBody(model, conversation.settings, pathTo(turns, question.id));
      await this.withKey(() => read(chat(body, run.abort.signal), turn, progress));
    } catch (error) {
      turn.end = run.abort.signal.aborted ? "stopped" : "error";
      if (turn.end === "error") turn.error = sentence(error);
    }
    if (this.runs.get(conversation.id) !== run) return;
    this.runs.delete(conversation.id);
    turns.set(turn.id, turn);
    conversation.updated = Date.now();
    await saved;
    await this.save(conversation, [turn]);
  }

  get path(): Turn[] {
    return shown(this.thread);
  }
}

/** Gather the chunks of an answer in a turn. */
async function read(chunks: AsyncIterable<Chunk>, turn: Turn, progress: () => void): Promise<void> {
  const start = performance.now();
  let first = 0;
  let last = 0;
  let firstTokens = 1;
  let pieces = 0;
  for await (const { choices, usage } of chunks) {
    const { delta, finish_reason: reason } = choices?.[0] ?? {};
    if (delta && take(delta, turn)) {
      last = performance.now();
      if (!first) {
        first = last;
        firstTokens = usage?.completion_tokens ?? 1;
      }
      pieces++;
      turn.stats = { ...turn.stats, tokens: pieces, counted: false, firstMs: first - start };
      if (turn.text && turn.reasoning) turn.stats.thoughtMs ??= last - first;
    }
    if (reason) turn.end = reason === "length" || reason === "tool_calls" ? reason : "stop";
    if (usage) {
      turn.stats = { ...turn.stats, tokens: usage.completion_tokens, counted: true, prompt: usage.prompt_tokens };
      const cached = usage.prompt_tokens_details?.cached_tokens;
      if (cached) turn.stats.cached = cached;
    }
    if (turn.stats && turn.stats.tokens > firstTokens && last > first) {
      turn.stats.rate = (turn.stats.tokens - firstTokens) / ((last - first) / 1000);
    }
    progress();
  }
  turn.end ??= "stop";
}

/** Add a piece to a turn; whether there was anything in it. */
function take(delta: Delta, turn: Turn): boolean {
  if (delta.content) turn.text += delta.content;
  if (delta.reasoning_content) turn.reasoning = (turn.reasoning ?? "") + delta.reasoning_content;
  for (const piece of delta.tool_calls ?? []) {
    const calls = (turn.calls ??= []);
    const call: ToolCall = (calls[piece.index] ??= { id: "", name: "", arguments: "" });
    call.id ||= piece.id ?? "";
    call.name += piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls?.length);
}

function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line || "New conversation";
}

export function sentence(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function count(number: number, thing: string): string {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}
