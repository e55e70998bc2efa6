"""Labelled files of every format give the same texts; whatever is wrong with one is said with its file and row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from probes.data.columns import Columns
from probes.data.reading import Loaded, Sources, load_texts
from probes.errors import LabError

ROWS = [("a fine film", 1), ("a dull film", 0), ("great, really", 1), ("not for me", 0)]
CSV = 'text,label\na fine film,1\na dull film,0\n"great, really",1\nnot for me,0\n'


def write(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def load(*files: str, outside: tuple[str, ...] = (), columns: Columns | None = None, **more: object) -> Loaded:
    return load_texts(Sources(data=files, outside=outside, columns=columns or Columns(), **more))  # type: ignore[arg-type]


def pairs(loaded: Loaded) -> list[tuple[str, int]]:
    return [(text.text, int(text.label)) for text in loaded.texts]


def parquet(folder: Path) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"text": [text for text, _ in ROWS], "label": [label == 1 for _, label in ROWS]})
    parquet.write_table(table, folder / "films.parquet")
    return str(folder / "films.parquet")


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"sentence": text, "target": label}) + "\n\n" for text, label in ROWS)
    frames = zstandard.ZstdCompressor().compress(CSV[:30].encode()) + zstandard.ZstdCompressor().compress(
        CSV[30:].encode()
    )
    for file in (
        write(tmp_path, "films.csv", CSV),
        write(tmp_path, "bom.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        write(tmp_path, "films.csv.zst", frames),
        write(
            tmp_path,
            "semicolons.csv",
            "\ufeff" + CSV.replace('"great, really"', "great| really").replace(",", ";").replace("|", ","),
        ),
        write(
            tmp_path, "tabs.csv", CSV.replace('"great, really"', "great| really").replace(",", "\t").replace("|", ",")
        ),
        write(
            tmp_path, "films.tsv", CSV.replace('"great, really"', "great; really").replace(",", "\t").replace(";", ",")
        ),
        write(tmp_path, "films.jsonl", lines),
        parquet(tmp_path),
    ):
        loaded = load(file)
        assert pairs(loaded) == ROWS
        assert loaded.name == Path(file).name.partition(".")[0]
        assert not loaded.told.duplicates


def test_columns_can_be_named_and_are_guessed_whatever_their_case(tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "Text,other,good\nx y,1,yes\nz w,0,no\n")
    assert pairs(load(file, columns=Columns(label="good"))) == [("x y", 1), ("z w", 0)]
    assert pairs(load(file, columns=Columns(text="Text", label="other"))) == [("x y", 1), ("z w", 0)]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("words,label\na,1\n", Columns(), r"a.csv has no column text, prompt or sentence.*\(there are: words, label\)"),
        ("text,prompt,label\na,b,1\n", Columns(), "has 'text' and 'prompt': name one with --text"),
        ("text,mark\na,1\n", Columns(), "a.csv has no column label, target or y.*--label"),
        ("text,label\na,1\n", Columns(text="words"), "a.csv has no column 'words'"),
        ("text,label\na,1\n", Columns(group="author"), "a.csv has no column 'author'"),
        ("text,label\na,1\nb,1\n", Columns(), "a.csv: every label is '1'"),
        ("text,label\na,1\nb,0\nc,\n", Columns(), "a.csv row 3: the label is missing"),
        ("text,label\na,1\nb,0\nc,nan\n", Columns(), "a.csv row 3: the label is missing"),
        ("text,label\na,1\nb,0\nc,2\n", Columns(), "a.csv row 3: the third class"),
        ("text,label\na,1\n  ,0\n", Columns(), "a.csv row 2: the text is empty"),
        ("text,label\na,ham\nb,spam\n", Columns(), "a.csv: the labels are 'ham' and 'spam'"),
        ("text,label\na,1\nb,0,9\n", Columns(), "a.csv row 2 has 3 fields, and the header 2"),
        ("text,label\na,1\nb\n", Columns(), "a.csv row 2 has 1 fields"),
        ('text,label\n"a,1\nb,0\n', Columns(), "a.csv line 3: unexpected end of data"),
        ("text,text\na,1\n", Columns(), "the column 'text' is there twice"),
        ("", Columns(), "a.csv is empty"),
        ("text,label\n", Columns(), "a.csv has no rows"),
        (b"text,label\na,1\n\xff\xfe,0\n", Columns(), "a.csv line 3 is not UTF-8 .*: save it as UTF-8"),
    ],
    ids=str,
)
def test_a_bad_table_is_refused_with_its_file_and_row(
    tmp_path: Path, content: str | bytes, columns: Columns, message: str
) -> None:
    with pytest.raises(LabError, match=message):
        load(write(tmp_path, "a.csv", content), columns=columns)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "a.jsonl line 3 is not sound JSON"),
        ("[1, 2]", "a.jsonl line 3 is not an object"),
        ('{"label": 1}', "a.jsonl line 3: there is no text"),
        ('{"text": ["a"], "label": 1}', "a.jsonl line 3: 'text' is not a text but list"),
        ('{"text": "a"}', "a.jsonl line 3: the label is missing"),
        ('{"text": "\\ud800", "label": 1}', "a.jsonl line 3: the text holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path, "a.jsonl", '{"text": "x", "label": 0}\n\n' + line + '\n{"text": "z", "label": 1}\n')
    with pytest.raises(LabError, match=message):
        load(file)


def test_files_that_are_not_there_or_damaged_are_refused(tmp_path: Path) -> None:
    whole = zstandard.ZstdCompressor().compress(CSV.encode() * 100)
    for file, message in (
        (str(tmp_path / "none.csv"), "none.csv is not there"),
        (str(tmp_path), "not a format that is read here"),
        (write(tmp_path, "a.pkl", b"x"), "not a format that is read here"),
        (write(tmp_path, "a.csv.zst", whole[: len(whole) // 2]), "a.csv.zst is cut short"),
        (write(tmp_path, "b.csv.zst", b"no zstd"), "b.csv.zst is not sound zstd"),
        (write(tmp_path, "a.parquet", b"PAR1 not"), "a.parquet cannot be read as Parquet"),
        ("sae:glue_sst2", "sae:glue_sst2 is no set of sae_probes; did you mean 92_glue_sst2"),
    ):
        with pytest.raises(LabError, match=message):
            load(file)


def test_installed_sets_are_read_by_their_name_and_limited_to_the_same_texts(tmp_path: Path) -> None:
    loaded = load("sae:92_glue_sst2", limit=40)
    assert sum(text.label for text in loaded.texts) == 20
    assert len(loaded.texts) == 40
    assert {text.dataset for text in loaded.texts} == {"92_glue_sst2"}
    assert loaded.told.rows == len(loaded.texts) + loaded.told.beyond_limit + loaded.told.duplicates
    assert loaded.texts == load("sae:92_glue_sst2", limit=40).texts


def test_repeated_texts_and_texts_under_both_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = ["good film,1", "Good  film!,1", "bad film,0", "so so,1", "So so,0", "fine,1", "no,0"]
    loaded = load(write(tmp_path, "a.csv", "text,label\n" + "\n".join(rows)))
    assert pairs(loaded) == [("good film", 1), ("bad film", 0), ("fine", 1), ("no", 0)]
    assert loaded.places == ("a.csv row 1", "a.csv row 3", "a.csv row 6", "a.csv row 7")
    assert (loaded.told.rows, loaded.told.duplicates, loaded.told.both_labels) == (7, 1, 2)


def test_when_duplicates_take_a_class_with_them_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"a\.csv: once duplicates .* are out, one class is left"):
        load(write(tmp_path, "a.csv", "text,label\na,1\nb,1\nb,0\n"))


def test_alike_texts_and_texts_of_one_author_share_a_group(tmp_path: Path) -> None:
    rows = ["one two three four five,1,x", "one two three four five six,0,y", "else,1,y", "alone,0,z"]
    loaded = load(write(tmp_path, "a.csv", "text,label,author\n" + "\n".join(rows)), columns=Columns(group="author"))
    first, *_ = loaded.texts
    assert [text.group for text in loaded.texts] == [first.key, first.key, first.key, ""]


def test_several_files_are_several_data_sets_and_may_hold_one_class_each(tmp_path: Path) -> None:
    good = write(tmp_path, "good.csv", "text,label\na b,1\nc d,1\n")
    bad = write(tmp_path, "bad.csv", "text,label\ne f,0\ng h,0\n")
    loaded = load(good, bad)
    assert [text.dataset for text in loaded.texts] == ["good", "good", "bad", "bad"]
    assert loaded.name == "bad + good"
    column = load(write(tmp_path, "c.csv", "text,label,dataset\na,1,x\nb,0,y\nc,1,\n"))
    assert [text.dataset for text in column.texts] == ["x", "y", "c"]


def test_an_outside_set_is_kept_apart_and_what_it_shares_is_left_out(tmp_path: Path) -> None:
    inside = write(tmp_path, "in.csv", "text,label\na b,spam\nc d,ham\n")
    outside = write(tmp_path, "out.csv", "text,label\nA b,1\ne f,1\ng h,0\n")
    loaded = load(inside, outside=(outside,), positive="spam")
    assert loaded.outside == ("out",)
    assert pairs(loaded) == [("a b", 1), ("c d", 0), ("e f", 1), ("g h", 0)]
    assert loaded.name == "in"
    assert loaded.told.duplicates == 1
    with pytest.raises(LabError, match="'in' is the name of an outside set and of a data set"):
        load(inside, outside=(inside,), positive="spam")


def test_minimal_pairs_stay_whole_within_the_limit_and_in_one_group(tmp_path: Path) -> None:
    rows = [f"text {chr(97 + number)},{label},{number}" for number in range(20) for label in (1, 0)]
    lines = [f"{'not ' if number % 2 else ''}{row}" for number, row in enumerate(rows)]
    loaded = load(write(tmp_path, "a.csv", "text,label,pair\n" + "\n".join(lines)), limit=10)
    assert len(loaded.texts) == 10
    for text in loaded.texts:
        (other,) = (one for one in loaded.texts if one.pair == text.pair and one is not text)
        assert (other.label, other.group) == (not text.label, text.group)
        assert text.group


def test_a_text_whose_partner_is_left_out_loses_its_pair_and_is_counted(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "a.csv", "text,label,pair\nx,1,p\ny,0,p\nz,1,q\nX,1,\nx!,1,\nw,0,q\nW,0,r\nv,1,r\n"))
    assert {text.text: text.pair for text in loaded.texts} == {
        "x": "a:p", "y": "a:p", "z": "a:q", "w": "a:q", "v": "",
    }  # fmt: skip
    assert loaded.told.lost_pairs == 1


@pytest.mark.parametrize("rows", ["x,1,p\ny,1,p\nz,0,", "x,1,p\ny,0,\n", "x,1,p\ny,0,p\nz,0,p"])
def test_a_pair_that_is_none_is_refused(tmp_path: Path, rows: str) -> None:
    with pytest.raises(LabError, match=r"a\.csv row 1: the pair 'p' has"):
        load(write(tmp_path, "a.csv", f"text,label,pair\n{rows}\n"))


def test_benign_rows_need_no_labels(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "a.csv", "text\na b\nc d\n"), negative_only=True)
    assert pairs(loaded) == [("a b", 0), ("c d", 0)]


def test_without_labels_the_limit_is_all_of_it(tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "text\n" + "".join(f"{chr(97 + number)}\n" for number in range(20)))
    few = load(file, negative_only=True, limit=10)
    assert (len(few.texts), few.told.beyond_limit) == (10, 10)


def test_a_limit_that_leaves_a_label_without_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="--limit"):
        load(write(tmp_path, "a.csv", CSV), limit=1)


def test_digests_tell_other_texts_labels_and_groups_apart(tmp_path: Path) -> None:
    one = load(write(tmp_path, "a.csv", CSV))
    same = load(write(tmp_path, "a.csv", CSV.replace("fine", "FINE")))
    other = load(write(tmp_path, "a.csv", CSV.replace("fine", "poor")))
    assert one.digest == same.digest != other.digest
