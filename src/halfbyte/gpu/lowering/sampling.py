"""The programs that choose the next token from the logits of `single`.

logits → penalties, bias → temperature → top-k → top-p → min-p → draw
"""

from __future__ import annotations

from halfbyte.gpu.lowering.builder import dispatch
from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.lowering.program import Output, Program, Ref, grid
from halfbyte.gpu.shaders import rules

PARAMS = ("TEMPERATURE", "TOP_K", "TOP_P", "MIN_P", "REPETITION", "PRESENCE", "FREQUENCY", "SEED")
"""What words of the buffer `sampling/params` hold, in their order: float32s, then both words of the seed."""
RING = 8
"""Tokens whose results the GPU keeps."""
RESULT_NBYTES = 8
"""A token's id, then its log-probability."""
SAMPLING_PROGRAMS = ("sample.greedy", "sample.random", "sample.greedy.penalized", "sample.random.penalized")


def sampling_ref(name: str) -> Ref:
    """A buffer of the sampling programs: params, counts, bias, result and what they leave for each other."""
    return Ref("sampling", f"sampling/{name}")


def lower_sampling(context: LoweringContext, name: str, logits: Output) -> Program:
    """One of `SAMPLING_PROGRAMS`: a token is the most likely one or drawn, with or without penalties and biases."""
    greedy, penalized = "greedy" in name, "penalized" in name
    sizes = rules.sample(context.config, vocabulary=logits.width)
    row, groups = logits.width * 4, sizes["GROUPS"]
    nbytes = {
        "parts": groups * 16,
        "found": 4,
        "params": 64,
        "result": RING * RESULT_NBYTES,
        **(dict.fromkeys(("counts", "bias", "scores"), row) if penalized else {}),
        **({} if greedy else {"candidates": 2 * row}),
    }
    bound = {name: context.buffer(sampling_ref(name), size) for name, size in nbytes.items()}
    bound = {"scores": logits.ref, "logits": logits.ref} | bound
    constants = {
        **{name: i for i, name in enumerate(PARAMS)},
        "V": logits.width,
        **sizes,
        "RING": RING,
        "GREEDY": greedy,
        "PENALIZED": penalized,
        "COUNTED": penalized,
    }
    kernels = {"sample_stats": groups, **({} if greedy else {"sample_collect": groups}), "sample_pick": 1}
    made = (dispatch(context, kernel, constants, bound, grid(count), kernel) for kernel, count in kernels.items())
    return Program(tuple(made))
