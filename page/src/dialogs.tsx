/** Windows over the page. The browser keeps the focus in them, closes them with Esc, and gives the focus back. */

import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Icon } from "./icons";
import { brief, facts } from "./text";
import type { Model, Sampler, Settings, SettingsChange } from "./types";

interface Dialog {
  title: string;
  kind?: "small" | "drawer";
  onClose: () => void;
  children: ComponentChildren;
}

export function Dialog({ title, kind = "small", onClose, children }: Dialog) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog
      ref={dialog}
      class={kind}
      aria-labelledby="dialog-title"
      onClose={onClose}
      onMouseDown={(event) => event.target === dialog.current && dialog.current?.close()}
    >
      <div class="dialog">
        <header>
          <h2 id="dialog-title">{title}</h2>
          <button type="button" class="quiet round" aria-label="Close" onClick={() => dialog.current?.close()}>
            <Icon name="close" />
          </button>
        </header>
        {children}
      </div>
    </dialog>
  );
}

export function Confirm(props: { title: string; text: string; action: string; onYes: () => void; onClose: () => void }) {
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <p>{props.text}</p>
      <div class="actions">
        <button type="button" class="plain" onClick={(event) => event.currentTarget.closest("dialog")?.close()}>
          Cancel
        </button>
        <button type="button" class="danger" onClick={props.onYes}>
          {props.action}
        </button>
      </div>
    </Dialog>
  );
}

export function KeyDialog({ onKey }: { onKey: (key: string | undefined) => void }) {
  const [key, setKey] = useState("");
  return (
    <Dialog title="API key" onClose={() => onKey(undefined)}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          onKey(key.trim());
        }}
      >
        <p>The server asks for a key. It is kept until this tab is closed.</p>
        <label class="field">
          <span>Key</span>
          <input
            type="password"
            autocomplete="off"
            required
            autofocus
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </label>
        <div class="actions">
          <button type="submit" class="primary">
            Continue
          </button>
        </div>
      </form>
    </Dialog>
  );
}

interface Field {
  name: Sampler;
  label: string;
  hint: string;
  min: number;
  max?: number;
  step: number | "any";
}

const FIELDS: Field[] = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the most likely token.", min: 0, max: 100, step: "any" },
  { name: "top_p", label: "Top p", hint: "Keeps the most likely tokens that make up this share.", min: 0, max: 1, step: "any" },
  { name: "top_k", label: "Top k", hint: "Keeps this many tokens; 0 keeps all.", min: 0, step: 1 },
  { name: "min_p", label: "Min p", hint: "Keeps tokens this likely against the most likely.", min: 0, max: 1, step: "any" },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "1 is none.", min: 0.01, max: 100, step: "any" },
  { name: "max_tokens", label: "Max tokens", hint: "The longest answer.", min: 1, step: 1 },
  { name: "seed", label: "Seed", hint: "The same seed gives the same answer.", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];

/** What is wrong with a text of tool definitions; empty where nothing is. */
function toolsError(text: string): string {
  if (!text.trim()) return "";
  try {
    return Array.isArray(JSON.parse(text)) ? "" : "The definitions must be a JSON list.";
  } catch (error) {
    return `This is not JSON: ${(error as Error).message}`;
  }
}

interface SettingsDialog {
  settings: Settings;
  model: Model | undefined;
  onChange: (change: SettingsChange) => void;
  onClose: () => void;
}

export function SettingsDialog({ settings, model, onChange, onClose }: SettingsDialog) {
  const [tools, setTools] = useState(settings.tools);
  const wrong = toolsError(tools);
  const change = (name: Sampler, input: HTMLInputElement): void => {
    if (input.reportValidity()) onChange({ [name]: input.value === "" ? undefined : input.valueAsNumber });
  };
  return (
    <Dialog title="Conversation settings" kind="drawer" onClose={onClose}>
      <label class="field">
        <span>System prompt</span>
        <textarea
          rows={5}
          placeholder="What the model should know or heed throughout"
          value={settings.system}
          onInput={(event) => onChange({ system: event.currentTarget.value })}
        />
      </label>
      <fieldset>
        <legend>Sampling</legend>
        <div class="grid">
          {FIELDS.map(({ name, label, hint, ...range }) => (
            <label class="field" key={name}>
              <span>{label}</span>
              <input
                type="number"
                inputMode="decimal"
                placeholder="default"
                aria-describedby={`hint-${name}`}
                {...range}
                defaultValue={settings[name]}
                onChange={(event) => change(name, event.currentTarget)}
              />
              <small id={`hint-${name}`}>{hint}</small>
            </label>
          ))}
        </div>
      </fieldset>
      <label class="field">
        <span>Tools</span>
        <textarea
          rows={4}
          class="mono"
          spellcheck={false}
          placeholder='[{"type": "function", "function": {"name": …}}]'
          aria-describedby="tools-hint"
          aria-invalid={wrong !== ""}
          value={tools}
          onInput={(event) => {
            const text = event.currentTarget.value;
            setTools(text);
            if (!toolsError(text)) onChange({ tools: text });
          }}
        />
        <small id="tools-hint" class={wrong ? "wrong" : ""}>
          {wrong || "Functions the model may call, as the API takes them. You give the results."}
        </small>
      </label>
      {model && <ModelFacts model={model} />}
      <p class="faint">
        <a href="licences.txt" target="_blank" rel="noopener">
          Licences of the packages in this page
        </a>
      </p>
    </Dialog>
  );
}

export function ModelFacts({ model }: { model: Model }) {
  const known = facts(model.quality);
  return (
    <section class="facts" aria-label={`Measured: ${model.id}`}>
      <h3>{model.id}</h3>
      {known.length ? (
        <dl>
          {known.map(({ name, value, meaning }) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
              {meaning && <dd class="faint">{meaning}</dd>}
            </div>
          ))}
        </dl>
      ) : (
        <p class="faint">The server says nothing about this model's quality.</p>
      )}
    </section>
  );
}

export function QualityButton({ model }: { model: Model }) {
  const [open, setOpen] = useState(false);
  const known = brief(model.quality);
  if (!known.length) return null;
  return (
    <>
      <button type="button" class="chip" aria-label={`Measured quality: ${known.join(", ")}`} onClick={() => setOpen(true)}>
        {known.map((text) => (
          <span key={text}>{text}</span>
        ))}
      </button>
      {open && (
        <Dialog title="Measured quality" onClose={() => setOpen(false)}>
          <ModelFacts model={model} />
        </Dialog>
      )}
    </>
  );
}
