"""Which GGUF model of a repository is meant: `org/name:Q4_K_M` names its quantization, or the file itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

from halfbyte.errors import ModelNotFoundError

PREFERRED = "Q4_K_M"
"""Of several models the one that most people want: the usual compromise of size and quality."""

_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+\.gguf", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_KIND = re.compile(r"(?:^|[-._/])((?:UD-)?I?Q\d\w*|BF16|F16|F32|FP16|FP32|MXFP4\w*)$", re.IGNORECASE)


def gguf_models(names: Iterable[str]) -> dict[str, list[str]]:
    """The models among files, each with the files it is split into, in order; by the name of the whole."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if _NAME.fullmatch(name) and ".." not in name and not _NO_MODEL.search(name):
            models.setdefault(_PART.sub("", name), []).append(name)
    return models


def parts(name: str) -> int:
    """How many files the model has of which this is one."""
    split = _PART.search(name)
    return int(split[1]) if split else 1


def label(model: str) -> str:
    """By what a model is named: its quantization, as in `Q4_K_M`, or its file."""
    kind = _KIND.search(model[: -len(".gguf")])
    return kind[1].upper() if kind else model


def named_models(names: Iterable[str]) -> dict[str, list[str]]:
    """The models among files, each with its files, by what it is asked for: its quantization if no other has that."""
    models = gguf_models(names)
    labels = Counter(map(label, models))
    return {model if labels[label(model)] > 1 else label(model): files for model, files in models.items()}


def choose(repo: str, names: Collection[str], wanted: str | None) -> list[str]:
    """The files of the one model that is meant.

    Args:
        names: All files of a repository.
        wanted: A quantization or a file, in any case; not needed where there is only one model.

    Raises:
        ModelNotFoundError: None is meant, or more than one; the hint lists what there is.
    """
    models = gguf_models(names)
    if not models:
        raise ModelNotFoundError(f"{repo} has no GGUF file.", f"Name it without :{wanted}.")
    if wanted is None:
        found = list(models)
    else:
        low = wanted.lower()
        found = [m for m in models if low in (label(m).lower(), m.lower(), m.lower().rpartition("/")[2])]
    if len(found) == 1:
        return models[found[0]]
    unique = list(named_models(names))
    what = f"has {len(models)} GGUF models" if wanted is None else f"has no one GGUF model called {wanted!r}"
    example = PREFERRED if PREFERRED in unique else unique[0]
    raise ModelNotFoundError(f"{repo} {what}.", f"Name one as {repo}:{example}; there are {', '.join(unique)}.")
