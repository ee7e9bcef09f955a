"""Files that hold a prompt as the KV cache of a model does, so that another process need not compute it.

A file is in the safetensors layout: `token_ids`, the blocks of every cache tensor as bytes, and in its metadata what
they were computed with. It is read as plain arrays, and refused unless all of that is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halfbyte.atomic import new_path
from halfbyte.checkpoint.adapter import ADAPTER_CONFIG_NAME
from halfbyte.checkpoint.manifest import MANIFEST_NAME
from halfbyte.checkpoint.safetensors import SafetensorsFile, write_tensors
from halfbyte.errors import InvalidModelError, UsageError
from halfbyte.models.spec import ModelSpec
from halfbyte.options import RunOptions
from halfbyte.plan import Executor, Plan
from halfbyte.runtime import EngineLoop, SamplingParams
from halfbyte.runtime.cached_prompt import CachedPrompt

KIND = "halfbyte prompt cache 1"
_TOKENS = "token_ids"
_OTHERS = {"model": "another model", "adapters": "other adapters"}
_SAMPLES, _SAMPLE_NBYTES = 64, 4096


def made_with(
    path: Path, spec: ModelSpec, options: RunOptions, plan: Plan, adapters: Mapping[str, Path]
) -> dict[str, str]:
    """What the values in a model's caches depend on beside the tokens: for its prompts' files, in the order of telling.

    Weights are known by their sizes and by samples of their bytes, as reading all of them would take longer than many a
    prompt.

    Args:
        adapters: Folders of the adapters that count, by what they are: `merged` into the weights, or `beside` them.
    """
    changed = [part for role, folder in adapters.items() for part in (role.encode(), *_of_adapter(folder))]
    formats = sorted((tensor.name, tensor.dtype) for tensor in plan.of_kind("weight") if tensor.name in spec.shapes)
    usual = Counter(dtype for _, dtype in formats).most_common(1)[0][0]
    caches = sorted({plan.tensors[name].dtype for group in plan.groups for name in group.names})
    return {
        "model": _digest(repr(replace(spec, adapters=None)).encode(), *_samples(path)),
        "adapters": _digest(*changed),
        "weights": f"{usual} ({_digest(repr(formats).encode())[:8]})",
        "kv_dtype": " ".join(caches),
        "activations": options.activations or "int8",
        "device": options.device,
        "block_size": str(plan.block_size),
    }


def save(
    path: Path, loop: EngineLoop, executor: Executor, token_ids: list[int], about: Mapping[str, str], adapter: int = 0
) -> list[int]:
    """Write a prompt's file, and return the tokens of its full blocks. The prompt is computed as far as it must be.

    A file that is there is replaced once the new one is complete.

    Raises:
        ContextFullError: The prompt leaves no room in the context.
        HalfbyteError: The disk is full or the file cannot be written.
    """
    held = loop.cached_prompt(token_ids, executor, adapter)
    if len(held.token_ids) + executor.plan.block_size <= len(token_ids):
        list(loop.stream(token_ids, SamplingParams(), max_tokens=1, adapter=adapter))
        held = loop.cached_prompt(token_ids, executor, adapter)
    _write(path, held, about)
    return list(held.token_ids)


def load(path: Path, loop: EngineLoop, executor: Executor, about: Mapping[str, str], adapter: int = 0) -> list[int]:
    """Put a file's prompt into the caches, and return its tokens. Raises what `read` does; UsageError for no room."""
    prompt = replace(read(path, about, executor.plan), adapter=adapter)
    loop.restore(prompt, executor)
    return list(prompt.token_ids)


def read(path: Path, about: Mapping[str, str], plan: Plan) -> CachedPrompt:
    """The prompt of a file.

    Raises:
        UsageError: The file holds something else, or was made with something else than `about` says.
        InvalidModelError: It is damaged.
    """
    file = SafetensorsFile(path)
    if file.metadata.get("kind") != KIND:
        raise UsageError(f"{path} is not a prompt cache of this version.", "Choose another file, or delete it.")
    for name, ours in about.items():
        theirs = file.metadata.get(name, "")
        if theirs != ours:
            what = _OTHERS.get(name) or f"{name}={theirs}; this model has {ours}"
            raise UsageError(f"{path} was made with {what}.", "Use another file, or delete it to have it made anew.")
    prompt = CachedPrompt(_token_ids(file), int(file.metadata.get("rope_set") == "1"), _blocks(file, plan))
    _check(file, prompt, plan)
    return prompt


def _write(path: Path, prompt: CachedPrompt, about: Mapping[str, str]) -> None:
    tensors: dict[str, NDArray[np.generic]] = {_TOKENS: np.array(prompt.token_ids, np.int32), **prompt.blocks}
    nbytes = sum(values.nbytes for values in tensors.values())
    with new_path(path, nbytes, overwrite=True) as scratch:
        write_tensors(scratch, tensors, {"kind": KIND, "rope_set": str(prompt.rope_set), **about})


def _token_ids(file: SafetensorsFile) -> tuple[int, ...]:
    entry = file.entries.get(_TOKENS)
    if entry is None or entry.dtype != "I32" or len(entry.shape) != 1:
        raise _damaged(file, "it has no list of token ids")
    ids: list[int] = file.tensor(_TOKENS).tolist()
    return tuple(ids)


def _blocks(file: SafetensorsFile, plan: Plan) -> dict[str, NDArray[np.uint8]]:
    names = {tensor.name for tensor in plan.of_kind("cache")}
    if file.entries.keys() != names | {_TOKENS} or any(file.entries[name].dtype != "U8" for name in names):
        raise _damaged(file, "it does not have the bytes of each cache")
    return {name: file.tensor(name).view(np.uint8) for name in names}


def _check(file: SafetensorsFile, prompt: CachedPrompt, plan: Plan) -> None:
    length, vocab_size = len(prompt.token_ids), plan.vocab_size
    if length % plan.block_size or not all(0 <= token < vocab_size for token in prompt.token_ids):
        raise _damaged(file, "its token ids are impossible")
    counts = dict.fromkeys(plan.states.names if plan.states else (), min(length, 1))
    for group in plan.groups:
        blocks = length // plan.block_size - group.first_seen(length, plan.block_size)
        counts |= dict.fromkeys(group.names, blocks)
    for name, count in counts.items():
        if prompt.blocks[name].ndim != 2 or prompt.blocks[name].shape[0] != count:
            raise _damaged(file, f"{name} has the shape {prompt.blocks[name].shape} instead of {count} blocks")


def _damaged(file: SafetensorsFile, why: str) -> InvalidModelError:
    return InvalidModelError(f"{file.path} is damaged: {why}.", "Delete it to have it made anew.")


def _samples(path: Path) -> list[bytes]:
    """The sizes of a model's weight files, and bytes from evenly spaced places in each."""
    found: list[bytes] = []
    manifest = path / MANIFEST_NAME
    if manifest.is_file():
        found.append(manifest.read_bytes())
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        found.append(str(size).encode())
        with file.open("rb") as opened:
            for place in range(_SAMPLES):
                opened.seek(size * place // _SAMPLES)
                found.append(opened.read(_SAMPLE_NBYTES))
    return found


def _of_adapter(path: Path) -> list[bytes]:
    """What tells an adapter from others: its configuration, and samples of its bytes."""
    return [(path / ADAPTER_CONFIG_NAME).read_bytes(), *_samples(path)]


def _digest(*parts: bytes) -> str:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
