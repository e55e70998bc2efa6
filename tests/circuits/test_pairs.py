"""Pairs that could not be compared position by position are refused, with their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probes.activations.model import LabModel
from probes.circuits.behaviours import BEHAVIOURS, find_pairs, made_pairs
from probes.circuits.pairs import Contrast, pairs_digest, read_pairs
from probes.errors import LabError
from tests.circuits.toys import toy

GOOD = {"clean": "w5 w6 w5", "corrupt": "w5 w7 w5", "answer": " w6", "wrong": " w7"}


@pytest.fixture(scope="module")
def lab() -> LabModel:
    return toy()


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_pair_becomes_token_ids(tmp_path: Path, lab: LabModel) -> None:
    (pair,) = read_pairs(written(tmp_path, GOOD), lab)
    assert pair == Contrast((0, 5, 6, 5), (0, 5, 7, 5), (6,), (7,), "pairs.jsonl:1")
    assert pair.differs_at == 2


def test_csv_and_token_ids_say_the_same_as_text(tmp_path: Path, lab: LabModel) -> None:
    csv = tmp_path / "pairs.csv"
    csv.write_text("clean,corrupt,answer,wrong\nw5 w6 w5,w5 w7 w5, w6, w7\n")
    ids = {"clean": [0, 5, 6, 5], "corrupt": [0, 5, 7, 5], "answer": [6], "wrong": [7]}
    texts = read_pairs(written(tmp_path, GOOD), lab)
    assert pairs_digest(read_pairs(csv, lab)) == pairs_digest(texts)
    assert pairs_digest(read_pairs(written(tmp_path, ids), lab)) == pairs_digest(texts)
    assert read_pairs(csv, lab)[0].place == "pairs.csv:2"


def test_several_answers_and_a_lead_are_taken(tmp_path: Path, lab: LabModel) -> None:
    (pair,) = read_pairs(written(tmp_path, GOOD | {"lead": " w9", "answer": [" w6", " w8"]}), lab)
    assert pair.clean == (0, 5, 6, 5, 9)
    assert pair.right == (6, 8)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"corrupt": "w5 w7"}, "4 tokens and the corrupt one 3"),
        ({"corrupt": "w5 w6 w5"}, "both prompts are the same"),
        ({"wrong": " w6"}, "must begin with different tokens"),
        ({"clean": ""}, "clean wants a text"),
        ({"clean": [0, 64, 5, 5]}, "tokens from 0 to 63"),
        ({"clean": [0, 5, 6, 5], "corrupt": [0, 5, 7, 5]}, "those alone"),
        ({"wrong": None}, "wrong wants a text"),
        ({"label": 1}, "unknown field 'label'"),
        ({"chat": True}, "has no chat template"),
        ({"chat": "perhaps"}, "chat is true or false"),
    ],
)
def test_a_pair_that_cannot_be_used_is_refused_with_its_line(
    tmp_path: Path, lab: LabModel, changes: dict[str, Any], why: str
) -> None:
    path = written(tmp_path, GOOD, GOOD | changes)
    with pytest.raises(LabError, match=why) as refused:
        read_pairs(path, lab)
    assert str(refused.value).startswith("pairs.jsonl:2")


def test_a_file_without_a_pair_and_one_that_is_no_json_are_refused(tmp_path: Path, lab: LabModel) -> None:
    with pytest.raises(LabError, match="holds no pair"):
        read_pairs(written(tmp_path), lab)
    (tmp_path / "pairs.jsonl").write_text("{\n")
    with pytest.raises(LabError, match=r"pairs\.jsonl:1: not JSON"):
        read_pairs(tmp_path / "pairs.jsonl", lab)


def test_made_pairs_are_the_same_for_the_same_seed_and_never_repeat(lab: LabModel) -> None:
    pairs = made_pairs("induction", lab, 40)
    assert pairs == find_pairs("induction:40", lab)
    assert pairs != find_pairs("induction:40:1", lab)
    assert len({(pair.clean, pair.corrupt) for pair in pairs}) == 40


def test_what_follows_whom_is_all_that_differs_in_an_induction_pair(lab: LabModel) -> None:
    for pair in made_pairs("induction", lab, 40):
        last = pair.clean[-1]
        assert sorted(pair.clean) == sorted(pair.corrupt)
        assert (pair.clean[pair.clean.index(last) + 1],) == pair.right
        assert (pair.corrupt[pair.corrupt.index(last) + 1],) == pair.wrong


def test_a_set_that_is_not_there_is_refused_and_so_are_too_many(lab: LabModel) -> None:
    with pytest.raises(LabError, match=f"there are {', '.join(BEHAVIOURS)}"):
        find_pairs("sarcasm:3", lab)
    with pytest.raises(LabError, match="from 1 to"):
        find_pairs("induction:0", lab)
    with pytest.raises(LabError, match="grounding: only 0 different pairs"):
        find_pairs("grounding:3", lab)  # the toy knows no words: all answers begin alike
