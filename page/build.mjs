// Bundles the page into the package: `node build.mjs [folder]`. The same sources give the same bytes.
import { build } from "esbuild";
import { copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const folder = process.argv[2] ?? join(here, "../src/halfbyte/server/page");
mkdirSync(folder, { recursive: true });

const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/page.tsx" },
  outdir: folder,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["chrome123", "firefox121", "safari17.5"],
  jsx: "automatic",
  jsxImportSource: "preact",
  charset: "utf8",
  legalComments: "none",
  metafile: true,
});
for (const name of ["index.html", "icon.svg"]) copyFileSync(join(here, "src", name), join(folder, name));

const inputs = Object.keys(metafile.inputs);
const packages = inputs.flatMap((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1] ?? []);
const licences = [...new Set(packages)].sort().map((name) => {
  const home = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(home, "package.json"), "utf8"));
  const file = readdirSync(home).sort().find((path) => /^licen[cs]e/i.test(path));
  if (!file || !existsSync(join(home, file))) throw new Error(`${name} comes without a licence file.`);
  return `${name} ${version} (${license})\n\n${readFileSync(join(home, file), "utf8").replaceAll("\r\n", "\n").trim()}\n`;
});
const head = "page.js contains these packages, each under its own licence.\n";
writeFileSync(join(folder, "licences.txt"), [head, ...licences].join(`\n${"-".repeat(80)}\n\n`));
