/** The messages of a conversation are a tree; what is shown is the way from its root to one leaf. */

import type { Thread, Turn } from "./types";

/** From the first message to `end`. */
export function pathTo(turns: Map<string, Turn>, end: string | null): Turn[] {
  const path: Turn[] = [];
  for (let turn = end === null ? undefined : turns.get(end); turn; ) {
    path.push(turn);
    turn = turn.parent === null ? undefined : turns.get(turn.parent);
  }
  return path.reverse();
}

export function shown(thread: Thread): Turn[] {
  return pathTo(thread.turns, thread.conversation.leaf);
}

/** The versions of a message, itself included, oldest first. */
export function siblings(turns: Map<string, Turn>, turn: Turn): Turn[] {
  return [...turns.values()].filter((other) => other.parent === turn.parent);
}

/** The end of the newest branch that goes through a message. */
export function newestLeaf(turns: Map<string, Turn>, id: string): string {
  const children = new Map<string, string>();
  for (const turn of turns.values()) if (turn.parent !== null) children.set(turn.parent, turn.id);
  let leaf = id;
  for (let child = children.get(leaf); child; child = children.get(leaf)) leaf = child;
  return leaf;
}
