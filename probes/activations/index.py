"""What lies beside the shards: the facts, the texts, their tokens, and which shard holds which text.

facts.json       the facts and the digest over all three files; written last, so that where it is, the others are
texts.jsonl      one text a line, with its label, key, group, data set, pair, and the place that it came from
index.safetensors  ids int32 [all tokens], starts int64 [n + 1], lengths int64 [n]; order int64 [n]: the texts as shards hold
                 them; shards int64 [S + 1]: shard s holds order[shards[s]:shards[s + 1]]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from probes.activations.facts import StoreFacts
from probes.activations.files import whole_file
from probes.activations.plan import Plan
from probes.activations.tensors import open_tensors, write_tensors
from probes.data.texts import LabelledText
from probes.errors import LabError

FACTS, TEXTS, INDEX = "facts.json", "texts.jsonl", "index.safetensors"
SCHEMA = "stethoscope.activations/1"
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store is to hold. places: where each text came from, for people ("train.csv row 7"). tokens: as they are fed."""

    facts: StoreFacts
    texts: Sequence[LabelledText]
    places: Sequence[str]
    tokens: Sequence[Sequence[int]]

    def lengths(self) -> IntArray:
        """Rows of each text: its tokens without the skipped positions, but always its last."""
        return np.array([max(1, len(ids) - self.facts.skip_positions) for ids in self.tokens], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Index:
    """Everything but the texts and the states. All arrays are int64 and small beside the states."""

    facts: StoreFacts
    digest: str
    ids: npt.NDArray[np.int32]
    starts: IntArray
    lengths: IntArray
    order: IntArray
    shards: IntArray

    @property
    def shard_count(self) -> int:
        return len(self.shards) - 1

    def texts_of(self, shard: int) -> IntArray:
        return self.order[self.shards[shard] : self.shards[shard + 1]]

    def shared_beginning(self) -> int:
        """How many tokens all texts begin with, leaving each at least one of its own."""
        firsts = self.starts[:-1]
        for column in range(int(np.diff(self.starts).min()) - 1):
            if (self.ids[firsts + column] != self.ids[column]).any():
                return column
        return int(np.diff(self.starts).min()) - 1

    def tokens(self, text: int) -> list[int]:
        return [int(token) for token in self.ids[self.starts[text] : self.starts[text + 1]]]


def write_index(folder: Path, contents: Contents, plan: Plan) -> None:
    """Write the three files into ``folder``. Raises LabError if the disk refuses."""
    with whole_file(folder / TEXTS) as file:
        file.write(_lines(contents))
    write_tensors(folder / INDEX, _arrays(contents, plan), {})
    told = contents.facts.model_dump(mode="json")
    head = {"schema": SCHEMA, "digest": _digest(folder, told), "facts": told}
    with whole_file(folder / FACTS) as file:
        file.write((json.dumps(head, indent=1) + "\n").encode())


def read_index(folder: Path) -> Index:
    """Read facts and index. Raises LabError naming the file if one is missing, damaged, or not what the digest says."""
    head = _head(folder)
    try:
        facts = StoreFacts.model_validate(head["facts"])
    except (KeyError, ValidationError) as error:
        raise LabError(f"{folder / FACTS} is not what this version writes: {error}") from None
    if head.get("digest") != _digest(folder, head["facts"]):
        raise LabError(f"{folder}: {FACTS}, {TEXTS} or {INDEX} was changed after it was written")
    file = open_tensors(folder / INDEX)
    try:
        arrays = {name: np.array(file.array(name)) for name in ("ids", "starts", "lengths", "order", "shards")}
    except KeyError as error:
        raise LabError(f"{folder / INDEX} lacks {error}") from None
    return Index(facts, str(head["digest"]), **arrays)


def read_texts(folder: Path) -> tuple[tuple[LabelledText, ...], tuple[str, ...]]:
    """The texts and their places, in the store's order; the index's digest has vouched for them."""
    texts, places = [], []
    with (folder / TEXTS).open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            places.append(fields.pop("place"))
            texts.append(LabelledText(**fields))
    return tuple(texts), tuple(places)


def same_contents(folder: Path, contents: Contents) -> str:
    """Empty if ``folder`` was begun with just these contents, else what differs, in words. Raises LabError as `read_index`."""
    found, wanted = read_index(folder).facts.model_dump(mode="json"), contents.facts.model_dump(mode="json")
    differing = [name for name in wanted if wanted[name] != found[name]]
    if not differing and (folder / TEXTS).read_bytes() != _lines(contents):
        differing = ["texts"]
    if not differing and not _same_tokens(read_index(folder), contents):
        differing = ["tokens"]
    return ", ".join(differing)


def _same_tokens(index: Index, contents: Contents) -> bool:
    wanted = np.concatenate([np.asarray(ids, np.int32) for ids in contents.tokens])
    return np.array_equal(index.ids, wanted) and np.array_equal(index.lengths, contents.lengths())


def _lines(contents: Contents) -> bytes:
    lines = (
        json.dumps({**asdict(text), "place": place}, ensure_ascii=False)
        for text, place in zip(contents.texts, contents.places, strict=True)
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _arrays(contents: Contents, plan: Plan) -> dict[str, npt.NDArray[Any]]:
    counts = [len(ids) for ids in contents.tokens]
    return {
        "ids": np.concatenate([np.asarray(ids, np.int32) for ids in contents.tokens]),
        "starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "lengths": contents.lengths(),
        "order": np.array([text for shard in plan for text in shard], dtype=np.int64),
        "shards": np.concatenate([[0], np.cumsum([len(shard) for shard in plan])]).astype(np.int64),
    }


def _head(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    try:
        head = json.loads(path.read_bytes())
    except NotADirectoryError:
        raise LabError(
            f"{folder} is a file, and no folder of activations: `probes collect` makes one of texts"
        ) from None
    except FileNotFoundError:
        raise LabError(f"{folder} holds no activations ({FACTS} is missing): `probes collect` makes them") from None
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        raise LabError(f"{path} is not an activation store of this version ({SCHEMA})")
    return head


def _digest(folder: Path, facts: Any) -> str:
    """Hex SHA-256 over the facts, the texts' file and the index's, each with its length before it."""
    seen = hashlib.sha256()
    for data in (json.dumps(facts, sort_keys=True).encode(), _bytes(folder / TEXTS), _bytes(folder / INDEX)):
        seen.update(len(data).to_bytes(8, "little"))
        seen.update(data)
    return seen.hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LabError(f"{path} is missing") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
