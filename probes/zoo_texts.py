"""The texts that a recipe names, read from installed packages and written pairs, as the lab's own readers take them.

Rows of packages stay where they were installed: their licences differ by set, and none is copied into the repository.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.data.reading import Loaded, Sources, load_texts
from probes.data.tables import PACKAGED, read_table
from probes.data.texts import text_key
from probes.errors import LabError
from probes.recipe import Clean, Recipe, TextSet, read_recipes
from probes.zoo_pairs import TEXTS, read_pairs

BASTION = "bastioncorpus"
BASTION_INSTALL = "pip install --no-deps bastioncorpus==0.6.0"
# Where a text of that package takes the token that a test run looks for.
_CANARY, _TOKEN = "{canary}", "A7-3391"
# Reviews, tweets and text messages: what the shipped controls have to read right beside everyday chats.
CONTROL_RECIPES = ("sentiment", "offensive_language", "spam")
_CONTROL_LIMIT = 120
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Material:
    """What a recipe reads: texts to make the probe on, and benign ones beside them, or None."""

    texts: Loaded
    benign: Loaded | None


def gather(recipe: Recipe, work: Path) -> Material:
    """Read, clean, cut and check every set; the files that the lab's readers are given are written into ``work``.

    Raises LabError naming the set if it is not installed or not as the recipe says.
    """
    work.mkdir(parents=True, exist_ok=True)
    texts = Sources(
        data=tuple(_written(one, recipe, work) for one in recipe.texts),
        outside=tuple(_written(one, recipe, work) for one in recipe.outside),
        positive=recipe.positive,
    )
    benign = tuple(_written(one, recipe, work) for one in recipe.benign)
    return Material(load_texts(texts), _benign(benign) if benign else None)


def gather_for_controls(work: Path) -> Loaded:
    """Some texts of three probes' own sets; whatever their labels say. Files and errors are those of `gather`."""
    work.mkdir(parents=True, exist_ok=True)
    recipes = read_recipes()
    few = [recipes[name].smaller(_CONTROL_LIMIT) for name in CONTROL_RECIPES]
    return _benign(tuple(_written(one, recipe, work) for recipe in few for one in recipe.texts))


def _benign(files: tuple[str, ...]) -> Loaded:
    return load_texts(Sources(data=files, negative_only=True))


def set_rows(one: TextSet) -> list[_Row]:
    """A set's rows, cleaned and cut to its limit: text, positive (bool), and group and pair if they were written in pairs."""
    rows = [row | {"text": _cleaned(row["text"], one)} for row in _raw(one)]
    refused = _refused(one)
    kept = [row for row in rows if row["text"] and (row["positive"] or text_key(row["text"]) not in refused)]
    return _limited(kept, one.limit)


def _written(one: TextSet, recipe: Recipe, work: Path) -> str:
    """Write a set as JSON lines. Of a benign set only negative rows go in: the others are no benign texts."""
    only_benign = one in recipe.benign
    names = {True: recipe.positive, False: recipe.negative}
    path = work / f"{re.sub(r'[^a-z0-9]+', '_', one.name.casefold()).strip('_')}.jsonl"
    lines = [
        json.dumps(_fields(row, one, names), ensure_ascii=False)
        for row in set_rows(one)
        if not (only_benign and row["positive"])
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _fields(row: _Row, one: TextSet, names: Mapping[bool, str]) -> dict[str, str]:
    fields = {"text": row["text"], "label": names[row["positive"]], "dataset": one.name}
    return fields | {name: row[name] for name in ("group", "pair") if name in row}


def _raw(one: TextSet) -> Iterable[_Row]:
    if one.source.startswith(PACKAGED):
        return _packaged(one)
    if one.source == BASTION:
        return _bastion(one)
    return _written_pairs(one)


def _written_pairs(one: TextSet) -> list[_Row]:
    """All rows, or, as benign texts, each pair once: more of one form would not be more witnesses."""
    rows = read_pairs(TEXTS / one.source).rows()
    if one.positive:
        return [row | {"group": f"{one.name} {row['group']}"} for row in rows]
    return [{"text": row["text"], "positive": False} for row in rows if row["pair"].endswith(".0")]


def _packaged(one: TextSet) -> list[_Row]:
    table = read_table(one.source)
    labels = {str(row["target"]) for row in table.rows}
    if one.positive and one.positive not in labels:
        raise LabError(f"{one.source} has no label {one.positive!r}; it has {', '.join(sorted(labels))}")
    return [{"text": str(row["prompt"]), "positive": str(row["target"]) == one.positive} for row in table.rows]


def _bastion(one: TextSet) -> list[_Row]:
    """Attacks and benign twins of the installed package, which is not imported."""
    from probes.smollm2 import ModelNotInstalledError, package_folder

    try:
        path = package_folder(BASTION, BASTION_INSTALL) / "corpus" / "injections.jsonl"
    except ModelNotInstalledError as error:
        raise LabError(str(error)) from None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [{"text": row["text"].replace(_CANARY, _TOKEN), "positive": row["label"] == one.positive} for row in rows]


def _refused(one: TextSet) -> frozenset[str]:
    """Keys of texts that another set calls positive."""
    if not one.without:
        return frozenset()
    other = one.model_copy(update={"source": one.without, "without": "", "positive": "1"})
    return frozenset(text_key(_cleaned(row["text"], one)) for row in _raw(other) if row["positive"])


def _limited(rows: Sequence[_Row], limit: int) -> list[_Row]:
    """At most ``limit`` rows, chosen by their keys, as many of each label that there is. Written pairs are kept whole."""
    if not limit or any("pair" in row for row in rows):
        return list(rows)
    ordered = sorted(rows, key=lambda row: text_key(row["text"]))
    sides = [side for label in (True, False) if (side := [row for row in ordered if row["positive"] is label])]
    return [row for side in sides for row in side[: limit // len(sides)]]


def _cleaned(text: str, one: TextSet) -> str:
    found = _CLEANERS[one.clean](text)
    return found[: one.clip].strip() if one.clip else found


def _plain(text: str) -> str:
    return " ".join(html.unescape(text).split())


def _tweet(text: str) -> str:
    """Take out what a chat message does not have: retweet marks, addressees, links."""
    bare = re.sub(r"\bRT\b|https?://\S+|@\w+:?", " ", html.unescape(html.unescape(text)))
    return " ".join(bare.split())


def _code(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


_CLEANERS: Mapping[Clean, Callable[[str], str]] = {Clean.PLAIN: _plain, Clean.TWEET: _tweet, Clean.CODE: _code}
