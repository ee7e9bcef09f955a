"""What shells complete besides commands, options and choices: names of models, formats, and kinds of GGUF files.

`halfbyte --install-completion` sets a shell up. Nothing is opened or downloaded for an answer, so that it is quick.
"""

from __future__ import annotations


def models(incomplete: str) -> list[str]:
    """The pocket model, short names of the catalog, and what was downloaded."""
    pocket = ["pocket"] if "pocket".startswith(incomplete) else []
    return [*pocket, *short_names(incomplete), *downloaded(incomplete)]


def short_names(incomplete: str) -> list[str]:
    """Short names of the catalog."""
    from halfbyte.models.catalog import CATALOG

    return [name for name in CATALOG if name.startswith(incomplete)]


def downloaded(incomplete: str) -> list[str]:
    """Models in the cache, by what `list` calls them."""
    from halfbyte.checkpoint.hub import installed

    return list(dict.fromkeys(model.id for model in installed() if model.id.startswith(incomplete)))


def formats(incomplete: str) -> list[str]:
    """Formats of weights."""
    from halfbyte.formats import format_names

    return [name for name in format_names() if name.startswith(incomplete)]


def kinds(incomplete: str) -> list[str]:
    """Kinds of GGUF files."""
    from halfbyte.checkpoint.gguf.writer import KINDS

    return [name for name in KINDS if name.startswith(incomplete)]
