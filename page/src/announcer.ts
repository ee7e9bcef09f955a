/** Says to screen readers what is new: whole blocks of an answer, a few seconds of them at a time. */

const EVERY_MS = 3000;

export class Announcer {
  private waiting: string[] = [];
  private timer: number | undefined;

  constructor(private readonly say: (text: string) => void) {}

  block(block: DocumentFragment): void {
    const copy = block.cloneNode(true) as DocumentFragment;
    for (const code of copy.querySelectorAll(".code")) {
      const language = code.querySelector(".code-head span")?.textContent;
      const lines = code.querySelector("pre")?.textContent?.trimEnd().split("\n").length ?? 0;
      code.replaceWith(`${language ? `${language} code` : "Code"}, ${lines} ${lines === 1 ? "line" : "lines"}.`);
    }
    this.waiting.push(copy.textContent?.replace(/\s+/g, " ").trim() ?? "");
    this.timer ??= window.setTimeout(() => this.flush(), EVERY_MS);
  }

  /** Say what waits, and `last` after it. */
  flush(last = ""): void {
    window.clearTimeout(this.timer);
    this.timer = undefined;
    const text = [...this.waiting, last].filter(Boolean).join(" ");
    this.waiting = [];
    if (text) this.say(text);
  }

  clear(): void {
    this.waiting = [];
    this.flush();
  }
}
