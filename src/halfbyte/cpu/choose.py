"""Tokens chosen by the native core, for all rows of a batch together and on all threads.

`halfbyte.sampling.Sampler` says what is chosen and is the oracle of the core. It also chooses where a setting is used
that the core does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from halfbyte.cpu import _native
from halfbyte.errors import HalfbyteError
from halfbyte.plan.drawing import Draw, Token, UInt32
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from halfbyte.sampling.sampler import invalid_logits

Float32 = NDArray[np.float32]

_BEYOND_PLAIN = {"typical_p"}
"""What the core knows of the settings that `SamplingParams.beyond_plain` lists."""


def known(params: SamplingParams) -> bool:
    """Whether the core does all that these settings ask for, in the order that they ask for."""
    return params.in_default_order and _BEYOND_PLAIN.issuperset(params.beyond_plain)


def choose(program: _native.Program, logits: Float32, draws: Sequence[Draw]) -> list[Token]:
    """The token after each row of logits, or the error of a row without one.

    Args:
        program: Whose threads choose.
        logits: `[rows, vocab_size]`; not changed.
        draws: One for each row.
    """
    tokens: dict[int, Token] = {}
    asked: dict[int, _Row] = {}
    for row, draw in enumerate(draws):
        if not known(draw.sampler.params):
            tokens[row] = draw.on_host(logits[row])
            continue
        try:
            asked[row] = _row(draw, draw.mask(logits.shape[1]))
        except HalfbyteError as error:
            tokens[row] = error
    tokens |= zip(asked, _choose(program, logits, asked), strict=True)
    return [tokens[row] for row in range(len(draws))]


def _choose(program: _native.Program, logits: Float32, asked: Mapping[int, _Row]) -> list[Token]:
    """The core's choices for some of the rows."""
    if not asked:
        return []
    some = logits if len(asked) == len(logits) else logits[list(asked)]
    return [_token(choice) for choice in program.choose(some, list(asked.values()))]


def _token(choice: _native.Choice) -> Token:
    if not isfinite(choice.peak):
        return invalid_logits(choice.peak, choice.likeliest)
    return Sampled(choice.id, choice.logprob, tuple(choice.top))


_Row = tuple[_native.ChoiceSettings, int, NDArray[np.int64], Float32, UInt32 | None]


def _row(draw: Draw, allowed: UInt32 | None) -> _Row:
    """What the core takes for a row."""
    ids, counts = draw.sampler.counted(draw.prompt_ids, draw.generated_ids)
    return _settings(draw.sampler), len(draw.prompt_ids) + len(draw.generated_ids), ids, counts, allowed


def _settings(sampler: Sampler) -> _native.ChoiceSettings:
    params = sampler.params
    return _native.ChoiceSettings(
        temperature=0.0 if params.greedy else params.temperature,
        top_k=params.top_k,
        typical_p=params.typical_p,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        presence=params.presence_penalty,
        frequency=params.frequency_penalty,
        seed=sampler.seed,
        logprobs=params.logprobs,
        bias_ids=np.array(list(params.logit_bias), np.int64),
        bias=np.array(list(params.logit_bias.values()), np.float32),
    )
