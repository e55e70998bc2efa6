"""Pairs of texts that were written for a probe: one that has what is looked for, its twin in the same form that has not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from probes.errors import LabError

TEXTS = Path(__file__).parent / "zoo" / "texts"
_SLOT = re.compile(r"\{(\w+)\}")
_FRAMED = "{text}"


class WrittenPairs(BaseModel):
    """A file of written pairs, each a positive text and its benign twin.

    A slot such as ``{city}`` takes the words of ``fillers`` in turn, the same in both texts; a pair is written out ``copies`` times
    if it has a slot or if there are ``frames`` (sentences with ``{text}`` in them, for both texts alike), else once. All that comes
    of one pair is one group: none of it tests what the rest of it taught.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: Annotated[tuple[tuple[str, str], ...], Field(min_length=8)]
    fillers: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = {}
    frames: tuple[str, ...] = ()
    copies: Annotated[int, Field(ge=1, le=64)] = 1

    @model_validator(mode="after")
    def _every_slot_is_filled(self) -> WrittenPairs:
        for positive, benign in self.pairs:
            slots = set(_SLOT.findall(positive + benign))
            if missing := sorted(slots - set(self.fillers)):
                raise ValueError(f"nothing fills {{{missing[0]}}} in {positive!r}")
        if any(frame.count(_FRAMED) != 1 for frame in self.frames):
            raise ValueError("a frame must hold {text} exactly once")
        return self

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows with text, positive (bool), group and pair; the same every time."""
        for number, both in enumerate(self.pairs):
            varied = bool(self.frames) or any(_SLOT.search(text) for text in both)
            for copy in range(self.copies if varied else 1):
                for text, positive in zip(both, (True, False), strict=True):
                    written = self._written(text, number, copy)
                    yield {"text": written, "positive": positive, "group": f"{number}", "pair": f"{number}.{copy}"}

    def _written(self, text: str, number: int, copy: int) -> str:
        def word(slot: re.Match[str]) -> str:
            words = self.fillers[slot[1]]
            return words[(number * self.copies + copy) % len(words)]

        filled = _SLOT.sub(word, text)
        if not self.frames:
            return filled
        return self.frames[(number * self.copies + copy) % len(self.frames)].replace(_FRAMED, filled)


def read_pairs(path: Path) -> WrittenPairs:
    """Raises LabError naming the file and what is wrong in it."""
    import yaml

    try:
        return WrittenPairs.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise LabError(f"{path}: {where}: {first['msg']}") from None
