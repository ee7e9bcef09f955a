"""Which tensor gets which format."""

from __future__ import annotations

from halfbyte.checkpoint.packed import Recipe, matrices

_EMBED = "embed_tokens.weight"
_HEAD = "lm_head.weight"


def uniform(format_name: str, *, embed_format: str | None = None, head_format: str | None = None) -> Recipe:
    """Every matrix in one format; norms and other vectors stay as they are stored.

    Args:
        format_name: The format of all matrices, such as `q4g32`.
        embed_format: Another one for the embedding table (which is also the output matrix where they are tied).
        head_format: Another one for the output matrix, where it is a tensor of its own.

    Raises:
        UnsupportedModelError: No format has one of these names.
    """
    ordinary = matrices(format_name)
    special = {
        _EMBED: matrices(embed_format or format_name),
        _HEAD: matrices(head_format or format_name),
    }

    def recipe(name: str, shape: tuple[int, ...]) -> str | None:
        chosen = next((special[suffix] for suffix in special if name.endswith(suffix)), ordinary)
        return chosen(name, shape)

    return recipe
