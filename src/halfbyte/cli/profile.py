"""`halfbyte profile`: where the time of an answer goes, as tables, a page for the browser, and a trace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.loading import FILES, RUN, Chosen, takes_model
from halfbyte.cli.output import note, one_line
from halfbyte.cli.words import no_prompt, told_apart
from halfbyte.errors import UsageError

if TYPE_CHECKING:
    from halfbyte.model import Model
    from halfbyte.report.profile import Profile

Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a timeline as a page for the browser.")]
Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Chrome trace (JSON) for Perfetto.")]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the files named with --html and --trace.")]


@takes_model(*FILES, *RUN)
def profile(
    ctx: typer.Context,
    words: opt.Words = None,
    *,
    prompt: opt.PromptOption = None,
    chosen: Chosen,
    raw: opt.Raw = False,
    max_tokens: opt.MaxTokens = 32,
    html: Html = None,
    trace: Trace = None,
    overwrite: Overwrite = False,
) -> None:
    """Answer a prompt, print the answer, and show where the time went."""
    from halfbyte.atomic import refuse_unwritable
    from halfbyte.columns import aligned
    from halfbyte.report.profile import profile as measure
    from halfbyte.report.profile_tables import about, tables

    model, asked = told_apart(ctx, words or (), prompt)
    if asked is None:
        raise no_prompt(model, ctx.command_path)
    if overwrite and html is None and trace is None:
        raise UsageError("--overwrite has no effect without --html or --trace.", "Leave it out, or name a file.")
    for file in (html, trace):
        if file is not None:
            refuse_unwritable(file, overwrite=overwrite)
    loaded = replace(chosen, model=model or chosen.model).load()
    found = measure(loaded, loaded.encode(asked, raw=raw), max_tokens=max_tokens)
    print(f"{answer_text(loaded, found)}\n")
    for title, rows in tables(found):
        print(f"{title}\n{aligned(rows)}\n")
    for line in about(found):
        print(line)
    _write(loaded, asked, found, html, trace)


def answer_text(loaded: Model, found: Profile) -> str:
    """The answer that was profiled."""
    from halfbyte.text import TextStream

    stream = TextStream(loaded.tokenizer)
    return "".join(stream.push(turn.token_id) for turn in found.answer.turns) + stream.finish()


def _write(loaded: Model, prompt: str, found: Profile, html: Path | None, trace: Path | None) -> None:
    """The files that were asked for."""
    from halfbyte import atomic
    from halfbyte.report.page import page
    from halfbyte.report.profile_tables import about, tables
    from halfbyte.report.trace import chrome_trace, events

    happened, answer = events(found), answer_text(loaded, found)
    if html is not None:
        title = one_line(f"{loaded.name}: {prompt}")
        atomic.write(html, page(title, [f"Answer: {one_line(answer)}", *about(found)], tables(found), happened))
        note(f"{html}: a page for the browser, with {len(happened)} events")
    if trace is not None:
        atomic.write(trace, json.dumps(chrome_trace(happened)))
        note(f"{trace}: open it in https://ui.perfetto.dev or chrome://tracing")
