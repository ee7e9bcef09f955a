/** The messages of a conversation. */

import { Component } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Announcer } from "./announcer";
import { CUT_OFF } from "./api";
import { Icon, type IconName } from "./icons";
import { elements, GrowingText } from "./markdown";
import type { Session } from "./session";
import { count } from "./session";
import { siblings } from "./tree";
import { brief, copy, seconds, took } from "./text";
import type { Model, Turn } from "./types";

interface Message {
  session: Session;
  turn: Turn;
  /** The versions of this message; their order is their age. */
  versions: Turn[];
  /** The name of the call that a tool's result belongs to. */
  called: string;
  last: boolean;
  underWay: boolean;
  running: boolean;
  model: Model | undefined;
  announcer: Announcer;
}

export function Messages({ session, announcer }: { session: Session; announcer: Announcer }) {
  const path = session.path;
  return (
    <>
      {path.map((turn, i) => (
        <MessageView
          key={turn.id}
          session={session}
          turn={turn}
          versions={siblings(session.thread.turns, turn)}
          called={turn.call ? nameOfCall(path.slice(0, i), turn.call) : ""}
          last={i === path.length - 1}
          underWay={session.isUnderWay(turn)}
          running={session.running}
          model={session.models.find((model) => model.id === turn.model)}
          announcer={announcer}
        />
      ))}
    </>
  );
}

function nameOfCall(path: Turn[], id: string): string {
  const calls = path.flatMap((turn) => turn.calls ?? []);
  return calls.findLast((call) => call.id === id)?.name ?? "tool";
}

/** One message; drawn again only if something of it changed. */
class MessageView extends Component<Message> {
  override shouldComponentUpdate(next: Message): boolean {
    const now = this.props;
    return (
      now.turn !== next.turn || now.last !== next.last || now.underWay !== next.underWay || now.running !== next.running ||
      now.model !== next.model || now.called !== next.called || now.versions.length !== next.versions.length
    );
  }

  override render(props: Message) {
    if (props.turn.role === "user") return <Question {...props} />;
    if (props.turn.role === "tool") return <Result {...props} />;
    return <Answer {...props} />;
  }
}

function Question({ session, turn, versions, running }: Message) {
  const [draft, setDraft] = useState<string>();
  const article = useRef<HTMLElement>(null);
  const close = (): void => {
    setDraft(undefined);
    requestAnimationFrame(() => article.current?.querySelector<HTMLElement>(".edit")?.focus());
  };
  const send = (): void => {
    if (draft?.trim()) session.edit(turn, draft.trim());
    setDraft(undefined);
    document.getElementById("message")?.focus();
  };
  return (
    <article class="question" aria-label="You" ref={article}>
      <h2 class="sr-only">You</h2>
      {turn.files && (
        <ul class="files" role="list" aria-label="Attached files">
          {turn.files.map((file, i) => (
            <li key={i} class="fold">
              <details>
                <summary>
                  <Icon name="file" /> {file.name}
                </summary>
                <pre tabIndex={0}>{file.text}</pre>
              </details>
            </li>
          ))}
        </ul>
      )}
      {draft === undefined ? (
        turn.text && <div class="bubble">{turn.text}</div>
      ) : (
        <Editor text={draft} onInput={setDraft} onSend={send} onClose={close} />
      )}
      {draft === undefined && (
        <div class="row">
          <Versions session={session} turn={turn} versions={versions} disabled={running} />
          <Tool icon="copy" name="Copy" onClick={() => copied(session, turn.text)} />
          <Tool icon="edit" name="Edit" disabled={running} onClick={() => setDraft(turn.text)} />
        </div>
      )}
    </article>
  );
}

interface Editor {
  text: string;
  onInput: (text: string) => void;
  onSend: () => void;
  onClose: () => void;
}

function Editor({ text, onInput, onSend, onClose }: Editor) {
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    area.current?.focus();
    area.current?.setSelectionRange(text.length, text.length);
  }, []);
  return (
    <div class="box editing">
      <textarea
        ref={area}
        aria-label="Edit the message"
        value={text}
        onInput={(event) => onInput(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") {
            event.preventDefault();
            onClose();
          }
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          onSend();
        }}
      />
      <div class="actions">
        <button type="button" class="plain" onClick={onClose}>
          Cancel
        </button>
        <button type="button" class="primary" disabled={!text.trim()} onClick={onSend}>
          Send
        </button>
      </div>
    </div>
  );
}

function Result({ turn, called }: Message) {
  return (
    <article class="result fold" aria-label={`Result of ${called}`}>
      <details>
        <summary>Result of {called}</summary>
        <pre tabIndex={0}>{turn.text}</pre>
      </details>
    </article>
  );
}

function Answer({ session, turn, versions, last, underWay, running, model, announcer }: Message) {
  const thinking = underWay && !turn.text && !turn.calls;
  const known = [turn.model ?? "", ...(model ? brief(model.quality) : []), ...(turn.stats ? took(turn.stats) : [])];
  const error = underWay ? "" : (turn.error ?? (turn.end ? "" : CUT_OFF));
  return (
    <article class="answer" aria-label="Answer" aria-busy={underWay}>
      <h2 class="sr-only">Answer</h2>
      {turn.reasoning && <Reasoning text={turn.reasoning} thinking={thinking} ms={turn.stats?.thoughtMs} />}
      {thinking && !turn.reasoning && (
        <p class="waiting">
          <span class="sr-only">Waiting for the first token</span>
        </p>
      )}
      <Prose text={turn.text} underWay={underWay} announcer={announcer} />
      {turn.calls?.map((call, i) => (
        <div class="fold call" key={i}>
          <details>
            <summary>
              <span>
                Call of <code>{call.name}</code>
              </span>
            </summary>
            <Prose text={fenced(call.arguments)} underWay={false} announcer={announcer} />
          </details>
        </div>
      ))}
      {turn.end === "tool_calls" && last && !running && <Results session={session} turn={turn} />}
      {error && (
        <div class="error">
          <p>{error}</p>
          <button type="button" class="plain" disabled={running} onClick={() => session.again(turn)}>
            Try again
          </button>
        </div>
      )}
      {turn.end === "length" && <p class="faint">The answer ends at the maximum number of tokens.</p>}
      {turn.end === "stopped" && <p class="faint">Stopped.</p>}
      <div class="row">
        <Versions session={session} turn={turn} versions={versions} disabled={running} />
        {!underWay && <Tool icon="copy" name="Copy" onClick={() => copied(session, turn.text)} />}
        {!underWay && <Tool icon="again" name="Answer again" disabled={running} onClick={() => session.again(turn)} />}
        <p class="stats">
          {known.map((text, i) => (
            <span key={i}>{text}</span>
          ))}
        </p>
      </div>
    </article>
  );
}

function Reasoning({ text, thinking, ms }: { text: string; thinking: boolean; ms: number | undefined }) {
  const [open, setOpen] = useState(false);
  return (
    <div class={`fold reasoning${thinking ? " thinking" : ""}`}>
      <details onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>{thinking ? "Thinking" : ms === undefined ? "Reasoning" : `Thought for ${seconds(ms)}`}</summary>
        {open && <Prose text={text} underWay={thinking} />}
      </details>
    </div>
  );
}

/** Drawing a long block again may take a while; most of the time stays for the page. */
const SHARE_OF_TIME = 1 / 4;

function Prose({ text, underWay, announcer }: { text: string; underWay: boolean; announcer?: Announcer }) {
  const parent = useRef<HTMLDivElement>(null);
  const growing = useRef<GrowingText | null>(null);
  const latest = useRef({ text, underWay, timer: 0, ready: 0 });
  Object.assign(latest.current, { text, underWay });

  useLayoutEffect(() => {
    const state = latest.current;
    if (parent.current && !growing.current && !underWay) {
      parent.current.replaceChildren(elements(text));
      return;
    }
    const draw = (): void => {
      window.clearTimeout(state.timer);
      state.timer = 0;
      if (!parent.current) return;
      growing.current ??= new GrowingText(parent.current, (block) => announcer?.block(block));
      const start = performance.now();
      growing.current.show(state.text, !state.underWay);
      state.ready = performance.now() + (performance.now() - start) / SHARE_OF_TIME;
    };
    const wait = state.ready - performance.now();
    if (!underWay || wait <= 0) draw();
    else state.timer ||= window.setTimeout(draw, wait);
  }, [text, underWay]);
  useEffect(() => () => window.clearTimeout(latest.current.timer), []);
  return <div class="prose" ref={parent} />;
}

function Results({ session, turn }: { session: Session; turn: Turn }) {
  const calls = turn.calls ?? [];
  const [texts, setTexts] = useState(calls.map(() => ""));
  return (
    <form
      class="results"
      aria-label="Results of the calls"
      onSubmit={(event) => {
        event.preventDefault();
        session.giveResults(turn, texts);
        document.getElementById("message")?.focus();
      }}
    >
      {calls.map((call, i) => (
        <label class="field" key={i}>
          <span>
            Result of <code>{call.name}</code>
          </span>
          <textarea
            rows={2}
            class="mono"
            value={texts[i]}
            onInput={(event) => setTexts(texts.with(i, event.currentTarget.value))}
          />
        </label>
      ))}
      <div class="actions">
        <button type="submit" class="plain">
          {calls.length === 1 ? "Send result" : "Send results"}
        </button>
      </div>
    </form>
  );
}

interface Versions {
  session: Session;
  turn: Turn;
  versions: Turn[];
  disabled: boolean;
}

function Versions({ session, turn, versions, disabled }: Versions) {
  if (versions.length < 2) return null;
  const at = versions.findIndex((other) => other.id === turn.id);
  const go = (to: number): void => {
    const other = versions[to];
    if (other) session.show(other);
  };
  return (
    <span class="versions" role="group" aria-label="Versions">
      <Tool icon="left" name="Earlier version" disabled={disabled || at === 0} onClick={() => go(at - 1)} />
      <span>
        {at + 1}/{versions.length}
      </span>
      <Tool icon="right" name="Later version" disabled={disabled || at === versions.length - 1} onClick={() => go(at + 1)} />
    </span>
  );
}

interface Tool {
  icon: IconName;
  name: string;
  disabled?: boolean;
  onClick: () => void;
}

function Tool({ icon, name, disabled = false, onClick }: Tool) {
  return (
    <button
      type="button"
      class={`quiet round ${icon}`}
      aria-label={name}
      title={name}
      aria-disabled={disabled}
      onClick={() => disabled || onClick()}
    >
      <Icon name={icon} />
    </button>
  );
}

function copied(session: Session, text: string): void {
  void copy(text).then((done) => session.say(done ? "Copied." : "The browser does not let this page copy."));
}

/** Arguments of a call, laid out where they are JSON, as code. */
function fenced(json: string): string {
  let text = json;
  try {
    text = JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    // Not complete, or not JSON: shown as it is.
  }
  return `\`\`\`\`json\n${text}\n\`\`\`\``;
}

/** What a screen reader says of an answer that has ended. */
export function farewell(turn: Turn): string {
  if (turn.end === "error") return turn.error ?? "";
  if (turn.end === "stopped") return "Stopped.";
  return turn.calls?.length ? `Answer complete, with ${count(turn.calls.length, "tool call")}.` : "Answer complete.";
}
