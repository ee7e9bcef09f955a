"""The public way in: `load` a model, then `generate`, `stream` or `chat`.

Here the parts meet: a checkpoint gives a spec, the spec a plan, an executor runs the plan for the engine,
and the tokenizer turns the engine's ids into text as they come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from halfbyte.answer import Generation, Stream
from halfbyte.checkpoint.adapter import Adapter, AdapterFolder
from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.lora import AdaptedWeights, MergedWeights
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.checkpoint.packed import RepackedWeights, TensorSource
from halfbyte.checkpoint.runnable import ExecutableWeights
from halfbyte.embedding import EmbeddingOptions, EmbeddingParams, Float32, Texts, all_of, texts_of
from halfbyte.errors import UsageError
from halfbyte.executors import Progress, factory
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.options import LoadOptions, RunOptions, check_names
from halfbyte.placement import Placed, place_first
from halfbyte.progress import shown
from halfbyte.prompts import BREAKERS, Message, Prompt, check_prompt, is_chat, sequence_breakers, stop_strings
from halfbyte.runtime import AnswerStream, Engine, EngineLoop, Grammar
from halfbyte.runtime.requests import checked_ids
from halfbyte.sampling.params import OTHER_NAMES, SamplingOptions, SamplingParams
from halfbyte.text import TextStream, Tokenizer
from halfbyte.units import quantity, size

if TYPE_CHECKING:
    from halfbyte.async_answer import AsyncStream
    from halfbyte.text.grammar import GrammarCompiler

POCKET = Path(__file__).parent / "pocket"
WAITING = 4
"""Prompts that `generate_many` and `embed` have ready, for each sequence that is computed at once."""
Tools = Sequence[Mapping[str, Any]]

_log = logging.getLogger(__name__)


class AnswerOptions(SamplingOptions, total=False):
    """Keyword arguments of `Model.generate`, as `Model.stream` explains them."""

    max_tokens: int
    stop: str | Sequence[str]
    raw: bool
    system: str | None
    tools: Tools | None
    template_variables: Mapping[str, object] | None
    ignore_eos: bool
    dry_sequence_breakers: str | Sequence[str]
    priority: int
    deadline: float | None
    cache_prompt: bool | None
    grammar: Grammar | None
    keep_special: Sequence[str]
    prompt_logprobs: int | None
    adapter: str | None


class Model:
    """A loaded model. Made by `load`; closed at the end of a `with` block, or by `close`.

    Any number of threads may use one model. As many of their conversations are computed together as `sequences` says;
    others wait for their turn.

    Attributes:
        name: How it was asked for.
        path: Its folder or GGUF file.
        tokenizer: Its `encode` and `decode` take text as it is, without a chat template.
        options: How it runs: as asked for, on the device that was chosen.
        device: Where it runs; `why_device` says why there.
        nbytes: Bytes of its weights as stored on the device.
        load_s: Seconds that loading took.
        notes: What a user should know about how its weights are held.
        adapter: The adapter that answers come with if they name none; None for the model itself.
    """

    adapter: str | None = None

    def __init__(
        self, *, name: str, path: Path, spec: ModelSpec, tokenizer: Tokenizer, placed: Placed, load_s: float,
        notes: tuple[str, ...] = (), merged: Adapter | None = None, beside: Mapping[str, Adapter] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.path = path
        self.spec = spec
        self.tokenizer = tokenizer
        self.options = placed.options
        self.plan = placed.plan
        self.executor = placed.executor
        self.device = placed.options.device
        self.why_device = placed.why
        self.load_s = load_s
        self.notes = notes
        self._merged, self._beside = merged, dict(beside or {})
        engine = Engine(self.executor, rope_switch=spec.rope_switch, prefill_chunk=self.options.prefill_chunk)
        self.engine = EngineLoop(engine, survives_fork=factory(self.device).survives_fork)
        self._compiler: GrammarCompiler | None = None
        self._compiling = threading.Lock()
        self._base = self

    def __repr__(self) -> str:
        sizes: dict[str, int] = {}
        for tensor in self.plan.of_kind("weight"):
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
        closed = ", closed" * self.engine.closed
        return (
            f"<Model {self.name!r} on {self.device}: {quantity(self.spec.parameters, '')} parameters in "
            f"{size(self.nbytes)}, most in {max(sizes, key=lambda dtype: sizes[dtype])}; "
            f"context {self.plan.context:,}{closed}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return sum(tensor.nbytes for tensor in self.plan.of_kind("weight"))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: those of its configuration, and the tokenizer's end of text."""
        return self.tokenizer.with_eos(self.spec.stop_token_ids)

    @property
    def grammar(self) -> GrammarCompiler:
        """Makes grammars for answers, as in `generate(prompt, grammar=model.grammar.json_schema({…}))`.

        It is made when it is first asked for, which takes a second or two with a large vocabulary.

        Raises:
            UsageError: The package llguidance is missing, or the model names no token that ends an answer.
        """
        from halfbyte.text.grammar import GrammarCompiler

        base = self._base
        with self._compiling:
            if base._compiler is None:
                base._compiler = GrammarCompiler(self.tokenizer, self.stop_token_ids, vocab_size=self.spec.vocab_size)
            return base._compiler

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that lie beside its weights."""
        return tuple(self._beside)

    def with_adapter(self, name: str | None) -> Model:
        """This model, with another adapter where none is named; both share everything, and closing one closes both.

        Raises:
            UsageError: There is no such adapter.
        """
        self._adapter_number(name)
        other = copy(self)
        other.adapter = name
        return other

    def _adapter_number(self, name: str | None) -> int:
        """The number of an adapter, 0 for None.

        Raises:
            UsageError: There is no such adapter.
        """
        if name is None:
            return 0
        if self.spec.adapters is None or name not in self._beside:
            known = f"There are {', '.join(self._beside)}." if self._beside else "Load the model with `adapters`."
            raise UsageError(f"there is no adapter {name!r}.", known)
        return self.spec.adapters.number(name)

    def encode(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        system: str | None = None,
        tools: Tools | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Token ids of a prompt.

        Text becomes a user's message of the model's chat template, unless `raw` or there is no template;
        messages go through the template; ids are taken as they are.

        Args:
            raw: Take text as it is, without the chat template.
            system: A system message to go before a text prompt.
            tools: JSON schemas of functions that the model may call, for chat templates that know them.
            template_variables: What else the chat template reads, such as `{"enable_thinking": False}`.

        Raises:
            UsageError: The prompt is empty or of another type, `system`, `tools` or `template_variables` are given
                where no template can take them, or the model is closed.
            TemplateError: The chat template refused the messages.
        """
        self.engine.check_open()
        check_prompt(prompt)
        if isinstance(prompt, str):
            return self._encode_text(prompt, raw, system, tools, template_variables)
        if raw or system is not None:
            raise UsageError("raw and system go with a prompt of text.", "Put the system text into the messages.")
        if is_chat(prompt):
            return self.tokenizer.encode_chat(prompt, tools=tools, variables=template_variables)
        for name, value in (("tools", tools), ("template_variables", template_variables)):
            if value is not None:
                raise UsageError(f"{name} need messages or a text.", "A prompt of token ids is taken as it is.")
        return list(checked_ids(self.plan, cast(Sequence[int], prompt)))

    def _encode_text(
        self, prompt: str, raw: bool, system: str | None, tools: Tools | None, variables: Mapping[str, object] | None
    ) -> list[int]:
        if raw or not self.tokenizer.has_chat_template:
            for name, value in (("a system text", system), ("tools", tools), ("template variables", variables)):
                if value is not None:
                    raise UsageError(
                        f"{name} can only be given with a chat template.", "Leave out raw, or write it into the prompt."
                    )
            return self.tokenizer.encode(prompt)
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.tokenizer.encode_chat(messages, tools=tools, variables=variables)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens.

        Raises:
            UsageError: They are not ids of this model's tokenizer, or the model is closed.
        """
        self.engine.check_open()
        found = list(ids)
        return self.tokenizer.decode(checked_ids(self.plan, found)) if found else ""

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        raw: bool = False,
        system: str | None = None,
        tools: Tools | None = None,
        template_variables: Mapping[str, object] | None = None,
        ignore_eos: bool = False,
        dry_sequence_breakers: str | Sequence[str] = BREAKERS,
        priority: int = 0,
        deadline: float | None = None,
        cache_prompt: bool | None = None,
        grammar: Grammar | None = None,
        keep_special: Sequence[str] = (),
        prompt_logprobs: int | None = None,
        adapter: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Generate token by token.

        Args:
            prompt: Text, messages (`{"role": …, "content": …}`), or token ids.
            max_tokens: The most tokens to generate.
            stop: Strings that end the answer; they are not part of it.
            raw: Take text as it is, without the chat template.
            system: A system message to go before a text prompt.
            tools: JSON schemas of functions that the model may call, for chat templates that know them.
            template_variables: What else the chat template reads: `{"enable_thinking": False}` for Qwen 3 and others,
                `{"reasoning_effort": "low"}` for gpt-oss.
            ignore_eos: Go on after stop tokens, for measuring.
            dry_sequence_breakers: Texts that no repetition reaches over, where `dry_multiplier` penalizes repetitions;
                their tokens are added to `dry_breaker_ids`.
            priority: Requests of a higher priority go first.
            deadline: Seconds from now after which the answer ends as far as it has come, with `finish_reason`
                "deadline".
            cache_prompt: Whether to use what the KV cache holds of the prompt, and to leave it there for others. By
                default, unless a seed is to give the same text again: the last bits of values depend on their batch.
            grammar: What the answer may be, such as `Model.grammar` makes. `start()` of it gives an object whose
                `words()` has a bit for each token that may come next, and whose `accept(token_id)` takes each token
                that came. Log-probabilities remain those of the model.
            keep_special: Special tokens, as the vocabulary spells them, that show their text: delimiters of thoughts
                and tool calls, for who reads them.
            prompt_logprobs: How many of the most likely tokens to tell with each token of the prompt, in the stream's
                `prompt_scores`; None to tell nothing of the prompt. 0 tells each token alone.
            adapter: The name of one of the adapters that the model was loaded with; "" for none of them, None for the
                model's own `adapter`.
            **sampling: Fields of `SamplingParams`; greedy without any.

        Raises:
            UsageError: An option is unknown or out of range, or the model is closed.
            ContextFullError: The prompt does not fit the context.
            TemplateError: The chat template refused the messages.
            GrammarError: While tokens are taken: the grammar allows none, or failed.
        """
        return self._stream(
            prompt, max_tokens=max_tokens, stop=stop, raw=raw, system=system, tools=tools,
            template_variables=template_variables, ignore_eos=ignore_eos,
            dry_sequence_breakers=dry_sequence_breakers, priority=priority, deadline=deadline,
            cache_prompt=cache_prompt, prompt_logprobs=prompt_logprobs, grammar=grammar,
            keep_special=keep_special, adapter=adapter, **sampling,
        )  # fmt: skip

    def _stream(self, prompt: Prompt, *, bounded: bool = True, **options: Unpack[AnswerOptions]) -> Stream:
        return self._streams(prompt, 1, bounded=bounded, **options)[0]

    def _streams(
        self,
        prompt: Prompt,
        n: int,
        *,
        bounded: bool,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        raw: bool = False,
        system: str | None = None,
        tools: Tools | None = None,
        template_variables: Mapping[str, object] | None = None,
        ignore_eos: bool = False,
        dry_sequence_breakers: str | Sequence[str] = BREAKERS,
        priority: int = 0,
        deadline: float | None = None,
        cache_prompt: bool | None = None,
        grammar: Grammar | None = None,
        keep_special: Sequence[str] = (),
        prompt_logprobs: int | None = None,
        adapter: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Stream]:
        check_names("option", sampling, (*SamplingOptions.__annotations__, *AnswerOptions.__annotations__), OTHER_NAMES)
        settings = self._settings(sampling, sequence_breakers(dry_sequence_breakers))
        ids = self.encode(prompt, raw=raw, system=system, tools=tools, template_variables=template_variables)
        stops = stop_strings(stop)
        number = self._adapter_number(self.adapter if adapter is None else adapter or None)
        answers = self.engine.streams(
            ids, settings, n, bounded=bounded, max_tokens=max_tokens, stop_token_ids=self.stop_token_ids,
            ignore_eos=ignore_eos, priority=priority, deadline=deadline, cache_prompt=cache_prompt,
            prompt_logprobs=prompt_logprobs, grammar=grammar, adapter=number,
        )  # fmt: skip
        read_back = not self.executor.draws(settings)
        texts = [TextStream(self.tokenizer, stops, keep=keep_special) for _ in answers]
        return [Stream(answer, text, read_back) for answer, text in zip(answers, texts, strict=True)]

    def _settings(self, sampling: SamplingOptions, breakers: Sequence[str]) -> SamplingParams:
        settings = SamplingParams(**sampling)
        if not settings.dry_multiplier:
            return settings
        ids = frozenset[int | tuple[int, ...]](settings.dry_breaker_ids)
        return replace(settings, dry_breaker_ids=ids.union(*map(self.tokenizer.spellings, breakers)))

    def generate(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> Generation:
        """The whole answer at once; options and errors as for `stream`.

        An answer that fills the context is returned with `finish_reason` "context".
        """
        return self.submit(prompt, **options).whole()

    def submit(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> Stream:
        """Begin an answer, whose tokens wait until they are taken; options and errors as for `stream`.

        `stream` begins when its first token is asked for, and pauses while its reader is far behind.
        """
        return self._stream(prompt, bounded=False, **options).start()

    def generate_many(
        self, prompts: Iterable[Prompt], *, n: int = 1, **options: Unpack[AnswerOptions]
    ) -> Iterator[Generation]:
        """Answers to many prompts, in their order, computed together as far as the model has `sequences`.

        Options and errors are those of `stream`. Prompts are taken as the answers are, a little ahead.

        Args:
            n: Answers to each prompt, one after another. If there is a seed, each has that of the one before plus 1.
        """
        begun: deque[Stream] = deque()
        try:
            for prompt in prompts:
                begun += [stream.start() for stream in self._streams(prompt, n, bounded=False, **options)]
                while len(begun) > WAITING * self.plan.sequences:
                    yield begun.popleft().whole()
            while begun:
                yield begun.popleft().whole()
        finally:
            for stream in begun:
                stream.close()

    def astream(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> AsyncStream:
        """As `stream`, for `async for`: other coroutines run while it waits for tokens."""
        from halfbyte.async_answer import AsyncStream

        return AsyncStream(self._stream(prompt, **options))

    def astreams(self, prompt: Prompt, n: int, **options: Unpack[AnswerOptions]) -> list[AsyncStream]:
        """As `astream`, for `n` answers to one prompt. If there is a seed, each has that of the one before plus 1."""
        from halfbyte.async_answer import AsyncStream

        return [AsyncStream(stream) for stream in self._streams(prompt, n, bounded=True, **options)]

    async def agenerate(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> Generation:
        """As `generate`, to be awaited."""
        from halfbyte.async_answer import AsyncStream

        async with AsyncStream(self._stream(prompt, bounded=False, **options)) as stream:
            async for _ in stream:
                pass
            return stream.result()

    def chat(self, messages: Sequence[Message], **options: Unpack[AnswerOptions]) -> Generation:
        """The assistant's next message in a conversation; options and errors as for `stream`.

        What the conversation shares with earlier ones is not computed again while the KV cache holds it.
        """
        return self.generate(messages, **options)

    def embed(self, texts: Texts, **options: Unpack[EmbeddingOptions]) -> Float32:
        """Vectors of texts, `[texts, hidden_size]` in float32, computed together as far as the model has `sequences`.

        They are made of the hidden states after the final norm. The KV cache of earlier prompts is not used.

        Args:
            texts: A text, token ids, or a list of such. A text is taken as it is, without the chat template.
            pooling: The `mean` of the hidden states of all tokens, which is the default, or the `last` one.
            normalize: Whether vectors have the length 1, which is the default.
            dimensions: How many of the first values to keep, before vectors are normalized.

        Raises:
            UsageError: There is no text, one is empty, an option is out of range, or the model is closed.
            ContextFullError: A text does not fit the context.
        """
        params = EmbeddingParams(self.spec.hidden_size, **options)
        return all_of(self._pooled(texts, params), params, WAITING * self.plan.sequences)

    async def aembed(self, texts: Texts, **options: Unpack[EmbeddingOptions]) -> Float32:
        """As `embed`, to be awaited."""
        from halfbyte import async_answer

        params = EmbeddingParams(self.spec.hidden_size, **options)
        ahead = WAITING * self.plan.sequences
        return await async_answer.all_of(lambda: self._pooled(texts, params), params, ahead)

    def _pooled(self, texts: Texts, params: EmbeddingParams) -> list[AnswerStream]:
        found = texts_of(texts)
        ids = [self.encode(text, raw=True) if isinstance(text, str) else text for text in found]
        number = self._adapter_number(self.adapter)
        return [self.engine.pooled(each, params.pooling, number) for each in ids]

    def save_cache(
        self,
        path: str | Path,
        prompt: Prompt,
        *,
        raw: bool = False,
        system: str | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Write a file that holds a prompt as the KV cache does, for `load_cache`; the prompt is computed if need be.

        A file that is there is replaced. Errors are those of `stream`, and HalfbyteError if it cannot be written.
        Returns the leading token ids of the prompt that the file holds: those of its full blocks. They are computed
        with the model's `adapter`, and the file can be loaded only with that adapter.
        """
        from halfbyte import prompt_cache

        ids = self.encode(prompt, raw=raw, system=system, template_variables=template_variables)
        number = self._adapter_number(self.adapter)
        return prompt_cache.save(Path(path), self.engine, self.executor, ids, self._made_with(), number)

    def load_cache(self, path: str | Path) -> list[int]:
        """Put a file's prompt into the KV cache, for prompts that begin with it, and return its token ids.

        It stays until its memory is needed.

        Raises:
            ModelNotFoundError: There is no such file.
            InvalidModelError: It is damaged.
            UsageError: It was made with another model, format or device, or there is no room for it.
        """
        from halfbyte import prompt_cache

        number = self._adapter_number(self.adapter)
        return prompt_cache.load(Path(path), self.engine, self.executor, self._made_with(), number)

    def _made_with(self) -> dict[str, str]:
        from halfbyte import prompt_cache

        adapters = {"merged": self._merged.folder.path} if self._merged else {}
        if self.adapter is not None:
            adapters["beside"] = self._beside[self.adapter].folder.path
        return prompt_cache.made_with(self.path, self.spec, self.options, self.plan, adapters)

    def close(self) -> None:
        """Free weights and caches, once the batch at hand is done. Whatever is still asked of the model is refused."""
        self.engine.close()
        self.executor.close()


def load(
    model: str | Path | None = None,
    options: RunOptions | str | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | bool | None = None,
    **changes: Unpack[LoadOptions],
) -> Model:
    """Load a model, for `with` or until `close`.

    Args:
        model: A folder, a GGUF file, a hub id (`org/name`), or a short name of one (`phi-4-mini`; the catalog has
            twelve). None, or `pocket`, is the pocket model that comes with the package. Where there is also a folder
            of a short name, write that as a path: `./phi-4-mini`.
        options: How to run it: `RunOptions`, or only the name of a device.
        revision: Branch, tag or commit of a hub id.
        offline: Use only what was downloaded before.
        progress: True for a bar on the terminal or in the notebook, or a function, called as
            progress(what, done, all) while weights are prepared and a GPU's kernels are compiled.
        **changes: Fields of `RunOptions`, which explains all of them, in place of those in `options`: `device`,
            `threads`, `context`, `weights="q4g32"` to pack weights while loading, `sequences` for conversations that
            are computed together, `adapters` or `merge` for LoRA adapters, and others.

    Raises:
        ModelNotFoundError, DownloadError: There is no such model, or it could not be fetched.
        InvalidModelError, UnsupportedModelError: Its files are damaged, or of a kind Halfbyte cannot run.
        UsageError: An option is unknown or out of range.
        DeviceError: There is no such device, or the model or the context does not fit it.

    Examples:
        >>> with halfbyte.load() as model:
        ...     print(model.generate("What does ls do?"))
        List directory contents.
    """
    started = time.perf_counter()
    wanted = RunOptions.of(options, **changes)
    path = locate(model, revision, offline)
    _log.info("opening %s", path)
    checkpoint = open_checkpoint(path)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    tokenizer = Tokenizer(checkpoint.tokenizer_files())
    _log.debug("read the configuration and the tokenizer after %.2f s", time.perf_counter() - started)
    merged = _adapter(wanted.merge, spec, offline) if wanted.merge else None
    beside = {name: _adapter(path, spec, offline) for name, path in wanted.adapters.items()}
    source = executable(checkpoint, merged, wanted.weights)
    adapted = AdaptedWeights(source, beside) if beside else None
    if adapted is not None:
        spec = replace(spec, adapters=adapted.adapters)
    found = [*beside.values(), *([merged] if merged else [])]
    notes = (*checkpoint.notes, *source.notes, *(note for adapter in found for note in adapter.notes))
    with shown(progress) as tick:
        placed = place_first(wanted, spec, adapted or source, progress=tick)
    loaded = Model(
        name=str(model or "pocket"), path=path, spec=spec, tokenizer=tokenizer, placed=placed,
        load_s=time.perf_counter() - started, notes=notes, merged=merged, beside=beside,
    )  # fmt: skip
    for note in loaded.notes:
        _log.info("%s", note)
    _log.info("%s was loaded in %.2f s, running on %s: %s", loaded, loaded.load_s, loaded.device, loaded.why_device)
    return loaded


def executable(checkpoint: Checkpoint, merged: Adapter | None, weights: str | None) -> ExecutableWeights:
    """A checkpoint's weights as executors take them: with an adapter merged into them, then packed, if wanted."""
    source: TensorSource = checkpoint
    if merged is not None:
        source = MergedWeights(checkpoint, merged, rounded=weights is None)
    return ExecutableWeights(RepackedWeights(source, weights) if weights else source)


def _adapter(name: str | Path, spec: ModelSpec, offline: bool) -> Adapter:
    from halfbyte.checkpoint import hub

    path = hub.resolve_adapter(str(name), offline=offline)
    _log.info("opening the adapter %s", path)
    return AdapterFolder(path).fitted(spec)


def locate(model: str | Path | None, revision: str | None, offline: bool) -> Path:
    """The folder or file of a model as `load` takes it, downloaded if need be. Raises what `load` raises."""
    if not isinstance(model, str | Path | None):
        hint = "Give its `path`." if isinstance(model, Model) else "Give a folder, a GGUF file or a hub id."
        raise UsageError(f"the model is {model!r}, not a name.", hint)
    if isinstance(model, str):
        _refuse_both(model)
    if model is None or model == POCKET.name:
        if revision:
            raise UsageError("a revision needs a model.", "Name one with its hub id.")
        return POCKET
    from halfbyte.checkpoint import hub

    return hub.resolve(str(model), revision=revision, offline=offline)


def _refuse_both(name: str) -> None:
    """Refuse a short name that a folder has too: neither a large download nor another model should come unasked."""
    from halfbyte.models.catalog import HUB_IDS

    if name in (POCKET.name, *HUB_IDS) and Path(name).is_dir():
        other = f"{HUB_IDS[name]!r} for the other" if name in HUB_IDS else "no model for that of the package"
        raise UsageError(f"{name!r} is a short name, and a folder here.", f"Write './{name}' for the folder, {other}.")
