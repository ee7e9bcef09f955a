/** Drawings of buttons, which have names of their own. */

const PATHS = {
  menu: "M4 7h16M4 12h16M4 17h10",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  attach: "M19 11.5l-7.2 7.2a4.5 4.5 0 0 1-6.4-6.4l7.7-7.7a3 3 0 0 1 4.3 4.3l-7.7 7.6a1.5 1.5 0 0 1-2.1-2.1l7-7",
  settings: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.5v5M8 13.5v5",
  copy: "M9 9h10v11H9zM15 5.5V4H5v11h1.5",
  again: "M19.5 12a7.5 7.5 0 1 1-2.3-5.4M19.5 3.5v4.3h-4.3",
  edit: "M5 19l.8-3.8L16.5 4.5l3 3L8.8 18.2zM14 7l3 3",
  remove: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7",
  export: "M12 15V4M8 8l4-4 4 4M5 15v4.5h14V15",
  import: "M12 4v11M8 11l4 4 4-4M5 15v4.5h14V15",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  file: "M7 3.5h7l4 4V20.5H7zM14 3.5v4h4",
  light: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8M12 3v1.5M12 19.5V21M3 12h1.5M19.5 12H21M5.6 5.6l1.1 1.1M17.3 17.3l1.1 1.1M5.6 18.4l1.1-1.1M17.3 6.7l1.1-1.1",
  dark: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
} as const;

export type IconName = keyof typeof PATHS | "stop";

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      {name === "stop" ? <rect x="7" y="7" width="10" height="10" rx="2" class="full" /> : <path d={PATHS[name]} />}
    </svg>
  );
}
