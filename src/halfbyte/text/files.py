"""The tokenizer files of a model folder, read with suspicion.

They come from strangers: every size, type and nesting is checked before use, and whatever is wrong becomes an
`InvalidModelError` that names the file. Nothing in them is executed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import InvalidModelError, ModelNotFoundError

MAX_DEFINITION_BYTES = 256 * 2**20
MAX_CONFIG_BYTES = 32 * 2**20
MAX_TEMPLATE_BYTES = 2**20

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_CONVERT = "from_pretrained(folder).save_pretrained(folder) of transformers' AutoTokenizer writes one"
_DOWNLOAD = "Download the model again."


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says about its tokenizer: `tokenizer.json` as bytes, named special tokens, the chat template."""

    path: Path
    definition: bytes
    special_tokens: dict[str, str]
    chat_template: str | None


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
    return TokenizerFiles(path, definition, _special_tokens(folder, config), _chat_template(folder, config))


def _missing(folder: Path) -> InvalidModelError:
    message = f"{folder} has no tokenizer.json."
    others = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).exists()]
    if others:
        return InvalidModelError(message, f"{others[0]} alone is not enough: {_CONVERT}.")
    return InvalidModelError(message, f"Copy it from where the model came from, or: {_CONVERT}.")


def _special_tokens(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """Named special tokens; special_tokens_map.json wins only beside an old config without `added_tokens_decoder`."""
    tokens = _named_tokens(folder / "tokenizer_config.json", config)
    if "added_tokens_decoder" not in config:
        path = folder / "special_tokens_map.json"
        tokens |= _named_tokens(path, _read_object(path))
    return tokens


def _named_tokens(path: Path, entries: Mapping[str, object]) -> dict[str, str]:
    tokens = {}
    for name in NAMED_TOKENS:
        value = entries.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
        elif value is not None:
            raise _wrong(path, f"{name} is {_shown(value)}, not text")
    return tokens


def _chat_template(folder: Path, config: Mapping[str, object]) -> str | None:
    path = folder / "chat_template.jinja"
    data = _read(path, MAX_TEMPLATE_BYTES)
    if data is not None:
        return _decode(path, data)
    path = folder / "chat_template.json"
    template = _template_entry(path, _read_object(path))
    return template if template is not None else _template_entry(folder / "tokenizer_config.json", config)


def _template_entry(path: Path, entries: Mapping[str, object]) -> str | None:
    """`chat_template`: text, or a list of {name, template} of which "default" is taken."""
    value = entries.get("chat_template")
    if isinstance(value, list):
        named = [entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        value = named[0].get("template") if named else None
    if value is not None and not isinstance(value, str):
        raise _wrong(path, f"chat_template is {_shown(value)}, not text")
    if value is not None and len(value) > MAX_TEMPLATE_BYTES:
        raise _wrong(path, f"chat_template is {len(value):,} characters long; the limit is {MAX_TEMPLATE_BYTES:,}")
    return value


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
        raise _wrong(path, f"it is not JSON ({error})") from error
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
