"""What changes from batch to batch, in one small buffer that kernels read: count, ids, positions, block tables.

Choosing tokens on the device moves the state on, so that the next step finds its ids and positions there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.plan import Batch, Plan
from halfbyte.plan.plan import STATE_ADAPTERS

HEADER = 8
"""int32s before the first array: tokens, then decodes, then free."""


@dataclass(frozen=True)
class StateLayout:
    """Where each state tensor of a plan begins, in int32s.

    Attributes:
        offsets: By the names of `constants`. `STARTS` has the first token of each slot, -1 where it has none; `STEPS`
            the steps made for each row of logits since the batch was written, `DRAWN` the last token that was drawn for
            each slot.
        tables: Offset of each block table, by its `blocks` name, and of the table of states.
        columns: Entries of each row of a block table.
        batch: int32s that are written for a batch; what follows them stays.
        size: int32s in total.
    """

    offsets: Mapping[str, int]
    tables: Mapping[str, int]
    columns: Mapping[str, int]
    batch: int
    size: int

    @staticmethod
    def of(plan: Plan) -> StateLayout:
        """The layout for a plan's capacities."""
        tokens, at = plan.tokens, HEADER
        offsets, tables = {"COUNT_AT": 0, "DECODES_AT": 1}, {}
        for name, count in (
            ("IDS", tokens),
            ("POSITIONS", tokens),
            ("SEQ", tokens),
            ("SETS", tokens),
            *([("ADAPTERS", tokens)] if STATE_ADAPTERS in plan.tensors else []),
            ("ROWS_AT", plan.rows),
            ("STARTS", plan.sequences),
            ("STEPS", plan.rows),
            ("DRAWN", plan.sequences),
        ):
            offsets[name] = at
            at += count
        columns = {group.blocks: group.columns for group in plan.groups}
        columns |= {plan.states.table: 2} if plan.states else {}
        for name, count in columns.items():
            tables[name] = at
            at += plan.sequences * count
        return StateLayout(offsets, tables, columns, offsets["DRAWN"], at)

    def fill(self, batch: Batch) -> NDArray[np.int32]:
        """What the buffer begins with for a batch, up to the tokens drawn before it."""
        values = np.zeros(self.batch, np.int32)
        values[self.offsets["COUNT_AT"]] = len(batch.token_ids)
        values[self.offsets["DECODES_AT"]] = batch.num_decodes
        for name, array in (
            ("IDS", batch.token_ids),
            ("POSITIONS", batch.positions),
            ("SEQ", batch.sequences),
            ("SETS", batch.rope_sets),
            ("ROWS_AT", batch.logit_rows),
        ):
            values[self.offsets[name] : self.offsets[name] + len(array)] = array
        slots, first = np.unique(batch.sequences, return_index=True)
        starts = values[self.offsets["STARTS"] : self.offsets["STEPS"]]
        starts[:] = -1
        starts[slots] = first
        if "ADAPTERS" in self.offsets and batch.adapters is not None:
            at = self.offsets["ADAPTERS"]
            values[at : at + len(batch.adapters)] = batch.adapters
        return values

    def row_at(self, table: str, slot: int) -> int:
        """Where a row of a block table begins."""
        return self.tables[table] + slot * self.columns[table]
