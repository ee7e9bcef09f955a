"""`halfbyte run`: answer one prompt, or each prompt of a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.answering import Stats, answer, has_chat_template, record, say_cut
from halfbyte.cli.batch import answer_batch, open_batch
from halfbyte.cli.batch_results import Results
from halfbyte.cli.loading import ADAPTERS, FILES, RUN, Chosen, say_loaded, takes_model
from halfbyte.cli.output import note, print_json
from halfbyte.cli.prompts import Request, read_schema, read_variables, single_request
from halfbyte.cli.sampling import Sampling, takes_sampling
from halfbyte.cli.words import begin_chat, can_ask, told_apart, wants_chat
from halfbyte.errors import UsageError

if TYPE_CHECKING:
    from halfbyte.model import Model
    from halfbyte.runtime import Grammar

_DECIDING = ("weights", "kv_dtype", "activations", "context", *ADAPTERS)
"""Options of a run that decide about its answers."""


@takes_model(*FILES, *RUN, *ADAPTERS)
@takes_sampling("logprobs")
def run(
    ctx: typer.Context,
    words: opt.Words = None,
    *,
    prompt: opt.PromptOption = None,
    file: opt.File = None,
    chosen: Chosen,
    system: opt.System = None,
    raw: opt.Raw = False,
    chat_template_kwargs: opt.TemplateVariables = None,
    max_tokens: opt.MaxTokens = 256,
    stop: opt.Stop = None,
    ignore_eos: opt.IgnoreEos = False,
    json_schema: opt.JsonSchema = None,
    sampling: Sampling,
    prompts: opt.Prompts = None,
    sequences: opt.Sequences = None,
    output: opt.Results = None,
    overwrite: opt.Overwrite = False,
    prompt_cache: opt.PromptCache = None,
    json: opt.JsonLines = False,
    stats: opt.Stats = False,
    verbose: opt.Verbose = False,
) -> None:
    """Answer a prompt, or each prompt of a file.

    Text that is piped into standard input is put after the prompt; - as the prompt is that text alone.
    """
    if sampling["logprobs"] and not json and output is None:
        raise UsageError("--logprobs has no effect without --json.", "Add --json.")
    if sequences is not None and prompts is None:
        raise UsageError("--sequences has no effect without --prompts.", "Add --prompts.")
    if output is not None and prompts is None:
        raise UsageError("--output has no effect without --prompts.", "Add --prompts, or write: halfbyte run … > FILE")
    if overwrite and output is None:
        raise UsageError("--overwrite has no effect without --output.", "Add --output.")
    if prompt_cache is not None and prompts is not None:
        raise UsageError("--prompt-cache holds one prompt; --prompts has many.", "Give one of the two.")
    model, asked = told_apart(ctx, words or (), prompt)
    if model is not None and asked is None and prompts is None and file is None and can_ask():
        if wants_chat(ctx, model):
            begin_chat(ctx)
            return
        model, asked = None, model
    chosen = replace(chosen, model=model or chosen.model)
    if raw and system is not None:
        raise UsageError("a system message cannot be used without a chat template.", "Leave out --raw or the message.")
    if raw and chat_template_kwargs is not None:
        raise UsageError("--chat-template-kwargs has no effect with --raw.", "Leave out one of the two.")
    schema = None if json_schema is None else read_schema(json_schema)
    arguments = {"stop": tuple(stop or ()), "raw": raw, "ignore_eos": ignore_eos, **sampling}
    if (variables := read_variables(chat_template_kwargs)) is not None:
        arguments["template_variables"] = variables
    figures = Stats() if stats else None
    try:
        if prompts is None:
            request = single_request(asked, system=system, max_tokens=max_tokens, file=file, model=model)
            request = replace(request, options={**arguments, **request.options})
            loaded, grammar = _loaded(chosen, 1, schema, raw=raw, verbose=verbose)
            _answer_one(loaded, request, grammar, prompt_cache, figures, json=json, verbose=verbose)
            return
        if asked is not None or file is not None:
            what = "a prompt" if file is None else "--file"
            raise UsageError(f"there are both {what} and --prompts.", "Give one of the two.")
        options = {**arguments, "system": system, "max_tokens": max_tokens}
        results = None
        if output is not None:
            run_options = {name: getattr(chosen.run, name) for name in _DECIDING}
            which = {"model": chosen.model, "revision": chosen.revision, "schema": schema}
            results = Results(output, {**which, **run_options, **options}, overwrite=overwrite)
        batch = open_batch(prompts, options, results)
        if batch is not None:
            together = batch.together if sequences is None else sequences
            loaded, grammar = _loaded(chosen, together, schema, raw=raw, verbose=verbose)
            answer_batch(loaded, batch, together, grammar, json=json, stats=figures, verbose=verbose)
    finally:
        if figures is not None:
            figures.show()


def _loaded(
    chosen: Chosen, together: int, schema: dict[str, Any] | None, *, raw: bool, verbose: bool
) -> tuple[Model, Grammar | None]:
    """The model, for so many conversations at once, and the grammar of a schema."""
    model = replace(chosen, run=replace(chosen.run, sequences=together)).load()
    if verbose:
        say_loaded(model)
    if not raw and not has_chat_template(model):
        note(f"{model.name} has no chat template: the prompt is continued as plain text, as with --raw.")
    return model, None if schema is None else model.grammar.json_schema(schema)


def _answer_one(
    model: Model,
    request: Request,
    grammar: Grammar | None,
    prompt_cache: Path | None,
    figures: Stats | None,
    *,
    json: bool,
    verbose: bool,
) -> None:
    options = dict(request.options)
    if grammar is not None:
        options["grammar"] = grammar
    if prompt_cache is not None:
        _share_prompt(model, request, prompt_cache)
        options["cache_prompt"] = True
    generation, tokens = answer(model, request, model.stream(request.prompt, **options), figures, echo=not json)
    if json:
        print_json(record(request, generation, tokens))
    else:
        say_cut(model, request, generation, always=verbose)


def _share_prompt(model: Model, request: Request, file: Path) -> None:
    """Have the KV cache hold a prompt as a file does; if there is no file, compute the prompt and write it.

    Raises:
        UsageError: The file holds another prompt, or does not go with the model.
    """
    asked = {name: request.options[name] for name in ("raw", "system", "template_variables") if name in request.options}
    if not file.exists():
        model.save_cache(file, request.prompt, **asked)
        return
    ids = model.encode(request.prompt, **asked)
    held = model.load_cache(file)
    if ids[: len(held)] != held:
        same = next((i for i, (ours, theirs) in enumerate(zip(ids, held, strict=False)) if ours != theirs), len(ids))
        raise UsageError(
            f"{file} holds another prompt: {len(held):,} tokens, of which the first {same:,} are those of this one.",
            "Use another file, or delete it to have it made anew.",
        )
