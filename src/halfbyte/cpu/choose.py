"""Tokens chosen by the native core, for all rows of a batch together and on all threads.

`halfbyte.sampling.Sampler` says what is chosen and is the oracle of the core. It also chooses where a setting is used
that the core does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from halfbyte.cpu import _native
from halfbyte.plan.drawing import Draw, Token
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from halfbyte.sampling.params import SAMPLERS
from halfbyte.sampling.sampler import invalid_logits

Float32 = NDArray[np.float32]

_BEYOND_PLAIN = {"typical_p"}
"""What the core knows of the settings that `SamplingParams.beyond_plain` lists."""


def known(params: SamplingParams) -> bool:
    """Whether the core does all that these settings ask for, in the order that they ask for."""
    in_order = list(params.active) == sorted(params.active, key=SAMPLERS.index)
    return in_order and _BEYOND_PLAIN.issuperset(params.beyond_plain)


def choose(program: _native.Program, logits: Float32, draws: Sequence[Draw]) -> list[Token]:
    """The token after each row of logits, or the error of a row without one.

    Args:
        program: Whose threads choose.
        logits: `[rows, vocab_size]`; not changed.
        draws: One for each row.
    """
    native = [row for row, draw in enumerate(draws) if known(draw.sampler.params)]
    chosen = dict(zip(native, _choose(program, logits, native, draws), strict=True))
    return [chosen[row] if row in chosen else draw.on_host(logits[row]) for row, draw in enumerate(draws)]


def _choose(program: _native.Program, logits: Float32, rows: list[int], draws: Sequence[Draw]) -> list[Token]:
    """The core's choices for some of the rows."""
    if not rows:
        return []
    some = logits if len(rows) == len(logits) else logits[rows]
    return [_token(choice) for choice in program.choose(some, [_row(draws[row]) for row in rows])]


def _token(choice: _native.Choice) -> Token:
    if not isfinite(choice.peak):
        return invalid_logits(choice.peak, choice.likeliest)
    return Sampled(choice.id, choice.logprob, tuple(choice.top))


_Row = tuple[_native.ChoiceSettings, int, NDArray[np.int64], Float32]


def _row(draw: Draw) -> _Row:
    """What the core takes for a row."""
    ids, counts = draw.sampler.counted(draw.prompt_ids, draw.generated_ids)
    return _settings(draw.sampler), len(draw.prompt_ids) + len(draw.generated_ids), ids, counts


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
