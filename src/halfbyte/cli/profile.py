"""`halfbyte profile`: which operations an answer's time goes to; as tables, a page to look at, and a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.loading import FILES, RUN, Chosen, takes_model
from halfbyte.cli.output import note, one_line

if TYPE_CHECKING:
    from halfbyte.model import Model
    from halfbyte.report.profile import Profile

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to answer.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a timeline to look at in a browser.")]
Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="Write Chrome trace JSON, for Perfetto.")]


@takes_model(*FILES, *RUN)
def profile(
    prompt: Prompt,
    *,
    chosen: Chosen,
    raw: opt.Raw = False,
    max_tokens: opt.MaxTokens = 32,
    html: Html = None,
    trace: Trace = None,
) -> None:
    """Answer a prompt and show where the time went."""
    from halfbyte.report.profile import profile as measure
    from halfbyte.report.profile_tables import about, tables
    from halfbyte.report.tables import aligned

    loaded = chosen.load()
    found = measure(loaded, loaded.encode(prompt, raw=raw), max_tokens=max_tokens)
    for title, rows in tables(found):
        print(f"{title}\n{aligned(rows)}\n")
    for line in about(found):
        print(line)
    _write(loaded, prompt, found, html, trace)


def _write(loaded: Model, prompt: str, found: Profile, html: Path | None, trace: Path | None) -> None:
    """The files that were asked for."""
    from halfbyte.report.page import page
    from halfbyte.report.profile_tables import about, tables
    from halfbyte.report.trace import chrome_trace, events

    happened = events(found)
    if html is not None:
        title = one_line(f"{loaded.name}: {prompt}")
        html.write_text(page(title, about(found), tables(found), happened), encoding="utf-8")
        note(f"{html}: {len(happened)} events, for a browser")
    if trace is not None:
        trace.write_text(json.dumps(chrome_trace(happened)), encoding="utf-8")
        note(f"{trace}: for https://ui.perfetto.dev or chrome://tracing")
