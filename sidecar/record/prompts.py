"""Prompts to be asked, one JSON object a line: ``{"id": "a-name", "tokens": [1, 2, 3]}``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.strictjson import StrictJsonError, parse_strict

ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MOST_ID = 1 << 31


class PromptsError(Exception):
    """The file cannot be used; the text names the line."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """name: of the file that its states go to. tokens: ids as the model is fed them, at least one."""

    name: str
    tokens: tuple[int, ...]


def read_prompts(path: Path) -> list[Prompt]:
    """Raises PromptsError. A prompt that stands there twice is asked once; one id for two prompts is an error."""
    found: dict[str, Prompt] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                prompt = _prompt(line, f"{path} line {number}")
                if found.setdefault(prompt.name, prompt) != prompt:
                    raise PromptsError(f"{path} line {number}: the id {prompt.name} stands for two prompts")
    except OSError as error:
        raise PromptsError(f"{path} cannot be read: {error.strerror}") from None
    if not found:
        raise PromptsError(f"{path} has no prompts")
    return list(found.values())


def _prompt(line: bytes, where: str) -> Prompt:
    try:
        told = parse_strict(line)
    except StrictJsonError as error:
        raise PromptsError(f"{where}: no sound JSON: {error}") from None
    if not isinstance(told, dict) or told.keys() != {"id", "tokens"}:
        raise PromptsError(f'{where}: want {{"id": "a-name", "tokens": [1, 2, 3]}}')
    name, tokens = told["id"], told["tokens"]
    if not (isinstance(name, str) and ID.fullmatch(name)):
        raise PromptsError(f"{where}: want an id of at most 100 letters, digits, _ and -")
    if not (isinstance(tokens, list) and tokens and all(_is_token(token) for token in tokens)):
        raise PromptsError(f"{where}: want tokens as a list of ids, at least one")
    return Prompt(name, tuple(tokens))


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_ID
