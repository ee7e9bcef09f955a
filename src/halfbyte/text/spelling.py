"""Which sequences of tokens spell a text: those whose joined text contains it, and no shorter part of which does.

A text need not begin or end where a token does, so the first token of a sequence may only end with the beginning of
the text. What remains of the text is then cut as the tokenizer cuts it. llama.cpp finds the sequence breakers of DRY
in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


def spellings(
    text: str, words: Iterable[tuple[int, str]], encode: Callable[[str], tuple[int, ...]]
) -> frozenset[tuple[int, ...]]:
    """Sequences of token ids that spell `text`.

    Args:
        text: Not empty.
        words: The tokens of the vocabulary and their texts.
        encode: Gives the tokens of a text that stands inside another.
    """
    beginnings = tuple(text[:size] for size in range(1, len(text)))
    rest = {beginning: encode(text.removeprefix(beginning)) for beginning in beginnings}
    found = {encode(text)}  # all that there is where no token holds a whole character of it
    for token_id, word in words:
        if text in word:
            found.add((token_id,))
        elif word.endswith(beginnings):
            found.update((token_id, *rest[beginning]) for beginning in beginnings if word.endswith(beginning))
    return frozenset(found)
