"""From texts to the token ids that are fed: as a chat user's message or plainly, never longer than the model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from probes.data.texts import LabelledText
from probes.errors import LabError

Encode: TypeAlias = Callable[[str], list[int]]
# What a model is fed whose configuration does not say how much it reads.
UNLIMITED = 1 << 20


class Reader(Protocol):
    """A model as far as it must be known to make token ids for it: loaded here, or run by another engine."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def config(self) -> Any: ...

    @property
    def template_digest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Feeding:
    """chat: through the model's chat template, ready for its answer; None: if it has one. max_tokens: None: what it reads."""

    chat: bool | None = None
    max_tokens: int | None = None
    truncate: bool = False


@dataclass(frozen=True, slots=True)
class Fed:
    """Texts as they are fed: one that is too long lost its end. tokens: ids of each, position 0 included, at least one.

    template_digest: of the chat template that they went through; "" if through none.
    """

    texts: tuple[LabelledText, ...]
    tokens: tuple[list[int], ...]
    chat: bool
    template_digest: str
    max_tokens: int
    truncated: int


def chat_ids(lab: Reader, text: str) -> list[int]:
    """Token ids of one user message through the model's chat template, ready for its answer; of the text alone without one."""
    if not lab.tokenizer.chat_template:
        return list(lab.tokenizer(text, verbose=False)["input_ids"])
    messages = [{"role": "user", "content": text}]
    return list(lab.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def feed(lab: Reader, texts: Sequence[LabelledText], places: Sequence[str], feeding: Feeding) -> Fed:
    """Encode every text. Raises LabError naming the row of a text that is too long and may not be cut, or has no token."""
    chat = _chat(lab, feeding)
    limit = _limit(lab, feeding)
    encode = _encoder(lab, chat=chat)
    tokens = [_must(encode, text.text, place) for text, place in zip(texts, places, strict=True)]
    long = [index for index, ids in enumerate(tokens) if len(ids) > limit]
    if long and not feeding.truncate:
        first = long[0]
        raise LabError(
            f"{places[first]}: the text has {len(tokens[first]):,} tokens and {limit:,} are read"
            f"{f'; so have {len(long) - 1} others' if len(long) > 1 else ''}: cut them with --truncate"
        )
    fed = list(texts)
    for index in long:
        cut = _cut(lab, encode, texts[index].text, limit, places[index])
        fed[index], tokens[index] = replace(texts[index], text=cut), encode(cut)
    return Fed(tuple(fed), tuple(tokens), chat, lab.template_digest if chat else "", limit, len(long))


def _chat(lab: Reader, feeding: Feeding) -> bool:
    has = bool(lab.template_digest)
    if feeding.chat and not has:
        raise LabError(f"{lab.name} has no chat template: use --plain")
    return has if feeding.chat is None else feeding.chat


def _limit(lab: Reader, feeding: Feeding) -> int:
    config = lab.config.get_text_config(decoder=True)
    reads = int(getattr(config, "max_position_embeddings", None) or UNLIMITED)
    if feeding.max_tokens is not None and not 0 < feeding.max_tokens <= reads:
        raise LabError(f"--max-tokens {feeding.max_tokens}: {lab.name} reads from 1 to {reads:,} tokens")
    return feeding.max_tokens or reads


def _encoder(lab: Reader, *, chat: bool) -> Encode:
    if chat:
        return lambda text: chat_ids(lab, text)
    return lambda text: list(lab.tokenizer(text, verbose=False)["input_ids"])


def _must(encode: Encode, text: str, place: str) -> list[int]:
    from jinja2 import TemplateError

    try:
        ids = encode(text)
    except TemplateError as error:
        raise LabError(f"{place}: the chat template refuses the text: {error}") from None
    if not ids:
        raise LabError(f"{place}: the text has no tokens")
    return ids


def _cut(lab: Reader, encode: Encode, text: str, limit: int, place: str) -> str:
    """The longest beginning of ``text`` that takes at most ``limit`` tokens with all that is put around it."""
    offsets: Any = lab.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [stop for _, stop in offsets["offset_mapping"]]
    keep = len(ends)
    cut = text
    while (over := len(encode(cut)) - limit) > 0:
        keep -= over
        if keep < 1:
            raise LabError(f"{place}: {limit} tokens are fewer than the chat template takes by itself")
        cut = text[: ends[keep - 1]]
    return cut
