"""Text to token ids and back, as a model folder's tokenizer files say.

`tokenizer.json` alone decides how text is cut and what is put around it (as in transformers 5, where `add_bos_token`
of tokenizer_config.json has no say beside it). The other files name the special tokens and hold the chat template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import InvalidModelError, TemplateError, UsageError
from halfbyte.text.files import TokenizerFiles, read_tokenizer_files

if TYPE_CHECKING:
    import tokenizers

    from halfbyte.text.template import ChatTemplate


class Tokenizer:
    """A model's tokenizer and chat template. Make one with `Tokenizer.from_folder`."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._path = files.path
        self._special_tokens = files.special_tokens
        self._chat_template = files.chat_template
        self._backend = _load(files)

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a model folder.

        Raises:
            ModelNotFoundError: there is no such folder.
            InvalidModelError: tokenizer.json is missing, or a tokenizer file is damaged.
        """
        return cls(read_tokenizer_files(Path(path)))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens written out in it are recognised.

        Args:
            text: Any text that UTF-8 can hold; UsageError otherwise.
            add_special_tokens: Whether to add what the model expects around a text, such as a BOS token.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The text is not valid Unicode: character {error.start} is a lone surrogate.", "Give it as UTF-8."
            ) from error
        with _blaming(self._path):
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that form no character become U+FFFD. UsageError for an id without a token."""
        ids = list(ids)
        for token_id in ids:
            if self.token(token_id) is None:
                raise UsageError(
                    f"Token id {token_id} is outside the vocabulary of {self.vocab_size} tokens.",
                    "Use ids that this model's tokenizer made.",
                )
        with _blaming(self._path):
            text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

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

    @property
    def is_byte_level(self) -> bool:
        """Whether each character of a token stands for one byte (GPT-2's alphabet)."""
        from tokenizers.decoders import ByteLevel

        return isinstance(self._backend.decoder, ByteLevel)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._chat_template is not None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """A conversation as the one text that the model was trained on.

        Args:
            messages: Dictionaries with `role` and mostly `content`, oldest first.
            add_generation_prompt: Whether to end where the assistant's answer begins.
            tools: JSON schemas of functions that the model may call, for templates that know them.

        Raises:
            UsageError: messages that are none.
            TemplateError: there is no template, or it refuses the conversation, fails, or does what it may not.
        """
        return self._template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> list[int]:
        """Token ids of `render_chat`'s text; no special tokens beyond those that the template writes."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, tools=tools)
        return self.encode(text, add_special_tokens=False)

    @cached_property
    def _template(self) -> ChatTemplate:
        from halfbyte.text.template import ChatTemplate

        if self._chat_template is None:
            raise TemplateError("This model has no chat template.", "Give the prompt as plain text (--raw).")
        return ChatTemplate(self._chat_template, self._special_tokens)


def _load(files: TokenizerFiles) -> tokenizers.Tokenizer:
    """The tokenizers library's object, without truncation or padding, with the named special tokens made special."""
    import tokenizers

    with _blaming(files.path):
        backend = tokenizers.Tokenizer.from_buffer(files.definition)
    backend.no_truncation()
    backend.no_padding()
    known = [text for text in files.special_tokens.values() if backend.token_to_id(text) is not None]
    backend.add_special_tokens(known)
    return backend


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
