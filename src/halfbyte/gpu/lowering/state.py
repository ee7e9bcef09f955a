"""What changes from batch to batch, in one small buffer that kernels read: count, ids, positions, block tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.plan import Batch, Plan

HEADER = 8
"""int32s before the first array: tokens, then free for sampling."""


@dataclass(frozen=True)
class StateLayout:
    """Where each state tensor of a plan begins, in int32s.

    Attributes:
        offsets: By the names of `constants`.
        tables: Offset of each block table, by its `blocks` name.
        columns: Entries of each row of a block table.
        size: int32s in total.
    """

    offsets: Mapping[str, int]
    tables: Mapping[str, int]
    columns: Mapping[str, int]
    size: int

    @staticmethod
    def of(plan: Plan) -> StateLayout:
        """The layout for a plan's capacities."""
        tokens, at = plan.tokens, HEADER
        offsets, tables = {"COUNT_AT": 0}, {}
        for name, count in (
            ("IDS", tokens),
            ("POSITIONS", tokens),
            ("SEQ", tokens),
            ("SETS", tokens),
            ("ROWS_AT", plan.rows),
        ):
            offsets[name] = at
            at += count
        for group in plan.groups:
            tables[group.blocks] = at
            at += plan.sequences * group.columns
        return StateLayout(offsets, tables, {group.blocks: group.columns for group in plan.groups}, at)

    def fill(self, batch: Batch) -> NDArray[np.int32]:
        """The buffer's contents for a batch, up to the end of its block tables."""
        values = np.zeros(self.size, np.int32)
        values[0] = len(batch.token_ids)
        for name, array in (
            ("IDS", batch.token_ids),
            ("POSITIONS", batch.positions),
            ("SEQ", batch.sequences),
            ("SETS", batch.rope_sets),
            ("ROWS_AT", batch.logit_rows),
        ):
            values[self.offsets[name] : self.offsets[name] + len(array)] = array
        for name, at in self.tables.items():
            table = self.table(name, batch.block_tables[name])
            values[at : at + table.size] = table
        return values

    def table(self, name: str, table: NDArray[np.int32]) -> NDArray[np.int32]:
        """A block table as it is stored: whole rows, unused entries pointing at block 0, whose values go unused."""
        whole = np.zeros((table.shape[0], self.columns[name]), np.int32)
        whole[:, : table.shape[1]] = np.maximum(table, 0)
        return whole.reshape(-1)
