/** The list of conversations. */

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Confirm } from "./dialogs";
import { Icon } from "./icons";
import type { Session } from "./session";
import { download } from "./text";
import { setTheme, theme, THEMES } from "./theme";
import type { Conversation } from "./types";

const THEME_NAMES = { system: "as the system", light: "light", dark: "dark" };

interface Sidebar {
  session: Session;
  onClose: () => void;
  /** A conversation was chosen or begun. */
  onChosen: () => void;
}

export function Sidebar({ session, onClose, onChosen }: Sidebar) {
  const [doomed, setDoomed] = useState<Conversation>();
  const [look, setLook] = useState(theme());
  const chooser = useRef<HTMLInputElement>(null);
  const next = THEMES[(THEMES.indexOf(look) + 1) % THEMES.length] ?? "system";

  const save = async (name: string, ids: string[]): Promise<void> => download(name, await session.export(ids));
  const date = new Date().toISOString().slice(0, 10);

  return (
    <>
      <div class="side-head">
        <span class="brand">
          <img src="icon.svg" alt="" width="26" height="26" />
          Halfbyte
        </span>
        <button type="button" class="quiet round narrow" aria-label="Close the list" onClick={onClose}>
          <Icon name="close" />
        </button>
      </div>
      <button
        type="button"
        class="plain wide new"
        onClick={() => {
          session.begin();
          onChosen();
        }}
      >
        <Icon name="plus" /> New conversation
      </button>
      <ul class="conversations" role="list" aria-label="Conversations">
        {session.conversations.map((conversation) => (
          <Entry
            key={conversation.id}
            conversation={conversation}
            current={conversation.id === session.thread.conversation.id}
            onOpen={() => void session.open(conversation.id).then(onChosen)}
            onRename={(title) => session.rename(conversation.id, title)}
            onExport={() => void save(`${fileName(conversation.title)}.json`, [conversation.id])}
            onDelete={() => setDoomed(conversation)}
          />
        ))}
      </ul>
      <div class="side-foot">
        <button
          type="button"
          class="quiet"
          disabled={!session.conversations.length}
          onClick={() => void save(`halfbyte-${date}.json`, session.conversations.map((one) => one.id))}
        >
          <Icon name="export" /> Export all
        </button>
        <button type="button" class="quiet" onClick={() => chooser.current?.click()}>
          <Icon name="import" /> Import
        </button>
        <button
          type="button"
          class="quiet round"
          title={`Colours: ${THEME_NAMES[look]}`}
          aria-label={`Colours: ${THEME_NAMES[look]}. Change to ${THEME_NAMES[next]}`}
          onClick={() => {
            setTheme(next);
            setLook(next);
          }}
        >
          <Icon name={look} />
        </button>
        <input
          ref={chooser}
          id="import"
          type="file"
          accept="application/json,.json"
          hidden
          onChange={(event) => {
            const input = event.currentTarget;
            const file = input.files?.[0];
            if (file) void session.import(file);
            input.value = "";
          }}
        />
      </div>
      {doomed && (
        <Confirm
          title="Delete the conversation?"
          text={`“${doomed.title}” cannot be brought back.`}
          action="Delete"
          onYes={() => {
            setDoomed(undefined);
            void session.remove(doomed.id);
          }}
          onClose={() => setDoomed(undefined)}
        />
      )}
    </>
  );
}

interface Entry {
  conversation: Conversation;
  current: boolean;
  onOpen: () => void;
  onRename: (title: string) => void;
  onExport: () => void;
  onDelete: () => void;
}

function Entry({ conversation, current, onOpen, onRename, onExport, onDelete }: Entry) {
  const [renaming, setRenaming] = useState(false);
  const button = useRef<HTMLButtonElement>(null);
  const { title } = conversation;

  if (renaming) {
    const finish = (text: string): void => {
      setRenaming(false);
      onRename(text);
      requestAnimationFrame(() => button.current?.focus());
    };
    return <TitleField title={title} onDone={finish} />;
  }
  return (
    <li class={current ? "current" : ""}>
      <button ref={button} type="button" class="title" aria-current={current ? "page" : undefined} onClick={onOpen}>
        {title}
      </button>
      <span class="tools">
        <button type="button" class="quiet round" aria-label={`Rename “${title}”`} title="Rename" onClick={() => setRenaming(true)}>
          <Icon name="edit" />
        </button>
        <button type="button" class="quiet round" aria-label={`Export “${title}”`} title="Export" onClick={onExport}>
          <Icon name="export" />
        </button>
        <button type="button" class="quiet round" aria-label={`Delete “${title}”`} title="Delete" onClick={onDelete}>
          <Icon name="remove" />
        </button>
      </span>
    </li>
  );
}

function TitleField({ title, onDone }: { title: string; onDone: (title: string) => void }) {
  const input = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => input.current?.select(), []);
  return (
    <li class="renaming">
      <input
        ref={input}
        aria-label="Title"
        defaultValue={title}
        maxLength={200}
        onBlur={(event) => onDone(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") {
            event.preventDefault();
            event.currentTarget.value = title;
          } else if (event.key !== "Enter" || event.isComposing) {
            return;
          }
          event.currentTarget.blur();
        }}
      />
    </li>
  );
}

function fileName(title: string): string {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation";
}
