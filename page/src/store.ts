/** Conversations in this browser: IndexedDB, or memory where the browser keeps nothing. */

import type { Conversation, Thread, Turn } from "./types";

type StoredTurn = Turn & { conversation: string };

export interface Store {
  /** Whether conversations outlive the page. */
  readonly lasting: boolean;
  list(): Promise<Conversation[]>;
  load(id: string): Promise<Thread | undefined>;
  /** Keep a conversation and the messages given; its other messages stay as they are. */
  save(conversation: Conversation, turns: Iterable<Turn>): Promise<void>;
  remove(id: string): Promise<void>;
}

export async function openStore(): Promise<Store> {
  try {
    return new DatabaseStore(await openDatabase());
  } catch {
    return new MemoryStore();
  }
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Have a transaction take effect now, so that a page that is left meanwhile loses as little as it can. */
function committed(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
    transaction.commit();
  });
}

function openDatabase(): Promise<IDBDatabase> {
  const request = indexedDB.open("halfbyte", 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("conversations", { keyPath: "id" });
    request.result.createObjectStore("turns", { keyPath: ["conversation", "id"] });
  };
  return done(request);
}

function byAge(turns: Turn[]): Map<string, Turn> {
  return new Map(turns.sort((a, b) => a.created - b.created).map((turn) => [turn.id, turn]));
}

function newestFirst(conversations: Conversation[]): Conversation[] {
  return conversations.sort((a, b) => b.updated - a.updated);
}

class DatabaseStore implements Store {
  readonly lasting = true;

  constructor(private readonly database: IDBDatabase) {
    database.onversionchange = () => database.close();
  }

  async list(): Promise<Conversation[]> {
    return newestFirst(await done(this.database.transaction("conversations").objectStore("conversations").getAll()));
  }

  async load(id: string): Promise<Thread | undefined> {
    const transaction = this.database.transaction(["conversations", "turns"]);
    const [conversation, stored] = await Promise.all([
      done<Conversation | undefined>(transaction.objectStore("conversations").get(id)),
      done<StoredTurn[]>(transaction.objectStore("turns").getAll(IDBKeyRange.bound([id], [id, []]))),
    ]);
    return conversation && { conversation, turns: byAge(stored.map(({ conversation: _, ...turn }) => turn)) };
  }

  async save(conversation: Conversation, turns: Iterable<Turn>): Promise<void> {
    const transaction = this.database.transaction(["conversations", "turns"], "readwrite");
    transaction.objectStore("conversations").put(conversation);
    for (const turn of turns) transaction.objectStore("turns").put({ ...turn, conversation: conversation.id });
    await committed(transaction);
  }

  async remove(id: string): Promise<void> {
    const transaction = this.database.transaction(["conversations", "turns"], "readwrite");
    transaction.objectStore("conversations").delete(id);
    transaction.objectStore("turns").delete(IDBKeyRange.bound([id], [id, []]));
    await committed(transaction);
  }
}

class MemoryStore implements Store {
  readonly lasting = false;
  private readonly threads = new Map<string, Thread>();

  async list(): Promise<Conversation[]> {
    return newestFirst([...this.threads.values()].map((thread) => thread.conversation));
  }

  async load(id: string): Promise<Thread | undefined> {
    return this.threads.get(id);
  }

  async save(conversation: Conversation, turns: Iterable<Turn>): Promise<void> {
    const known = this.threads.get(conversation.id)?.turns ?? new Map<string, Turn>();
    for (const turn of turns) known.set(turn.id, turn);
    this.threads.set(conversation.id, { conversation, turns: known });
  }

  async remove(id: string): Promise<void> {
    this.threads.delete(id);
  }
}
