/** Markdown of a model, which nobody vouches for, as elements that do no harm. */

import DOMPurify, { type Config } from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import dockerfile from "highlight.js/lib/languages/dockerfile";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import kotlin from "highlight.js/lib/languages/kotlin";
import lua from "highlight.js/lib/languages/lua";
import makefile from "highlight.js/lib/languages/makefile";
import markdown from "highlight.js/lib/languages/markdown";
import php from "highlight.js/lib/languages/php";
import python from "highlight.js/lib/languages/python";
import r from "highlight.js/lib/languages/r";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import shell from "highlight.js/lib/languages/shell";
import sql from "highlight.js/lib/languages/sql";
import swift from "highlight.js/lib/languages/swift";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import MarkdownIt from "markdown-it";

const LANGUAGES = {
  bash, c, cpp, csharp, css, diff, dockerfile, go, ini, java, javascript, json, kotlin, lua, makefile, markdown, php, python,
  r, ruby, rust, shell, sql, swift, typescript, xml, yaml,
};
for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);

/** Longer code is shown without colours, which take time: a part of a second for the first, which is made once; a frame or
 * two for the second, made again with each piece that comes. */
const COLOURED = 50_000;
const COLOURED_LIVE = 5_000;

const parser = new MarkdownIt({ html: false, linkify: true });
const fence = parser.renderer.rules.fence;
parser.renderer.rules.fence = (tokens, index, options, env, renderer) => {
  const highlight = (code: string, language: string): string =>
    code.length > Number(env?.coloured) || !hljs.getLanguage(language)
      ? ""
      : hljs.highlight(code, { language, ignoreIllegals: true }).value;
  return fence?.(tokens, index, { ...options, highlight }, env, renderer) ?? "";
};
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
parser.renderer.rules.image = (tokens, index) => {
  const image = tokens[index];
  const text = parser.utils.escapeHtml(image?.content || "image");
  return `<a href="${parser.utils.escapeHtml(String(image?.attrGet("src") ?? ""))}">${text}</a>`;
};
for (const cell of ["th_open", "td_open"]) {
  parser.renderer.rules[cell] = (tokens, index, options, _, renderer) => {
    const token = tokens[index];
    const side = /text-align:(\w+)/.exec(String(token?.attrGet("style")))?.[1];
    if (token && side) token.attrs = [["class", side]];
    return renderer.renderToken(tokens, index, options);
  };
}

const ALLOWED: Config & { RETURN_DOM_FRAGMENT: true } = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span",
    "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** Elements of a Markdown text; code has its language above it, and a button to copy it if `complete`. */
export function elements(text: string, complete = true): DocumentFragment {
  const html = parser.render(text, { coloured: complete ? COLOURED : COLOURED_LIVE });
  const fragment = DOMPurify.sanitize(html, ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) link.replaceWith(...link.childNodes);
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of fragment.querySelectorAll("table")) framed(table, "table");
  for (const code of fragment.querySelectorAll<HTMLElement>("pre > code")) codeBlock(code, complete);
  return fragment;
}

function framed(element: Element, kind: string): HTMLElement {
  const frame = document.createElement("div");
  frame.className = kind;
  element.replaceWith(frame);
  frame.append(element);
  return frame;
}

function codeBlock(code: HTMLElement, complete: boolean): void {
  const pre = code.parentElement as HTMLPreElement;
  const frame = framed(pre, "code");
  const head = document.createElement("div");
  head.className = "code-head";
  const language = /language-(\S+)/.exec(code.className)?.[1] ?? "";
  const label = document.createElement("span");
  label.textContent = language;
  head.append(label);
  if (complete) {
    pre.tabIndex = 0;
    const copy = document.createElement("button");
    copy.type = "button";
    copy.className = "quiet copy";
    copy.textContent = "Copy";
    copy.setAttribute("aria-label", language ? `Copy ${language} code` : "Copy code");
    head.append(copy);
  }
  frame.prepend(head);
}

/** Where the last block of a text begins that later text can still change.
 *
 * The first line of the last block may turn out to be something else once it is complete, such as bold text in place of a
 * rule. That can change the block before it, unless a blank line parts the two; a list goes on after blank lines. */
function settledLength(text: string): number {
  const lines = text.split("\n");
  const blocks = parser.parse(text, {}).filter((token) => token.level === 0 && token.map && token.nesting >= 0);
  const starts = blocks.map((block) => block.map?.[0] ?? 0);
  const line = starts.findLast((start, i) => {
    const parted = lines[start - 1]?.trim() === "" && !blocks[i - 1]?.type.endsWith("_list_open");
    return start < lines.length - 1 || parted;
  });
  return lines.slice(0, line ?? 0).reduce((length, one) => length + one.length + 1, 0);
}

/** A text that grows: blocks that are complete are made once, only the last is made again with each piece. */
export class GrowingText {
  private settled = 0;
  private last: ChildNode[] = [];
  private text = "";

  constructor(
    private readonly parent: HTMLElement,
    /** Told the elements of each block that is complete. */
    private readonly onSettled: (block: DocumentFragment) => void,
  ) {}

  show(text: string, complete: boolean): void {
    if (!text.startsWith(this.text.slice(0, this.settled))) {
      this.settled = 0;
      this.parent.replaceChildren();
    }
    this.text = text;
    for (const node of this.last) node.remove();
    const rest = text.slice(this.settled);
    const length = complete ? rest.length : settledLength(rest);
    if (length) this.settle(rest.slice(0, length));
    const live = elements(rest.slice(length), false);
    this.last = [...live.childNodes];
    this.parent.append(live);
    if (complete && /^ {0,3}\[[^\]]+\]:/m.test(text)) this.parent.replaceChildren(elements(text));
  }

  private settle(text: string): void {
    const block = elements(text);
    this.onSettled(block);
    this.parent.append(block);
    this.settled += text.length;
  }
}
