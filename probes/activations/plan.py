"""Which texts lie together in which shard, and which are computed together: known before the first of them is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Plan: TypeAlias = list[list[int]]

# Tokens of one forward pass, padding included. Larger batches are no faster on one core and only take memory; those of 30
# tokens are ten times slower a token.
BATCH_TOKENS = 1024
# A shard is what a killed run loses and what a process holds in memory: never much, so many for a whole run that several
# processes end together, but never less than what keeps batches full.
SHARD_BYTES = 64 << 20
SHARDS = 32
SHARD_TOKENS = 2 * BATCH_TOKENS


def plan_shards(lengths: npt.NDArray[np.int64], row_bytes: int) -> Plan:
    """Put texts into shards, the longest first; lengths: rows of each text; row_bytes: of one row at all tap points.

    A shard ends before it grows beyond its size, but holds at least one text.
    """
    total = int(lengths.sum()) * row_bytes
    limit = min(SHARD_BYTES, max(SHARD_TOKENS * row_bytes, total // SHARDS))
    plan: Plan = [[]]
    held = 0
    for text in by_length(lengths):
        size = int(lengths[text]) * row_bytes
        if plan[-1] and held + size > limit:
            plan.append([])
            held = 0
        plan[-1].append(text)
        held += size
    return plan


def by_length(lengths: npt.NDArray[np.int64]) -> list[int]:
    """The longest first: what will not fit into memory fails at once, and the last to be computed are quick."""
    return [int(text) for text in np.lexsort((np.arange(len(lengths)), -lengths))]


def batches(texts: Sequence[int], counts: Sequence[int], limit: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Cut texts, given in order of falling token counts, into runs that take at most ``limit`` tokens once padded.

    A text that is longer than that is a batch of its own.

    >>> list(batches([7, 3, 9], [30, 20, 10], limit=60))
    [[7, 3], [9]]
    """
    batch: list[int] = []
    longest = 0
    for text, count in zip(texts, counts, strict=True):
        if batch and (len(batch) + 1) * longest > limit:
            yield batch
            batch = []
        longest = count if not batch else longest
        batch.append(text)
    if batch:
        yield batch
