/** The chat page of `halfbyte serve`. */

import { render } from "preact";
import { useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { Announcer } from "./announcer";
import { Composer } from "./composer";
import { KeyDialog, QualityButton, SettingsDialog } from "./dialogs";
import { Icon } from "./icons";
import { farewell, Messages } from "./messages";
import { Session } from "./session";
import { Sidebar } from "./sidebar";
import { openStore } from "./store";
import "./style.css";
import { brief, copy, integer } from "./text";
import { setTheme, theme } from "./theme";

const NOTICE_MS = 6000;
/** Closer to the end than this, the page follows an answer as it grows. */
const NEAR_PX = 48;
const narrow = window.matchMedia("(width < 52rem)");
const touch = window.matchMedia("(pointer: coarse)");

setTheme(theme());

function App({ session }: { session: Session }) {
  const [, redraw] = useReducer((drawn: number) => drawn + 1, 0);
  const [listOpen, setListOpen] = useState(false);
  const [settingsOpen, setSettingsOpen] = useState(false);
  const [away, setAway] = useState(false);
  const area = useRef<HTMLTextAreaElement>(null);
  const menu = useRef<HTMLButtonElement>(null);
  const scroller = useRef<HTMLDivElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const spoken = useRef<HTMLDivElement>(null);
  const follow = useRef(true);
  const announcer = useMemo(() => new Announcer((text) => spoken.current && (spoken.current.textContent = text)), []);

  const { thread, model, notice } = session;
  const path = session.path;
  const { id, title, settings } = thread.conversation;
  const running = session.running;

  useEffect(() => session.listen(() => redraw(undefined)), [session]);
  useEffect(() => {
    void session.start();
    const opened = (): void => void session.openFromAddress();
    window.addEventListener("popstate", opened);
    return () => window.removeEventListener("popstate", opened);
  }, [session]);

  useEffect(() => {
    document.title = path.length ? `${title} – Halfbyte` : "Halfbyte";
  }, [title, path.length]);

  useEffect(() => {
    if (!notice) return undefined;
    const timer = window.setTimeout(() => session.say(""), NOTICE_MS);
    return () => window.clearTimeout(timer);
  }, [notice, session]);

  // Esc stops, wherever the focus is, unless something nearer has use for it.
  useEffect(() => {
    const pressed = (event: KeyboardEvent): void => {
      if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
      if (listOpen) closeList();
      else session.stop();
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  });

  // The end of the conversation stays in view while the reader is there.
  const toEnd = (): void => scroller.current?.scrollTo({ top: scroller.current.scrollHeight });
  useEffect(() => {
    const observer = new ResizeObserver(() => follow.current && toEnd());
    for (const element of [inner.current, scroller.current]) if (element) observer.observe(element);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    follow.current = true;
    toEnd();
  }, [id, running]);

  // The end of an answer is said once; an answer of another conversation is not read out here.
  const last = path.at(-1);
  const before = useRef({ id, running });
  useEffect(() => {
    const ended = before.current.running && !running && before.current.id === id;
    if (before.current.id !== id) announcer.clear();
    before.current = { id, running };
    if (ended && last) announcer.flush(farewell(last));
    else if (running && spoken.current) spoken.current.textContent = "";
  }, [id, running]);

  // The focus goes into the list with its opening, and back when the page can be reached again.
  const wasOpen = useRef(false);
  useLayoutEffect(() => {
    if (listOpen) document.querySelector<HTMLElement>("nav.side button")?.focus();
    else if (wasOpen.current) menu.current?.focus();
    wasOpen.current = listOpen;
  }, [listOpen]);
  const closeList = (): void => setListOpen(false);
  const chosen = (): void => {
    setListOpen(false);
    if (!listOpen && !touch.matches) area.current?.focus();
  };
  const codeCopied = (event: MouseEvent): void => {
    const button = (event.target as Element).closest<HTMLElement>("button.copy");
    const code = button?.closest(".code")?.querySelector("pre");
    if (!button || !code) return;
    void copy(code.textContent ?? "").then((done) => {
      session.say(done ? "Copied." : "The browser does not let this page copy.");
      if (!done) return;
      button.textContent = "Copied";
      window.setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  };

  const context = model?.quality.context;
  const tokens = path.findLast((turn) => turn.stats?.prompt !== undefined)?.stats;
  const used =
    context && tokens?.prompt !== undefined
      ? `${integer(tokens.prompt + tokens.tokens)} of ${integer(context)} tokens used`
      : "";

  return (
    <>
      <a class="skip" href="#message" onClick={(event) => (event.preventDefault(), area.current?.focus())}>
        Skip to the message
      </a>
      {listOpen && <div class="veil" onClick={closeList} />}
      <nav class={`side${listOpen ? " open" : ""}`} aria-label="Conversations">
        <Sidebar session={session} onClose={closeList} onChosen={chosen} />
      </nav>
      <main inert={listOpen && narrow.matches}>
        <header class="top">
          <button
            ref={menu}
            type="button"
            class="quiet round narrow"
            aria-label="Conversations"
            aria-expanded={listOpen}
            onClick={() => setListOpen(true)}
          >
            <Icon name="menu" />
          </button>
          <h1 class="sr-only">{title}</h1>
          {session.models.length > 0 && (
            <select
              class="model"
              aria-label="Model"
              value={model?.id}
              disabled={running}
              onChange={(event) => session.chooseModel(event.currentTarget.value)}
            >
              {session.models.map((one) => (
                <option key={one.id} value={one.id}>
                  {one.id}
                </option>
              ))}
            </select>
          )}
          {model && <QualityButton model={model} key={model.id} />}
          <span class="space" />
          <button
            type="button"
            class="quiet round"
            aria-label="Conversation settings"
            title="Conversation settings"
            onClick={() => setSettingsOpen(true)}
          >
            <Icon name="settings" />
          </button>
        </header>
        <div
          class="scroller"
          ref={scroller}
          role="region"
          aria-label="Messages"
          tabIndex={0}
          onScroll={(event) => {
            const { scrollHeight, scrollTop, clientHeight } = event.currentTarget;
            follow.current = scrollHeight - scrollTop - clientHeight < NEAR_PX;
            setAway(!follow.current);
          }}
          onClick={codeCopied}
        >
          <div class="inner" ref={inner}>
            {session.modelsError && (
              <div class="error">
                <p>{session.modelsError}</p>
                <button type="button" class="plain" onClick={() => void session.loadModels()}>
                  Try again
                </button>
              </div>
            )}
            {path.length ? (
              <Messages session={session} announcer={announcer} />
            ) : (
              <div class="welcome">
                <img src="icon.svg" alt="" width="56" height="56" />
                <p class="greeting">What would you like to know?</p>
                {model && (
                  <p class="faint">
                    {[model.id, ...brief(model.quality), model.quality.device].filter(Boolean).join(" · ")}
                  </p>
                )}
              </div>
            )}
          </div>
        </div>
        <div class="bottom">
          {away && (
            <button type="button" class="plain round end" aria-label="To the end" title="To the end" onClick={toEnd}>
              <Icon name="down" />
            </button>
          )}
          <Composer
            area={area}
            running={running}
            used={used}
            onSend={(text, files) => session.send(text, files)}
            onStop={() => {
              session.stop();
              area.current?.focus();
            }}
            onError={(text) => session.say(text)}
          />
        </div>
      </main>
      <div class="sr-only" ref={spoken} role="log" aria-live="polite" />
      <div class="notice" role="status">
        {notice && <p>{notice}</p>}
      </div>
      {settingsOpen && (
        <SettingsDialog
          settings={settings}
          model={model}
          onChange={(change) => session.set(change)}
          onClose={() => setSettingsOpen(false)}
        />
      )}
      {session.keyWanted && (
        <KeyDialog
          onKey={(key) => {
            session.giveKey(key);
            area.current?.focus();
          }}
        />
      )}
    </>
  );
}

const session = new Session(await openStore());
render(<App session={session} />, document.body);
if (!touch.matches) document.getElementById("message")?.focus();
