"""Prompts as they are run: what all of them begin with once, the rest in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from probes.activations.plan import batches

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """Ends of some prompts, padded on the right: attention looks only to the left, so no real position sees the padding.

    first: the position of the first column. ends: of each prompt, the column of its last token.
    """

    prompts: tuple[int, ...]
    ids: torch.Tensor  # [B, T]
    ends: tuple[int, ...]
    first: int


def shared_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, leaving each at least one of its own.

    >>> shared_beginning([[1, 2, 3], [1, 2, 4, 5], [1, 2]])
    1
    """
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


def beginning(prompts: Sequence[Sequence[int]], shared: int) -> Batch:
    """What all begin with, as a batch of one that belongs to no prompt in particular."""
    import torch

    return Batch((), torch.tensor([list(prompts[0][:shared])]), (shared - 1,), 0)


def tails(prompts: Sequence[Sequence[int]], shared: int) -> Iterator[Batch]:
    """What is left of each prompt."""
    left = [list(prompt[shared:]) for prompt in prompts]
    ordered = sorted(range(len(left)), key=lambda index: (-len(left[index]), index))
    for chosen in batches(ordered, [len(left[index]) for index in ordered]):
        yield _batch(left, chosen, shared)


def _batch(left: Sequence[list[int]], chosen: Sequence[int], first: int) -> Batch:
    import torch

    longest = max(len(left[index]) for index in chosen)
    # Padded with its own last token: a model's padding token makes it ask for a mask that nothing here needs.
    padded = [left[index] + [left[index][-1]] * (longest - len(left[index])) for index in chosen]
    return Batch(tuple(chosen), torch.tensor(padded), tuple(len(left[index]) - 1 for index in chosen), first)
