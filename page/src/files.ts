/** Text files that go with a message. */

import type { Attachment } from "./types";

const LARGEST = 1 << 20;

/** A file as text. Throws an `Error` with a sentence where it is too large or no text. */
export async function readText(file: File): Promise<Attachment> {
  if (file.size > LARGEST) throw new Error(`“${file.name}” is larger than 1 MiB.`);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return { name: file.name, text };
  } catch {
    // Said below.
  }
  throw new Error(`“${file.name}” is not a text file in UTF-8.`);
}
