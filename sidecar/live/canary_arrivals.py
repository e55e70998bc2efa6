"""The rows of the round of canaries that runs: of each token the first, and none of anybody else."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from sidecar.live.canary_rows import LAST, PREFIX, CanaryRow


class Unused(StrEnum):
    """Why a canary's row is no part of a round."""

    NO_ROUND = "no_round"  # it came before one began, or after it had ended
    REPEATED = "repeated"  # the round had a row of that token
    UNKNOWN = "unknown"  # of no prompt of the round, or read with another plan


class Arrivals:
    """Bounded: `LAST` rows for each prompt while a round runs, 1,024 of about 2 KB at most, and none between two rounds.

    Not locked: its owner does that.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], CanaryRow] = {}
        self._names: frozenset[str] = frozenset()  # of the round's prompts; none: no round runs
        self._generation = 0
        self.unused = dict.fromkeys(Unused, 0)

    def begin(self, generation: int, prompts: int) -> None:
        """From now on rows are those of a round, of so many prompts read with this plan."""
        self._rows.clear()
        self._names, self._generation = frozenset(f"{PREFIX}{number}" for number in range(prompts)), generation

    def add(self, rows: Sequence[CanaryRow]) -> None:
        for row in rows:
            why = self._unused(row)
            if why is None:
                self._rows[row.name, row.offset] = row
            else:
                self.unused[why] += 1

    def _unused(self, row: CanaryRow) -> Unused | None:
        if not self._names:
            return Unused.NO_ROUND
        if row.name not in self._names or not -LAST <= row.offset < 0 or row.generation != self._generation:
            return Unused.UNKNOWN
        return Unused.REPEATED if (row.name, row.offset) in self._rows else None

    @property
    def prompts(self) -> int:
        """Those whose last token is here."""
        return sum(offset == -1 for _, offset in self._rows)

    def end(self) -> list[CanaryRow]:
        """The round is over. Its rows are the caller's now."""
        rows = list(self._rows.values())
        self._rows.clear()
        self._names = frozenset()
        return rows
