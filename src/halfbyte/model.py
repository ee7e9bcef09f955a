"""The public way in: `load` a model, then `generate`, `stream` or `chat`.

Here the parts meet: a checkpoint gives a spec, the spec a plan, an executor runs the plan for the engine,
and the tokenizer turns the engine's ids into text as they come.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, Unpack, cast

from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.checkpoint.packed import Packed
from halfbyte.checkpoint.runnable import Runnable
from halfbyte.errors import UsageError
from halfbyte.executors import Progress, factory
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.options import LoadOptions, RunOptions
from halfbyte.placement import Placed, place_first
from halfbyte.runtime import Engine, SamplingParams, TokenOutput
from halfbyte.text import TextStream, Tokenizer

POCKET = Path(__file__).parent / "pocket"
Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        text: What can be shown now that it is there: empty while a character or a stop string is incomplete.
        logprob: Natural logarithm of its probability under the model, before any sampling setting.
        top_logprobs: The likeliest (id, logprob) pairs, as many as were asked for.
        finish_reason: Set on the last token: `stop`, `length`, or `context` where no room is left for more.
    """

    id: int
    text: str
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True)
class Generation:
    """An answer and what it took.

    Attributes:
        token_ids: Generated ids, a stop token included.
        reused_tokens: Prompt tokens whose cache was still there from the turn before.
        finish_reason: `stop`, `length`, `context`, or `cancelled` where it was broken off.
        prefill_ms: From the prompt to the first token.
        ms_per_token, tokens_per_s: Of the tokens after the first; None where there are none.
        total_s: From the prompt to the end.
        logits_read_back: Whether a device that can choose tokens itself handed its logits back for each, because
            its sampler has not what was asked for (typical_p, the log-probabilities of other tokens).
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int
    reused_tokens: int
    finish_reason: str
    prefill_ms: float
    ms_per_token: float | None
    total_s: float
    logits_read_back: bool = False

    @property
    def new_tokens(self) -> int:
        """Tokens generated."""
        return len(self.token_ids)

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed, the first token not counted."""
        return 1000 / self.ms_per_token if self.ms_per_token else None


class Stream(Iterator[Token]):
    """Tokens as they are made. Closing it early (or leaving a `with` block) cancels the rest."""

    def __init__(
        self, outputs: Iterator[TokenOutput], text: TextStream, prompt_tokens: int, logits_read_back: bool
    ) -> None:
        self._logits_read_back = logits_read_back
        self._outputs = outputs
        self._text = text
        self._prompt_tokens = prompt_tokens
        self._tokens: list[Token] = []
        self._reused = 0
        self._finish_reason = ""
        self._closed = False
        self._started = time.perf_counter()
        self._first = self._last = self._started

    def __next__(self) -> Token:
        if self._closed:
            raise StopIteration
        output = next(self._outputs)
        self._last = time.perf_counter()
        if not self._tokens:
            self._first, self._reused = self._last, output.sequence.reused_tokens
        token = self._token(output)
        self._tokens.append(token)
        self._finish_reason = token.finish_reason or ""
        if self._finish_reason and self._finish_reason != "context":
            self.close()
        return token

    def _token(self, output: TokenOutput) -> Token:
        text, reason = self._text.push(output.token_id), output.finish_reason
        if self._text.stopped:
            reason = "stop"
        if reason:
            text += self._text.finish()
        return Token(output.token_id, text, output.logprob, output.top_logprobs, reason)

    def close(self) -> None:
        """Cancel what has not been generated yet; harmless at the end."""
        self._closed = True
        if close := getattr(self._outputs, "close", None):
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def result(self) -> Generation:
        """The answer so far, with its figures."""
        later = len(self._tokens) - 1
        return Generation(
            text="".join(token.text for token in self._tokens),
            token_ids=tuple(token.id for token in self._tokens),
            logprobs=tuple(token.logprob for token in self._tokens),
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused,
            finish_reason=self._finish_reason or "cancelled",
            prefill_ms=1000 * (self._first - self._started),
            ms_per_token=1000 * (self._last - self._first) / later if later > 0 else None,
            total_s=self._last - self._started,
            logits_read_back=self._logits_read_back,
        )


class Model:
    """A loaded model. Made by `load`.

    Attributes:
        name: How it was asked for.
        path: Its folder or GGUF file.
        options: How it runs: as asked for, on the device that was chosen.
        device: Where it runs; `why_device` says why there.
        nbytes: Bytes of its weights as stored on the device.
        load_s: Seconds that loading took.
        notes: What a user should know about how its weights are held.
    """

    def __init__(
        self, *, name: str, path: Path, spec: ModelSpec, tokenizer: Tokenizer, placed: Placed, load_s: float,
        notes: tuple[str, ...] = (),
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
        self._decoder = factory(self.device).decoder(self.executor)
        self.engine = Engine(self.executor, rope_switch=spec.rope_switch, decoder=self._decoder)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return sum(tensor.nbytes for tensor in self.plan.of_kind("weight"))

    def encode(self, prompt: Prompt, *, raw: bool = False, system: str | None = None) -> list[int]:
        """Token ids of a prompt.

        Text becomes a user's message of the model's chat template, unless `raw` or there is no template;
        messages go through the template; ids are taken as they are.

        Raises:
            UsageError: The prompt is empty, or `system` is given where no template can take it.
        """
        if not prompt:
            raise UsageError("the prompt is empty.", "Give it some text.")
        if isinstance(prompt, str):
            return self._encode_text(prompt, raw, system)
        if raw or system is not None:
            raise UsageError("raw and system go with a prompt of text.", "Put the system text into the messages.")
        if isinstance(prompt[0], Mapping):
            return self.tokenizer.encode_chat(cast(Sequence[Message], prompt))
        return [int(token) for token in cast(Sequence[int], prompt)]

    def _encode_text(self, prompt: str, raw: bool, system: str | None) -> list[int]:
        if raw or not self.tokenizer.has_chat_template:
            if system is not None:
                raise UsageError(
                    "a system text needs a chat template.", "Leave out raw, or put the text into the prompt."
                )
            return self.tokenizer.encode(prompt)
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.tokenizer.encode_chat(messages)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        raw: bool = False,
        system: str | None = None,
        ignore_eos: bool = False,
        **sampling: Any,
    ) -> Stream:
        """Generate token by token.

        Args:
            prompt: Text, messages (`{"role": …, "content": …}`), or token ids.
            max_tokens: The most tokens to generate.
            stop: Strings that end the answer; they are not part of it.
            raw: Take text as it is, without the chat template.
            system: A system message to go before a text prompt.
            ignore_eos: Go on after stop tokens, for measuring.
            **sampling: Fields of `SamplingParams`; greedy without any.

        Raises:
            UsageError: An option is out of range.
            ContextFullError: The prompt does not fit; later, while iterating, that the context is full.
            TemplateError: The chat template refused the messages.
        """
        ids = self.encode(prompt, raw=raw, system=system)
        text = TextStream(self.tokenizer, [stop] if isinstance(stop, str) else stop)
        settings = SamplingParams(**sampling)
        outputs = self.engine.generate(
            ids, settings, max_tokens=max_tokens, stop_token_ids=() if ignore_eos else self.spec.stop_token_ids,
        )  # fmt: skip
        read_back = self._decoder is not None and not self._decoder.supports(settings)
        return Stream(outputs, text, len(ids), read_back)

    def generate(self, prompt: Prompt, **options: Any) -> Generation:
        """The whole answer at once; options as for `stream`."""
        with self.stream(prompt, **options) as stream:
            for _ in stream:
                pass
            return stream.result()

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """The assistant's next message in a conversation; options as for `stream`.

        What the conversation shares with the one before is not computed again.
        """
        return self.generate(messages, **options)

    def close(self) -> None:
        """Let go of weights and caches."""
        self.executor.close()
        del self.engine, self.executor, self._decoder


def load(
    model: str | Path | None = None,
    options: RunOptions | str | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    **changes: Unpack[LoadOptions],
) -> Model:
    """Load a model.

    Args:
        model: A folder, a GGUF file, a hub id (`org/name`), or None for the pocket model that comes with the package.
        options: How to run it: `RunOptions`, or only the name of a device.
        revision: Branch, tag or commit of a hub id.
        offline: Use only what was downloaded before.
        progress: Called as progress(what, done, all) while weights are prepared and a GPU's kernels are compiled.
        **changes: Fields of `RunOptions`, such as `device="gpu"` or `context=4096`, in place of those in `options`.

    Raises:
        ModelNotFoundError, DownloadError: There is no such model, or it could not be fetched.
        InvalidModelError, UnsupportedModelError: Its files are damaged, or of a kind Halfbyte cannot run.
        UsageError: An option is unknown or out of range.
        DeviceError: There is no such device, or the model or the context does not fit it.
    """
    started = time.perf_counter()
    wanted = RunOptions.of(options, **changes)
    path = locate(model, revision, offline)
    checkpoint = open_checkpoint(path)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    tokenizer = Tokenizer(checkpoint.tokenizer_files())
    source = Runnable(Packed(checkpoint, wanted.weights) if wanted.weights else checkpoint)
    placed = place_first(wanted, spec, source, progress=progress)
    return Model(
        name=str(model or "pocket"), path=path, spec=spec, tokenizer=tokenizer, placed=placed,
        load_s=time.perf_counter() - started, notes=(*checkpoint.notes, *source.notes),
    )  # fmt: skip


def locate(model: str | Path | None, revision: str | None, offline: bool) -> Path:
    """The folder or file of a model as `load` takes it, downloaded if need be. Raises what `load` raises."""
    if model is None or (str(model) == POCKET.name and not Path(model).exists()):
        if revision:
            raise UsageError("a revision needs a model.", "Name one with its hub id.")
        return POCKET
    from halfbyte.checkpoint import hub

    return hub.resolve(str(model), revision=revision, offline=offline)
