"""The tokenizer files of a model folder, read with suspicion.

They come from strangers: every size, type and nesting is checked before use, and whatever is wrong becomes an
`InvalidModelError` that names the file. Nothing in them is executed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from halfbyte.errors import InvalidModelError, ModelNotFoundError

MAX_DEFINITION_BYTES = 256 * 2**20
MAX_CONFIG_BYTES = 32 * 2**20
MAX_TEMPLATE_BYTES = 2**20
MAX_TEMPLATES = 100
MAX_TOKEN_CHARACTERS = 4096
MAX_ADDED_TOKENS = 2**16

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_CONVERT = "from_pretrained(folder).save_pretrained(folder) of transformers' AutoTokenizer writes one"
_DOWNLOAD = "Download the model again."


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before it is cut, as the `tokenizers` library describes one."""

    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says about its tokenizer.

    Attributes:
        path: The file to blame.
        definition: `tokenizer.json`.
        special_tokens: Named tokens, such as `eos_token`.
        chat_template: The default template.
        templates: Further templates by name, such as `tool_use`.
        added_tokens: Tokens that files beside `tokenizer.json` describe, in the order in which they get their ids.
        extra_tokens: Further ones, which count only where no token so spelt is added yet.
    """

    path: Path
    definition: bytes
    special_tokens: dict[str, str]
    chat_template: str | None
    templates: dict[str, str] = field(default_factory=dict)
    added_tokens: tuple[AddedToken, ...] = ()
    extra_tokens: tuple[AddedToken, ...] = ()


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads tokenizer.json and what lies beside it.

    Raises:
        ModelNotFoundError: there is no such folder.
        InvalidModelError: no tokenizer.json, or a file that is too large, unreadable or not what its name promises.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"No such folder: {folder}", "Give the folder that holds the model's files.")
    path = folder / "tokenizer.json"
    definition = _read(path, MAX_DEFINITION_BYTES)
    if definition is None:
        raise _missing(folder)
    config = _read_object(folder / "tokenizer_config.json")
    templates = _chat_templates(folder, config)
    added, named, extra = _tokens(folder, config)
    special = {name: token.content for name, token in named.items()}
    extra = (*named.values(), *extra)
    return TokenizerFiles(path, definition, special, templates.pop("default", None), templates, added, extra)


def _missing(folder: Path) -> InvalidModelError:
    message = f"{folder} has no tokenizer.json."
    others = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).exists()]
    if others:
        return InvalidModelError(message, f"{others[0]} alone is not enough: {_CONVERT}.")
    return InvalidModelError(message, f"Copy it from where the model came from, or: {_CONVERT}.")


# --- tokens


def _tokens(
    folder: Path, config: Mapping[str, object]
) -> tuple[tuple[AddedToken, ...], dict[str, AddedToken], tuple[AddedToken, ...]]:
    """Tokens with ids, named tokens, and others, each in transformers' order.

    special_tokens_map.json and added_tokens.json count only beside an old config, one without `added_tokens_decoder`.
    """
    path = folder / "tokenizer_config.json"
    named, extra = _named_tokens(path, config), [*_extra_tokens(path, config)]
    if "added_tokens_decoder" in config:
        numbered = _numbered_tokens(path, config["added_tokens_decoder"])
    else:
        beside = folder / "special_tokens_map.json"
        entries = _read_object(beside)
        named, extra = named | _named_tokens(beside, entries), [*extra, *_extra_tokens(beside, entries)]
        special = {token.content for token in (*named.values(), *extra)}
        numbered = _old_tokens(folder / "added_tokens.json", special)
    known = {token.content: token for token in numbered}
    named = {name: replace(known.get(token.content, token), special=True) for name, token in named.items()}
    return tuple(numbered), named, tuple(extra)


def _named_tokens(path: Path, entries: Mapping[str, object]) -> dict[str, AddedToken]:
    """Values of keys such as `eos_token`, also of names that only this model has."""
    tokens = {}
    for name, value in entries.items():
        if (name in NAMED_TOKENS and value is not None) or (name.endswith("_token") and isinstance(value, str)):
            tokens[name] = _token(path, name, value)
    table = entries.get("extra_special_tokens")
    if isinstance(table, dict):
        tokens |= {name: _token(path, f"extra_special_tokens {name[:80]}", value) for name, value in table.items()}
    order = {name: place for place, name in enumerate(NAMED_TOKENS)}
    return dict(sorted(tokens.items(), key=lambda item: order.get(item[0], len(order))))


def _extra_tokens(path: Path, entries: Mapping[str, object]) -> Iterator[AddedToken]:
    """Special tokens without a name; a table of extra tokens names them."""
    key = "extra_special_tokens" if entries.get("extra_special_tokens") else "additional_special_tokens"
    value = entries.get(key)
    values = [] if value is None or (isinstance(value, dict) and key == "extra_special_tokens") else value
    if not isinstance(values, list) or len(values) > MAX_ADDED_TOKENS:
        raise _wrong(path, f"{key} is {_shown(value)}, not a list of tokens")
    for each in values:
        yield _token(path, key, each)


def _numbered_tokens(path: Path, entries: object) -> list[AddedToken]:
    """`added_tokens_decoder`: descriptions of tokens by id."""
    if not isinstance(entries, dict) or len(entries) > MAX_ADDED_TOKENS:
        raise _wrong(path, f"added_tokens_decoder is {_shown(entries)}, not a table of tokens")
    keys = sorted(entries, key=lambda key: _id(path, key))
    return [_token(path, f"added_tokens_decoder {key}", entries[key]) for key in keys]


def _old_tokens(path: Path, special: set[str]) -> list[AddedToken]:
    """added_tokens.json: ids by text; a token is special if another file names it so."""
    entries = _read_object(path)
    for text, number in entries.items():
        _check_text(path, "a token", text)
        if type(number) is not int:
            raise _wrong(path, f"the id of {text[:80]!r} is {_shown(number)}")
    texts = sorted(entries, key=lambda text: int(str(entries[text])))[:MAX_ADDED_TOKENS]
    return [AddedToken(text, special=text in special, normalized=text not in special) for text in texts]


def _id(path: Path, key: str) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 10:
        raise _wrong(path, f"{key[:80]!r} is not the id of a token")
    return int(key)


def _token(path: Path, key: str, value: object) -> AddedToken:
    """A token from its text or its description."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise _wrong(path, f"{key} is {_shown(value)}, not text")
    _check_text(path, key, text)
    if not isinstance(value, dict):
        return AddedToken(text)
    special = value.get("special", not key.startswith("added_tokens_decoder"))
    flags = {name: value.get(name, False) for name in ("lstrip", "rstrip", "single_word")}
    flags |= {"special": special, "normalized": value.get("normalized", not special)}
    wrong = [name for name, flag in flags.items() if not isinstance(flag, bool)]
    if wrong:
        raise _wrong(path, f"{wrong[0]} of {key} is {_shown(flags[wrong[0]])}, not true or false")
    return AddedToken(text, **flags)


def _check_text(path: Path, key: str, text: str) -> None:
    if len(text) > MAX_TOKEN_CHARACTERS:
        raise _wrong(path, f"{key} is {len(text):,} characters long; the limit is {MAX_TOKEN_CHARACTERS:,}")
    _check_unicode(path, key, text)


def _check_unicode(path: Path, key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _wrong(path, f"{key} is not valid Unicode: character {error.start} is a lone surrogate") from error


# --- templates


def _chat_templates(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """Chat templates by name, the usual one as "default"; template files come before entries of a configuration."""
    files = {"default": folder / "chat_template.jinja"} | {
        path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))[:MAX_TEMPLATES]
    }
    read = {name: (path, _read(path, MAX_TEMPLATE_BYTES)) for name, path in files.items()}
    templates = {name: _decode(path, data) for name, (path, data) in read.items() if data is not None}
    for path, entries in _entries(folder, config):
        templates = templates or _template_entry(path, entries)
    return templates


def _entries(folder: Path, config: Mapping[str, object]) -> Iterator[tuple[Path, Mapping[str, object]]]:
    path = folder / "chat_template.json"
    yield path, _read_object(path)
    yield folder / "tokenizer_config.json", config


def _template_entry(path: Path, entries: Mapping[str, object]) -> dict[str, str]:
    """`chat_template`: text, or a list of {name, template}."""
    value = entries.get("chat_template")
    if value is None:
        return {}
    listed = value if isinstance(value, list) else [{"name": "default", "template": value}]
    if len(listed) > MAX_TEMPLATES:
        raise _wrong(path, f"chat_template lists {len(listed):,} templates")
    templates: dict[str, str] = {}
    for entry in listed:
        name = entry.get("name") if isinstance(entry, dict) else None
        template = entry.get("template") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or not isinstance(template, str):
            raise _wrong(path, f"chat_template is {_shown(value)}, not text or a list of named texts")
        if len(template) > MAX_TEMPLATE_BYTES:
            raise _wrong(
                path, f"chat_template is {len(template):,} characters long; the limit is {MAX_TEMPLATE_BYTES:,}"
            )
        _check_unicode(path, "chat_template", template)
        templates[name] = template
    return templates


# --- reading


def _read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty if there is no such file."""
    data = _read(path, MAX_CONFIG_BYTES)
    if data is None:
        return {}
    try:
        value = json.loads(_decode(path, data))
    except RecursionError as error:
        raise _wrong(path, "its JSON is nested too deeply") from error
    except ValueError as error:
        raise _wrong(path, f"it is not JSON ({str(error)[:200]})") from error
    if not isinstance(value, dict):
        raise _wrong(path, f"it holds {_shown(value)}, not a JSON object")
    return value


def _read(path: Path, limit: int) -> bytes | None:
    """The bytes of a regular file; None if there is none."""
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise _wrong(path, "it is not a regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _wrong(path, f"it cannot be read ({error.strerror})", "Check the file's permissions.") from error
    if len(data) > limit:
        raise _wrong(path, f"it is larger than {limit // 2**20} MiB")
    return data


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(path, f"byte {error.start} is not UTF-8") from error


def _wrong(path: Path, what: str, hint: str = _DOWNLOAD) -> InvalidModelError:
    return InvalidModelError(f"{path} is damaged: {what}.", hint)


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "a JSON object" if isinstance(value, dict) else "a JSON list"
    return repr(value)[:80]
