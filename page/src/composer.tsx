/** Where a message is written. */

import type { RefObject } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { readText } from "./files";
import { Icon } from "./icons";
import { sentence } from "./session";
import type { Attachment } from "./types";

interface Composer {
  area: RefObject<HTMLTextAreaElement | null>;
  running: boolean;
  onSend: (text: string, files: Attachment[]) => void;
  onStop: () => void;
  onError: (sentence: string) => void;
  /** How much of the context is used; empty where that is not known. */
  used: string;
}

export function Composer({ area, running, onSend, onStop, onError, used }: Composer) {
  const [text, setText] = useState("");
  const [files, setFiles] = useState<Attachment[]>([]);
  const [over, setOver] = useState(false);
  const chooser = useRef<HTMLInputElement>(null);
  const empty = !text.trim() && !files.length;

  // Where the style sheet cannot do that, the field grows here.
  useLayoutEffect(() => {
    const field = area.current;
    if (!field || CSS.supports("field-sizing", "content")) return;
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
  }, [text]);

  const attach = async (list: FileList | null | undefined): Promise<void> => {
    for (const file of list ?? []) {
      try {
        const read = await readText(file);
        setFiles((known) => [...known, read]);
      } catch (error) {
        onError(sentence(error));
      }
    }
  };
  const send = (): void => {
    if (empty || running) return;
    onSend(text.trim(), files);
    setText("");
    setFiles([]);
    area.current?.focus();
  };

  return (
    <form
      class={`composer${over ? " over" : ""}`}
      aria-label="Message"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        void attach(event.dataTransfer?.files);
      }}
    >
      <div class="box">
        {files.length > 0 && (
          <ul class="files" role="list" aria-label="Attached files">
            {files.map((file, i) => (
              <li key={i}>
                <Icon name="file" /> <span>{file.name}</span>
                <button
                  type="button"
                  class="quiet round"
                  aria-label={`Remove ${file.name}`}
                  onClick={() => {
                    setFiles(files.filter((other) => other !== file));
                    area.current?.focus();
                  }}
                >
                  <Icon name="close" />
                </button>
              </li>
            ))}
          </ul>
        )}
        <textarea
          ref={area}
          id="message"
          rows={1}
          aria-label="Message"
          placeholder="Write a message"
          enterkeyhint="send"
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
          onPaste={(event) => {
            if (!event.clipboardData?.files.length) return;
            event.preventDefault();
            void attach(event.clipboardData.files);
          }}
          onKeyDown={(event) => {
            if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            send();
          }}
        />
        <div class="bar">
          <button type="button" class="quiet round" aria-label="Attach text files" title="Attach text files" onClick={() => chooser.current?.click()}>
            <Icon name="attach" />
          </button>
          <input
            ref={chooser}
            id="attach"
            type="file"
            multiple
            hidden
            onChange={(event) => {
              const input = event.currentTarget;
              void attach(input.files).then(() => (input.value = ""));
              area.current?.focus();
            }}
          />
          <span class={`hint${used ? "" : " keys"}`}>{used || "Enter sends, Shift+Enter breaks the line"}</span>
          {running ? (
            <button type="button" class="primary round" aria-label="Stop" title="Stop (Esc)" onClick={onStop}>
              <Icon name="stop" />
            </button>
          ) : (
            <button type="submit" class="primary round" aria-label="Send" title="Send" disabled={empty}>
              <Icon name="send" />
            </button>
          )}
        </div>
      </div>
    </form>
  );
}
