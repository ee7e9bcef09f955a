"""Where activations live: lifetimes become offsets in one arena, so that a model's scratch memory is a few rows.

The greedy algorithm of "Efficient Memory Management for Deep Neural Net Inference" (arXiv 2001.03288): place
tensors from the largest to the smallest, each at the lowest offset that is free for its whole lifetime.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from halfbyte.plan.plan import Plan

ALIGNMENT = 64


@dataclass
class _Life:
    """Steps (first, last) during which a buffer holds something; `names` share it one after another."""

    names: list[str]
    nbytes: int
    first: int
    last: int


def plan_memory(plan: Plan) -> Plan:
    """The plan with an arena offset for every activation."""
    offsets: dict[str, int] = {}
    placed: list[tuple[int, _Life]] = []
    for life in sorted(_lives(plan), key=lambda life: -life.nbytes):
        offset = _lowest_gap(life, placed)
        placed.append((offset, life))
        offsets |= dict.fromkeys(life.names, offset)
    arena = max((offset + life.nbytes for offset, life in placed), default=0)
    tensors = {name: replace(t, offset=offsets[name]) if name in offsets else t for name, t in plan.tensors.items()}
    return replace(plan, tensors=tensors, arena_nbytes=arena)


def _lives(plan: Plan) -> list[_Life]:
    """Lifetimes of buffers: an output takes over the buffer of an input that dies there, where the op allows it."""
    last_read = {name: i for i, step in enumerate(plan.steps) for name in step.inputs}
    holding: dict[str, _Life] = {}
    for i, step in enumerate(plan.steps):
        for name in step.outputs:
            if plan.tensors[name].kind != "activation":
                continue
            nbytes, last = _aligned(plan.tensors[name].nbytes), last_read.get(name, i)
            heir = next(
                (n for n in step.in_place if last_read[n] == i and n in holding and holding[n].nbytes == nbytes), None
            )
            life = holding[heir] if heir else _Life([], nbytes, i, last)
            life.names.append(name)
            life.last = last
            holding[name] = life
    return list({id(life): life for life in holding.values()}.values())


def _lowest_gap(life: _Life, placed: list[tuple[int, _Life]]) -> int:
    rivals = sorted((o, o + r.nbytes) for o, r in placed if r.first <= life.last and life.first <= r.last)
    offset = 0
    for start, end in rivals:
        if start - offset >= life.nbytes:
            break
        offset = max(offset, end)
    return offset


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
