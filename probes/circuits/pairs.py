"""Contrast pairs: a clean prompt that calls for the behaviour, a corrupt one that does not, and the answers that tell which."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.activations.model import LabModel
from probes.causal.behaviour import encode, first_token
from probes.errors import LabError
from probes.strictjson import canonical

_FIELDS = frozenset({"clean", "corrupt", "answer", "wrong", "lead", "chat"})
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no", "")


@dataclass(frozen=True, slots=True)
class Contrast:
    """Token ids; clean and corrupt are of one length, so that each position of one has its counterpart in the other.

    right, wrong: tokens that may come next; the behaviour's metric is log sum exp of the right ones' logits less that of
    the wrong ones', after the clean prompt. place: where it was written, for people.
    """

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    place: str = ""

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupt):
            raise LabError(
                f"{self.place}: the clean prompt has {len(self.clean)} tokens and the corrupt one {len(self.corrupt)}: "
                "no position would have its counterpart"
            )
        if self.clean == self.corrupt:
            raise LabError(f"{self.place}: both prompts are the same")
        if not (self.right and self.wrong) or set(self.right) & set(self.wrong):
            raise LabError(f"{self.place}: right and wrong answers must begin with different tokens")

    @property
    def differs_at(self) -> int:
        """The first position at which the prompts differ: before it, so do no states."""
        return next(at for at, both in enumerate(zip(self.clean, self.corrupt, strict=True)) if both[0] != both[1])


def read_pairs(path: Path, lab: LabModel, *, chat: bool = False) -> tuple[Contrast, ...]:
    """Read JSON lines or CSV with the columns clean, corrupt, answer, wrong and, where wanted, lead and chat.

    Prompts are texts, of users if ``chat`` (the line's own word, else the argument), with ``lead`` put at the end of both; in
    JSON lines they may also be lists of token ids, and there may be several answers on a side. Raises LabError naming the line
    of a pair that cannot be used.
    """
    pairs = [contrast(fields, lab, place, chat=chat) for place, fields in _rows(path)]
    if not pairs:
        raise LabError(f"{path} holds no pair")
    return tuple(pairs)


def contrast(fields: Mapping[str, Any], lab: LabModel, place: str, *, chat: bool = False) -> Contrast:
    """One pair from what a line says. Raises LabError naming ``place``."""
    if unknown := fields.keys() - _FIELDS:
        raise LabError(f"{place}: unknown field {min(unknown)!r}; there are {', '.join(sorted(_FIELDS))}")
    lead = fields.get("lead") or ""
    chat = _chat(fields.get("chat"), lab, place, otherwise=chat)
    clean, corrupt = (_ids(fields.get(side), side, lead, lab, place, chat=chat) for side in ("clean", "corrupt"))
    right, wrong = (_answers(fields.get(side), side, fields, lab, place, chat=chat) for side in ("answer", "wrong"))
    return Contrast(clean, corrupt, right, wrong, place)


def pairs_digest(pairs: Sequence[Contrast]) -> str:
    """SHA-256 of what is fed and asked, wherever it was written."""
    told = [[one.clean, one.corrupt, one.right, one.wrong] for one in pairs]
    return hashlib.sha256(canonical(told)).hexdigest()


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None
    if path.suffix.casefold() == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
        try:
            for row in reader:
                yield f"{path.name}:{reader.line_num}", row
        except csv.Error as error:
            raise LabError(f"{path.name}:{reader.line_num}: {error}") from None
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{path.name}:{number}", _object(line, f"{path.name}:{number}")


def _object(line: str, place: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise LabError(f"{place}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise LabError(f"{place}: want an object with {', '.join(sorted(_FIELDS))}")
    return fields


def _ids(told: Any, side: str, lead: str, lab: LabModel, place: str, *, chat: bool) -> tuple[int, ...]:
    if isinstance(told, str) and told:
        ids = tuple(encode(lab.tokenizer, _prompt(told, lead, lab, chat=chat), chat=chat))
    elif _are_ids(told):
        ids = tuple(told)
    else:
        raise LabError(f"{place}: {side} wants a text or a list of token ids")
    size = lab.model.get_input_embeddings().num_embeddings
    if not ids or not all(0 <= one < size for one in ids):
        raise LabError(f"{place}: {side} wants tokens from 0 to {size - 1}")
    return ids


def _chat(told: Any, lab: LabModel, place: str, *, otherwise: bool) -> bool:
    text = str(otherwise if told is None else told).casefold()
    if text not in (*_YES, *_NO):
        raise LabError(f"{place}: chat is true or false, not {told!r}")
    if text in _YES and not lab.template_digest:
        raise LabError(f"{place}: {lab.identity.name} has no chat template")
    return text in _YES


def _prompt(told: str, lead: str, lab: LabModel, *, chat: bool) -> str:
    if not chat:
        return told + lead
    message = [{"role": "user", "content": told}]
    return str(lab.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)) + lead


def _answers(
    told: Any, side: str, fields: Mapping[str, Any], lab: LabModel, place: str, *, chat: bool
) -> tuple[int, ...]:
    several = told if isinstance(told, list) else [told]
    if several and _are_ids(several):
        return tuple(sorted(set(several)))
    if not several or not all(isinstance(one, str) and one for one in several) or not isinstance(fields["clean"], str):
        raise LabError(
            f"{place}: {side} wants a text or texts, or token ids (beside prompts of token ids: those alone)"
        )
    prompt = _prompt(fields["clean"], fields.get("lead") or "", lab, chat=chat)
    try:
        return tuple(sorted({first_token(lab.tokenizer, prompt, one, chat=chat) for one in several}))
    except LabError as error:
        raise LabError(f"{place}: {error}") from None


def _are_ids(told: Any) -> bool:
    return isinstance(told, list) and bool(told) and all(type(one) is int for one in told)
