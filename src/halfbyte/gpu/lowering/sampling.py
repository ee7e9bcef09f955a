"""The programs that choose the next token after each row of logits.

logits → what may come → penalties, bias → temperature → top-k → top-p → min-p → XTC → draw

What they know of a sequence lies in the row of its slot.
"""

from __future__ import annotations

from halfbyte.gpu.lowering.builder import dispatch
from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.lowering.program import Axis, Program, Ref, grid, padded
from halfbyte.gpu.shaders import rules
from halfbyte.plan.drawing import mask_words
from halfbyte.plan.plan import LOGITS
from halfbyte.sampling.filters import XTC_STREAM

PARAMS = (
    "TEMPERATURE",
    "TOP_K",
    "TOP_P",
    "MIN_P",
    "REPETITION",
    "PRESENCE",
    "FREQUENCY",
    "SEED",
    "SEED_HIGH",
    "PENALIZES",
    "MASKS",
    "XTC_BELOW",
    "XTC_THRESHOLD",
)
"""What words of a slot in the buffer `sampling/params` hold: float32s, both words of the seed, whether the logits are
changed by penalties or biases, whether the mask behind them says what may come; XTC excludes top choices where a random
number is below an integer."""
MASK = 16
"""Words of a slot before its mask."""
RING = 8
"""Steps whose results the GPU keeps."""
RESULT_NBYTES = 8
"""A token's id, then its log-probability."""
SAMPLING_PROGRAMS = tuple(
    f"sample.{kind}{penalized}{masked}"
    for masked in ("", ".masked")
    for penalized in ("", ".penalized")
    for kind in ("greedy", "random")
)


def sampling_ref(name: str) -> Ref:
    """A buffer of the sampling programs: params, counts, bias, result and what they leave for each other."""
    return Ref("sampling", f"sampling/{name}")


def params_pitch(vocab_size: int) -> int:
    """Words of a slot in the buffer `sampling/params`: what `PARAMS` names, then a bit for each token that may come."""
    return MASK + mask_words(vocab_size)


def lower_sampling(context: LoweringContext, name: str) -> Program:
    """One of `SAMPLING_PROGRAMS`: tokens are the most likely ones or drawn, with penalties, biases, masks or without.

    A program that draws, penalizes or masks does so only for the sequences that ask for it.
    """
    greedy, penalized, masked = (part in name for part in ("greedy", "penalized", "masked"))
    words = context.plan.tensors[LOGITS].shape[1]
    pitch = params_pitch(words)
    sizes = rules.sample(context.config, vocabulary=words)
    slots, rows, groups, logits = context.plan.sequences, context.logit_rows, sizes["GROUPS"], context.logits()
    nbytes = {
        "parts": rows * groups * 16,
        "found": rows * 4,
        "params": slots * pitch * 4,
        "result": RING * rows * RESULT_NBYTES,
        **(dict.fromkeys(("counts", "bias"), slots * words * 4) if penalized else {}),
        **({"scores": rows * padded(words) * 4} if penalized else {}),
        **({} if greedy else {"candidates": rows * words * 8}),
    }
    bound = {"scores": logits, "logits": logits}
    bound |= {name: context.buffer(sampling_ref(name), size) for name, size in nbytes.items()}
    constants = {
        **{name: i for i, name in enumerate(PARAMS)},
        "PITCH": pitch,
        "MASK": MASK,
        "XTC_STREAM": XTC_STREAM,
        "V": words,
        "STRIDE": padded(words),
        "ROW_COUNT": rows,
        **sizes,
        "RING": RING,
        "GREEDY": greedy,
        "PENALIZED": penalized,
        "MASKED": masked,
    }
    kernels = {"sample_stats": groups, **({} if greedy else {"sample_collect": groups}), "sample_pick": 1}
    made = (
        dispatch(context, kernel, constants, bound, grid(count, Axis(count="rows")), kernel)
        for kernel, count in kernels.items()
    )
    return Program(tuple(made))
