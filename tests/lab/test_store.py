"""A store gives back what was written, refuses what is not whole, and never reads more than it is asked for."""

from __future__ import annotations

import errno
import json
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

from probes.activations import files
from probes.activations.encoding import decode, encode
from probes.activations.facts import StateDtype, StoreFacts
from probes.activations.index import Contents
from probes.activations.plan import SHARD_BYTES, batches, plan_shards
from probes.activations.store import ActivationStore
from probes.activations.writer import ShardWriter, begin_store, shard_path
from probes.data.texts import LabelledText, text_key
from probes.errors import LabError
from sidecar.types import FloatArray, Site, TapPoint
from tests.lab.planted import planted_store

WIDTH = 8
WHERE, HEADS = TapPoint(1), TapPoint(1, Site.ATTN_HEADS)
WIDTHS = {WHERE.name: WIDTH, HEADS.name: 12}


def contents(counts: list[int], dtype: StateDtype = "float32", name: str = "made up") -> Contents:
    base = planted_facts()
    facts = StoreFacts.model_validate(
        {
            **base.model_dump(),
            "width": WIDTH,
            "tap_points": tuple(WIDTHS),
            "widths": WIDTHS,
            "hook_points": dict.fromkeys(WIDTHS, "somewhere"),
            "state_dtype": dtype,
            "data_name": name,
        }
    )
    texts = [
        LabelledText(f"text {number}", number % 2 == 0, text_key(f"text {number}")) for number in range(len(counts))
    ]
    return Contents(
        facts, texts, [f"a.csv row {number + 1}" for number in range(len(counts))], [[7] * n for n in counts]
    )


def planted_facts() -> StoreFacts:
    from tests.lab.planted import _facts

    return _facts([], WIDTH, 2, (), "float32")


def rows(text: int, name: str, count: int) -> FloatArray:
    random = np.random.default_rng([text, len(name)])
    return random.normal(size=(count, WIDTHS[name])).astype(np.float32)


def fill(folder: Path, only: int | None = None) -> None:
    writer = ShardWriter(folder)
    for shard in writer.missing()[:only]:
        chosen = [int(text) for text in writer.index.texts_of(shard)]
        writer.write(
            shard, {name: [rows(text, name, int(writer.index.lengths[text])) for text in chosen] for name in WIDTHS}
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "acts"


@pytest.mark.usefixtures("small_shards")
def test_every_text_comes_back_at_every_tap_point_without_its_skipped_rows(folder: Path) -> None:
    made = contents([3, 1, 9, 40, 2, 9])
    begin_store(folder, made)
    fill(folder)
    store = ActivationStore.open(folder)
    assert store.lengths.tolist() == [2, 1, 8, 39, 1, 8]
    assert store.texts == tuple(made.texts)
    assert store.places[2] == "a.csv row 3"
    assert store.tokens(0) == [7, 7, 7]
    for where in (WHERE, HEADS):
        found = store.at(where)
        assert found.width == WIDTHS[where.name]
        assert len(found) == 6
        for text, states in enumerate(found):
            assert states.dtype == np.float32
            np.testing.assert_array_equal(states, rows(text, where.name, int(store.lengths[text])))


@pytest.mark.usefixtures("small_shards")
def test_views_are_of_the_texts_that_were_asked_for(folder: Path) -> None:
    begin_store(folder, contents([3, 4, 5, 6]))
    fill(folder)
    found = ActivationStore.open(folder).at(WHERE, [3, 1, 2])
    for view, wanted in (
        (found, [3, 1, 2]),
        (found[1:], [1, 2]),
        (found.take([2, 0]), [2, 3]),
        (found.take(np.array([True, False, True])), [3, 2]),
        (found.take([]), []),
    ):
        assert view.rows.tolist() == wanted
        assert view.lengths.tolist() == [text + 2 for text in wanted]
        for text, states in zip(wanted, view, strict=True):
            np.testing.assert_array_equal(states, rows(text, WHERE.name, text + 2))
    np.testing.assert_array_equal(found[-1], found[2])
    with pytest.raises(IndexError):
        found[3]


def test_a_store_travels_to_another_process_as_its_folder(folder: Path) -> None:
    store = planted_store(folder, n=6)
    view = pickle.loads(pickle.dumps(store.at(WHERE, [4, 2])))
    np.testing.assert_array_equal(view[0], store.at(WHERE)[4])


def test_shards_are_safetensors_that_the_public_reader_reads(folder: Path) -> None:
    begin_store(folder, contents([5, 3], "float16"))
    fill(folder)
    with safe_open(shard_path(folder, 0), "numpy") as file:
        kept = file.get_tensor(WHERE.name)
    assert kept.dtype == np.float16
    np.testing.assert_array_equal(kept[:4], rows(0, WHERE.name, 4).astype(np.float16))
    import torch

    begin_store(folder / "bf16", contents([5, 3], "bfloat16"))
    fill(folder / "bf16")
    with safe_open(shard_path(folder / "bf16", 0), "pt") as file:
        kept = file.get_tensor(WHERE.name)
    assert kept.dtype == torch.bfloat16
    np.testing.assert_array_equal(kept[:4].float().numpy(), ActivationStore.open(folder / "bf16").at(WHERE)[0])


@settings(deadline=None)
@given(hnp.arrays(np.float32, 7, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_bfloat16_is_rounded_as_torch_rounds(values: FloatArray) -> None:
    import torch

    wanted = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(decode(encode(values, "bfloat16")), wanted)


def test_the_digest_is_the_same_for_the_same_and_other_for_other_facts_texts_or_labels(tmp_path: Path) -> None:
    def digest(name: str, made: Contents) -> str:
        begin_store(tmp_path / name, made)
        fill(tmp_path / name)
        return ActivationStore.open(tmp_path / name).digest

    made = contents([3, 4])
    flipped = [LabelledText(text.text, not text.label, text.key) for text in made.texts]
    first = digest("a", made)
    assert digest("b", contents([3, 4])) == first
    others = {
        digest("c", contents([3, 4], name="other")),
        digest("d", contents([3, 5])),
        digest("e", Contents(made.facts, flipped, made.places, made.tokens)),
    }
    assert len(others | {first}) == 4


@pytest.mark.usefixtures("small_shards")
def test_a_second_begin_finds_what_is_there_and_what_is_missing(folder: Path) -> None:
    made = contents([40] * 8)
    begin_store(folder, made)
    missing = ShardWriter(folder).missing()
    assert len(missing) > 3
    fill(folder, only=2)
    begin_store(folder, made)
    assert ShardWriter(folder).missing() == missing[2:]
    with pytest.raises(
        LabError, match=r"states-00002\.safetensors is missing; the same `probes collect` command makes it"
    ):
        ActivationStore.open(folder)
    fill(folder)
    assert len(ActivationStore.open(folder)) == 8


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(folder: Path, tmp_path: Path) -> None:
    begin_store(folder, contents([3, 4]))
    fill(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flipped = contents([3, 4])
    flipped = Contents(
        flipped.facts, [LabelledText(t.text, not t.label, t.key) for t in flipped.texts], flipped.places, flipped.tokens
    )
    for other, what in (
        (contents([3, 4], "float16"), "state_dtype"),
        (contents([3, 4], name="x"), "data_name"),
        (contents([3, 5]), "tokens"),
        (flipped, "texts"),
    ):
        with pytest.raises(LabError, match=rf"something else \(other: {what}\)"):
            begin_store(folder, other)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(LabError, match=r"other files \(thesis.tex\)"):
        begin_store(tmp_path / "mine", contents([3, 4]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0")


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[9:30] = b"x" * 21
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, cut_header, lengthen, scramble, Path.unlink])
def test_a_harmed_shard_is_named_and_made_anew_by_the_same_run(folder: Path, harm: Callable[[Path], Any]) -> None:
    made = contents([30] * 6)
    begin_store(folder, made)
    fill(folder)
    good = shard_path(folder, 0).read_bytes()
    harm(shard_path(folder, 0))
    with pytest.raises(LabError, match=r"states-00000\.safetensors (is cut short or damaged|is missing)"):
        ActivationStore.open(folder)
    begin_store(folder, made)
    fill(folder)
    assert shard_path(folder, 0).read_bytes() == good


def test_a_shard_of_another_store_is_refused(tmp_path: Path) -> None:
    for name, made in (("a", contents([5, 3])), ("b", contents([5, 3], name="other"))):
        begin_store(tmp_path / name, made)
        fill(tmp_path / name)
    shard_path(tmp_path / "a", 0).replace(shard_path(tmp_path / "b", 0))
    with pytest.raises(LabError, match="belongs to another store"):
        ActivationStore.open(tmp_path / "b")


@pytest.mark.parametrize("name", ["texts.jsonl", "index.safetensors", "facts.json"])
def test_a_changed_or_missing_file_beside_the_shards_is_noticed(folder: Path, name: str) -> None:
    planted_store(folder, n=6)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(
        whole.replace(b"planted", b"plantee") if name != "index.safetensors" else whole[:-1] + b"x"
    )
    with pytest.raises(LabError, match="was changed after it was written"):
        ActivationStore.open(folder)
    (folder / name).unlink()
    with pytest.raises(LabError, match=name):
        ActivationStore.open(folder)


def test_a_folder_without_a_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"holds no activations \(facts\.json is missing\): `probes collect`"):
        ActivationStore.open(tmp_path)
    (tmp_path / "mine.csv").write_text("text,label\n")
    with pytest.raises(
        LabError, match=r"mine\.csv is a file, and no folder of activations: `probes collect` makes one"
    ):
        ActivationStore.open(tmp_path / "mine.csv")
    (tmp_path / "facts.json").write_text("{")
    with pytest.raises(LabError, match=r"facts\.json cannot be read"):
        ActivationStore.open(tmp_path)
    (tmp_path / "facts.json").write_text(json.dumps({"schema": "stethoscope.activations/9"}))
    with pytest.raises(LabError, match="not an activation store of this version"):
        ActivationStore.open(tmp_path)


def test_a_tap_point_that_was_not_collected_is_named(folder: Path) -> None:
    store = planted_store(folder, n=6)
    with pytest.raises(LabError, match=r"has no blocks\.9\.resid_post; it has blocks\.0\.resid_post"):
        store.at(TapPoint(9))


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float32", np.nan, "is NaN or infinite"),
        ("float32", np.inf, "is NaN or infinite"),
        ("float16", -np.inf, "is NaN or infinite"),
        ("float16", 7e4, r"reach 7e\+04, more than float16 holds; keep them with --dtype bfloat16 or float32"),
        ("float16", -7e4, "more than float16 holds"),
        ("bfloat16", 3.4e38, "more than bfloat16 holds; keep them with --dtype float32"),
    ],
)
def test_a_number_that_cannot_be_kept_names_its_text_and_tap_point(
    folder: Path, dtype: StateDtype, value: float, message: str
) -> None:
    begin_store(folder, contents([4, 4], dtype))
    writer = ShardWriter(folder)
    states = {name: [rows(text, name, 3) for text in (0, 1)] for name in WIDTHS}
    states[HEADS.name][1][2, 5] = value
    with pytest.raises(LabError, match=rf"a\.csv row 2: blocks\.1\.attn_heads: .*{message}"):
        writer.write(0, states)
    assert writer.missing() == [0]


def test_rows_of_another_width_are_refused(folder: Path) -> None:
    begin_store(folder, contents([4, 4]))
    with pytest.raises(LabError, match=r"a\.csv row 1: .* gave rows of shape \(3, 9\), not \(3, 8\)"):
        ShardWriter(folder).write(0, {name: [np.zeros((3, WIDTHS[name] + 1), np.float32)] * 2 for name in WIDTHS})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_what_is_whole(
    folder: Path, code: int, monkeypatch: pytest.MonkeyPatch, small_shards: None
) -> None:
    begin_store(folder, contents([40] * 6))
    fill(folder, only=1)

    def full(_fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(LabError, match=r"states-00001\.safetensors: the disk is full; what is finished is kept"):
        fill(folder)
    monkeypatch.undo()
    assert not list(folder.glob(".*.part"))
    assert 0 not in ShardWriter(folder).missing()
    fill(folder)
    assert len(ActivationStore.open(folder)) == 6


def test_states_that_the_disk_has_no_room_for_are_refused_before_the_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.activations.writer._free_bytes", lambda _: 5_000)
    with pytest.raises(LabError, match=r"the states take .* GB and the disk has 0\.0 GB left"):
        begin_store(folder, contents([4, 4]))


def test_reading_text_by_text_takes_a_fraction_of_the_memory_that_the_store_would(folder: Path) -> None:
    store = planted_store(folder, n=120, width=512, layers=2)
    size = int(store.lengths.sum()) * 512 * 4
    found = store.at(WHERE)
    found[0]
    tracemalloc.start()
    for states in found:
        assert states.shape[1] == 512
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 10


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=80), st.integers(1, 200_000))
def test_every_text_is_in_one_shard_and_no_shard_of_several_is_too_large(lengths: list[int], row_bytes: int) -> None:
    plan = plan_shards(np.array(lengths, dtype=np.int64), row_bytes)
    assert sorted(text for shard in plan for text in shard) == list(range(len(lengths)))
    for shard in plan:
        assert len(shard) == 1 or sum(lengths[text] for text in shard) * row_bytes <= SHARD_BYTES
    flat = [lengths[text] for shard in plan for text in shard]
    assert flat == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 300), max_size=60))
def test_batches_keep_the_order_and_stay_within_their_tokens(counts: list[int]) -> None:
    counts.sort(reverse=True)
    made = list(batches(list(range(len(counts))), counts, limit=256))
    assert [text for batch in made for text in batch] == list(range(len(counts)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(counts[text] for text in batch) <= 256


@pytest.mark.parametrize(
    ("tokens", "count"),
    [
        ([[1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1], [1, 2]], 0),
        ([[2, 1], [1, 2]], 0),
        ([[1, 2], [1, 2, 3]], 1),
    ],
)
def test_the_shared_beginning_leaves_each_text_a_token_of_its_own(
    folder: Path, tokens: list[list[int]], count: int
) -> None:
    made = contents([len(ids) for ids in tokens])
    begin_store(folder, Contents(made.facts, made.texts, made.places, tokens))
    assert ShardWriter(folder).index.shared_beginning() == count
