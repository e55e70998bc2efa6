"""Which texts are the same, which belong together, and that none of them teaches one part and tests in another."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.data.alike import alike_groups, joined
from probes.data.parts import assign_parts
from probes.data.texts import LabelledText, data_digest, normalised, text_key
from probes.errors import LabError
from probes.stages import Part

INSIDE = [Part.TRAIN, Part.SELECT, Part.CALIBRATE, Part.TEST]


def texts(count: int, groups: int = 0, seed: int = 0) -> list[LabelledText]:
    draw = random.Random(seed)
    return [
        LabelledText(
            f"text {number}",
            bool(draw.getrandbits(1)),
            text_key(f"text {number}"),
            group=f"g{draw.randrange(groups)}" if groups else "",
        )
        for number in range(count)
    ]


def test_a_key_knows_no_case_marks_or_spacing_but_digits() -> None:
    assert text_key("Good  film!") == text_key("good FILM")
    assert text_key("3 > 7") != text_key("7 > 3")
    assert text_key(":-)") != text_key(":-(")
    assert normalised("\uff26\uff35\uff2c\uff2c") == "full"


def test_texts_that_share_five_words_in_a_row_are_alike_also_through_others() -> None:
    found = alike_groups(
        ["one two three four five six", "seven", "x one two three four five y z w v u", "y z w v u t"], [()] * 4
    )
    assert found == [0, 1, 0, 0]


def test_texts_that_differ_in_digits_alone_are_alike() -> None:
    assert alike_groups(["code 1234", "code 9876", "code red"], [()] * 3) == [0, 0, 2]


def test_texts_of_one_author_are_alike() -> None:
    assert alike_groups(["a", "b", "c"], [["author 1"], ["author 2"], ["author 1"]]) == [0, 1, 0]


def test_the_form_that_most_texts_of_a_set_are_put_in_does_not_make_them_alike() -> None:
    asked = [f"is the following statement true or false: word{chr(97 + number)}" for number in range(20)]
    assert alike_groups(asked, [()] * 20) == list(range(20))
    others = [f"other{'ab'[number // 20]}{chr(97 + number % 20)} topic" for number in range(40)]
    sets = ["asked"] * 20 + ["others"] * 40
    assert alike_groups(asked + others, [()] * 60, sets) == list(range(60))


@given(st.lists(st.lists(st.integers(0, 8), max_size=3), max_size=12))
def test_joined_items_are_those_that_a_walk_over_shared_marks_reaches(marks: list[list[int]]) -> None:
    heads = joined(marks)
    for start in range(len(marks)):
        reached, frontier = {start}, [start]
        while frontier:
            item = frontier.pop()
            new = {other for other in range(len(marks)) if set(marks[other]) & set(marks[item])} - reached
            reached |= new
            frontier.extend(new)
        assert heads[start] == min(reached)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["", "a", "b", "c", "d"]), st.integers(0, 60), st.sampled_from("xyz")),
        max_size=120,
    ),
    st.integers(0, 5),
)
def test_a_duplicate_or_a_relative_in_another_part_is_impossible(
    rows: list[tuple[bool, str, int, str]], seed: int
) -> None:
    made = [
        LabelledText(f"t{number}", label, text_key(f"t{number}"), group=group, dataset=dataset)
        for label, group, number, dataset in rows
    ]
    try:
        parts = assign_parts(made, seed, outside=frozenset("z"))
    except LabError:
        return  # too few texts for four parts
    for one, its in zip(made, parts, strict=True):
        assert (one.dataset == "z") == (its in (Part.OUTSIDE, Part.DROPPED))
        for other, others in zip(made, parts, strict=True):
            if one.key == other.key or (one.group and one.group == other.group):
                assert its == others or Part.DROPPED in (its, others)


def test_parts_have_their_shares_of_both_labels() -> None:
    made = texts(1000)
    parts = assign_parts(made, 0)
    for label in (True, False):
        count = sum(text.label is label for text in made)
        found = Counter(part for text, part in zip(made, parts, strict=True) if text.label is label)
        for part, share in zip(INSIDE, (0.5, 0.1, 0.2, 0.2), strict=True):
            assert abs(found[part] - share * count) <= 2


def test_parts_of_grouped_texts_are_near_their_shares() -> None:
    made = texts(1000, groups=60)
    found = Counter(assign_parts(made, 0))
    for part, share in zip(INSIDE, (0.5, 0.1, 0.2, 0.2), strict=True):
        assert abs(found[part] - share * 1000) < 40


def test_parts_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    made = texts(200)
    assert assign_parts(made, 1) == assign_parts(made, 1)
    assert assign_parts(made, 1) != assign_parts(made, 2)


def test_a_part_without_a_share_stays_empty() -> None:
    parts = assign_parts(texts(100), 0, shares=(0.6, 0.0, 0.0, 0.4))
    assert set(parts) == {Part.TRAIN, Part.TEST}


def test_an_outside_text_with_a_relative_inside_is_dropped() -> None:
    made = texts(40)
    relative = LabelledText("x", True, text_key("x"), group="g", dataset="out")
    inside = LabelledText("y", True, text_key("y"), group="g")
    stranger = LabelledText("z", True, text_key("z"), dataset="out")
    parts = assign_parts([relative, *made, inside, stranger], 0, outside={"out"})
    assert parts[0] is Part.DROPPED
    assert parts[-2] in INSIDE
    assert parts[-1] is Part.OUTSIDE


def test_too_few_texts_for_a_part_are_refused_with_their_number() -> None:
    made = [*texts(30), LabelledText("p", True, text_key("p"))]
    few = [text for text in made if not text.label] + made[-1:]
    with pytest.raises(LabError, match=r"no positive text is left for the part 'select': there are \d+ texts"):
        assign_parts(few, 0)


def test_shares_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(LabError, match="add up to 1"):
        assign_parts(texts(10), 0, shares=(0.5, 0.5, 0.5, 0.5))


def test_the_digest_of_data_changes_with_every_field() -> None:
    text = LabelledText("a", True, "k", "g", "d", "p")
    digests = {
        data_digest([text]),
        data_digest([text, text]),
        *(
            data_digest([LabelledText(**{**dict.fromkeys(("text", "key"), "a"), "label": True, **change})])
            for change in ({"label": False}, {"group": "g"}, {"dataset": "g"}, {"pair": "g"}, {"key": "b"})
        ),
    }
    assert len(digests) == 7
