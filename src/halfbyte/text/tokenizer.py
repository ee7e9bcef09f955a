"""Text to token ids and back, as a model folder's tokenizer files say.

`tokenizer.json` alone decides how text is cut and what is put around it (as in transformers 5, where `add_bos_token`
of tokenizer_config.json has no say beside it). The other files name further tokens and hold the chat templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import InvalidModelError, TemplateError, UsageError
from halfbyte.text.definition import check_definition
from halfbyte.text.detokenize import Detokenizer, Step, decoder_steps, spelt_in_bytes, stands_for_bytes
from halfbyte.text.files import TokenizerFiles, read_tokenizer_files
from halfbyte.text.marking import Marker, without_marks
from halfbyte.text.spelling import spellings

if TYPE_CHECKING:
    import tokenizers

    from halfbyte.text.template import ChatTemplate


_ASKED = {"role": "user", "content": "?"}
_SAID = {"role": "assistant", "content": "halfbyte"}
_CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "halfbyte1", "type": "function", "function": {"name": "halfbyte", "arguments": {}}}],
}


class Tokenizer:
    """A model's tokenizer and chat template. Make one with `Tokenizer.from_folder`."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._path = files.path
        self._special_tokens = files.special_tokens
        self._chat_template = files.chat_template
        self._templates = files.templates
        self._compiled: dict[str, ChatTemplate] = {}
        self._growth = check_definition(files.path, files.definition)
        self._backend = _load(files)
        self._spellings = lru_cache(maxsize=64)(self._found_spellings)

    def __repr__(self) -> str:
        return f"<Tokenizer of {self.vocab_size:,} tokens{', with a chat template' * self.has_chat_template}>"

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a model folder.

        Raises:
            ModelNotFoundError: there is no such folder.
            InvalidModelError: tokenizer.json is missing, or a tokenizer file is damaged.
        """
        return cls(read_tokenizer_files(Path(path)))

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: Whether to add what the model expects around a text, such as a BOS token.
            parse_special: Whether a special token written out in the text becomes that token; otherwise it is text
                like any other. Added tokens that are not special are recognised either way.

        Raises:
            UsageError: A text that UTF-8 cannot hold.
        """
        self._check_text(text)
        backend = self._backend if parse_special else self._without_special
        with self.blamed():
            ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that form no character become U+FFFD.

        Args:
            skip_special_tokens: Whether special tokens, such as those around messages, are left out.

        Raises:
            UsageError: An id without a token.
        """
        ids = list(ids)
        for token_id in ids:
            if self.token(token_id) is None:
                raise UsageError(
                    f"Token id {token_id} is outside the vocabulary of {self.vocab_size} tokens.",
                    "Use ids that this model's tokenizer made.",
                )
        with self.blamed():
            text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def definition(self) -> bytes:
        """A tokenizer.json that says all that the model's files say together."""
        return self._backend.to_str().encode()

    def detokenizer(self) -> Detokenizer:
        """What turns tokens into text as they come: for one text, special tokens left out."""
        return Detokenizer(self._decoder_steps, lambda: self._is_spelt_in_bytes)

    def blamed(self) -> AbstractContextManager[None]:
        """Around calls into the `tokenizers` library: what it raises is an InvalidModelError about the file."""
        return _blaming(self._path)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included; a model's embedding may have more rows."""
        size: int = self._backend.get_vocab_size(with_added_tokens=True)
        return size

    def token_id(self, text: str) -> int | None:
        """The id of the token that is spelt so in the vocabulary; None if there is none."""
        token_id: int | None = self._backend.token_to_id(text)
        return token_id

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it; None if no token has this id."""
        if not 0 <= token_id < 2**32:
            return None
        text: str | None = self._backend.id_to_token(token_id)
        return text

    def spellings(self, text: str) -> frozenset[tuple[int, ...]]:
        """The sequences of tokens whose joined text contains `text`, which is not empty; see `text.spelling`.

        Raises:
            UsageError: A text that UTF-8 cannot hold.
        """
        self._check_text(text)
        return self._spellings(text)

    def encode_inside(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Ids of a text that stands inside another: without what is put before a text's beginning."""
        lead = "\n"
        before = self.encode(lead, add_special_tokens=False)
        ids = self.encode(lead + text, add_special_tokens=False, parse_special=parse_special)
        if ids[: len(before)] == before:
            return ids[len(before) :]
        return self.encode(text, add_special_tokens=False, parse_special=parse_special)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, in UTF-8, perhaps part of a character.

        A special token has its own text. Empty for an id that no token has, and for one that shows nothing by itself.
        """
        token = self.token(token_id)
        if token is None:
            return b""
        if token_id in self.special_ids:
            return token.encode()
        found = stands_for_bytes(self._decoder_steps, token)
        return _whole(self._word_of.get(token_id, ""), token) if found is None else found

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens: those that `decode` leaves out."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text, as tokenizer_config.json names it."""
        return self._special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text, as tokenizer_config.json names it; a model may have further stop tokens."""
        return self._special_tokens.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of `eos_token`; None if it is not named or not in the vocabulary."""
        return None if self.eos_token is None else self.token_id(self.eos_token)

    def with_eos(self, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
        """A model's stop tokens and those that its other files name: `eos_token`, and what the chat template ends
        an assistant's message with."""
        ends = [] if self.eos_token_id is None else [self.eos_token_id]
        return tuple(dict.fromkeys([*stop_token_ids, *ends, *self._turn_ends]))

    @cached_property
    def _turn_ends(self) -> tuple[int, ...]:
        """Ids of the special tokens that the chat template writes at the end of an answer and of a call."""
        special = {text: token_id for token_id in self.special_ids if (text := self.token(token_id))}
        found: list[int] = []
        for message in (_SAID, _CALLED):
            try:
                text = self.render_chat([_ASKED, message], add_generation_prompt=False)
            except (TemplateError, UsageError):
                continue
            while end := next((token for token in special if text.rstrip().endswith(token)), None):
                found.append(special[end])
                text = text.rstrip().removesuffix(end)
                if message is _CALLED:  # what stands before may end one call of several
                    break
        return tuple(found)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._chat_template is not None

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The Jinja2 source that `render_chat` uses, with tools or without; None if there is none."""
        return self._source(self._template_name(tools))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        continue_final_message: bool | str = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """A conversation as the one text that the model was trained on.

        Args:
            messages: Dictionaries with `role` and mostly `content`, oldest first.
            add_generation_prompt: Whether to end where the assistant's answer begins.
            tools: JSON schemas of functions that the model may call, for templates that know them.
            continue_final_message: Whether to end within the last message, right after its `content`, so that the model
                goes on with it; or the part of the message to go on with, such as `reasoning_content`. Then
                `add_generation_prompt` does not count.
            variables: What else the template reads: `{"enable_thinking": False}` for Qwen 3 and others,
                `{"reasoning_effort": "low"}` for gpt-oss. Those that a template does not know change nothing.

        Raises:
            UsageError: messages that are none, no text to continue, or a variable that cannot be set.
            TemplateError: there is no template, or it refuses the conversation, fails, or does what it may not.
        """
        return self._template_for(tools).render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools,
            continue_final_message=continue_final_message, variables=variables,
        )  # fmt: skip

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        continue_final_message: bool | str = False,
        variables: Mapping[str, object] | None = None,
        parse_special: bool = False,
    ) -> list[int]:
        """Token ids of `render_chat`'s text; no special tokens beyond those that the template writes.

        Args:
            messages, add_generation_prompt, tools, continue_final_message, variables: As for `render_chat`.
            parse_special: Whether a special token written out in a message or a tool becomes that token. A stranger's
                message can then end its own turn and speak as the system.

        Raises:
            UsageError: As `render_chat`; a message spells a special token, and the template changes it so that it
                cannot be told from its own.
            TemplateError: As `render_chat`.
        """
        render = partial(
            self.render_chat,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        text = render(messages, tools=tools, variables=variables)
        ids = self.encode(text, add_special_tokens=False)
        special = [] if parse_special else [self.token(token) or "" for token in self.special_ids.intersection(ids)]
        marker = Marker.found(special, [messages, tools, variables])
        if marker is None:
            return ids
        marked = render(marker.marked(messages), tools=marker.marked(tools), variables=marker.marked(variables))
        if without_marks(marked) != without_marks(text):
            raise _unwritable(marker.first)
        pieces = enumerate(marker.pieces(marked))
        return [token for place, (piece, plain) in pieces for token in self._piece_ids(piece, plain, place == 0)]

    def _piece_ids(self, piece: str, plain: bool, is_first: bool) -> list[int]:
        """Ids of a piece of a text; inside one, without what the tokenizer puts before a text's beginning."""
        if is_first:
            ids = self.encode(piece, add_special_tokens=False, parse_special=not plain)
        else:
            ids = self.encode_inside(piece, parse_special=not plain)
        if plain and self.token_id(piece) in ids:
            raise _unwritable(piece)
        return ids

    def _template_for(self, tools: object) -> ChatTemplate:
        """The compiled template: `tool_use` where there are tools and it exists, else the default one."""
        name = self._template_name(tools is not None)
        source = self._source(name)
        if source is None:
            names = f" but {', '.join(sorted(self._templates))}" if self._templates else ""
            raise TemplateError(f"This model has no chat template{names}.", "Give the prompt as plain text (raw=True).")
        if name not in self._compiled:
            from halfbyte.text.template import ChatTemplate

            self._compiled[name] = ChatTemplate(source, self._special_tokens)
        return self._compiled[name]

    def _template_name(self, tools: bool) -> str:
        return "tool_use" if tools and "tool_use" in self._templates else "default"

    def _source(self, name: str) -> str | None:
        return self._templates.get(name, self._chat_template)

    def _check_text(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The text is not valid Unicode: character {error.start} is a lone surrogate.", "Give it as UTF-8."
            ) from error
        self._growth.check(self._path, text)

    @cached_property
    def _without_special(self) -> tokenizers.Tokenizer:
        """The same tokenizer that takes special tokens in a text for text; it shares the vocabulary."""
        import tokenizers

        backend = tokenizers.Tokenizer(self._backend.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            if getattr(self._backend, part) is not None:
                setattr(backend, part, getattr(self._backend, part))
        backend.add_tokens([token for _, token in sorted(self._backend.get_added_tokens_decoder().items())])
        backend.encode_special_tokens = True
        return backend

    def _found_spellings(self, text: str) -> frozenset[tuple[int, ...]]:
        return spellings(text, self._words, lambda rest: tuple(self.encode_inside(rest, parse_special=True)))

    @cached_property
    def _words(self) -> tuple[tuple[int, str], ...]:
        """Every token and its text inside a longer one: what it adds to a text that ends with a line break."""
        lead = self.encode("\n", add_special_tokens=False)
        ids = sorted(self._backend.get_vocab(with_added_tokens=True).values())
        with self.blamed():
            before: str = self._backend.decode(lead, skip_special_tokens=False)
            texts = self._backend.decode_batch([[*lead, token] for token in ids], skip_special_tokens=False)
        return tuple((token, text.removeprefix(before)) for token, text in zip(ids, texts, strict=True))

    @cached_property
    def _word_of(self) -> dict[int, str]:
        return dict(self._words)

    @cached_property
    def _decoder_steps(self) -> tuple[Step, ...]:
        return decoder_steps(self._backend)

    @cached_property
    def _is_spelt_in_bytes(self) -> bool:
        """Whether every token that shows text is spelt in GPT-2's alphabet."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return all(spelt_in_bytes(token) for token, index in vocabulary.items() if index not in self.special_ids)


def _load(files: TokenizerFiles) -> tokenizers.Tokenizer:
    """The tokenizers library's object, without truncation or padding, with the tokens that other files name."""
    import tokenizers

    with _blaming(files.path):
        backend = tokenizers.Tokenizer.from_buffer(files.definition)
        backend.no_truncation()
        backend.no_padding()
        known = backend.get_added_tokens_decoder().values()
        described = {repr(token) for token in known}
        added = [tokenizers.AddedToken(**vars(token)) for token in files.added_tokens]
        backend.add_tokens([token for token in added if repr(token) not in described])
        texts = {token.content for token in known} | {token.content for token in files.added_tokens}
        extra = {token.content: token for token in files.extra_tokens if token.content not in texts}
        backend.add_tokens([tokenizers.AddedToken(**vars(token)) for token in extra.values()])
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        backend.add_special_tokens([text for text in files.special_tokens.values() if text not in special])
    return backend


def _whole(text: str, token: str) -> bytes:
    """A token's text, unless part of it is no character by itself."""
    return b"" if "\ufffd" in text and "\ufffd" not in token else text.encode()


def _unwritable(token: str) -> UsageError:
    return UsageError(
        f"A message spells the special token {token!r}, which cannot be written as plain text in this model's prompts.",
        "Take it out of the message.",
    )


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Whatever the library raises is the fault of the file that it was made from."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is not an Exception
        reason = " ".join(str(error).split())[:200]
        raise InvalidModelError(f"{path} is damaged: {reason}.", "Download the model again.") from error
