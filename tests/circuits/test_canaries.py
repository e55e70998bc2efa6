"""Canaries: what moves is told from noise, what is missing is not taken for quiet, and files that lie are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sidecar.circuits.canary import Group, compare, make_reference, moved
from sidecar.circuits.reference import Reference
from sidecar.circuits.watch import Alarm, Checkpoint, Watched
from sidecar.cli import main
from sidecar.config import Canary, load_config
from sidecar.errors import ConfigError
from sidecar.live.alarms import Alarms, Canaries, Cause, Raised, diagnose
from sidecar.live.canary_file import (
    About,
    CanaryFileError,
    Kept,
    in_columns_of,
    read_reference,
    read_round,
    record,
    shared_groups,
    write_round,
)
from sidecar.live.canary_prompts import own, prompts_of
from sidecar.live.canary_send import token_of
from sidecar.live.canary_values import says
from sidecar.live.windows import FILE, WindowError, declare, is_open, windows
from sidecar.reading.canary import fingerprint
from sidecar.types import TapPoint

GROUPS = [Group("circuit", slice(0, 3), relative=False), Group("blocks.1.resid_post", slice(3, 19))]
TOKENS = [(f"canary-{prompt}", -1 - at) for prompt in range(12) for at in range(4)]
NOISE = 1e-3


def rounds(count: int, seed: int = 0, shift: float = 0.0, columns: slice = slice(0, 19)) -> list[dict]:
    """What a model gives, its noise added; ``shift`` of noise's length is added in those columns."""
    base = np.random.default_rng(99).normal(size=(len(TOKENS), 19))
    base[:, columns] += shift * NOISE
    draws = np.random.default_rng(seed)
    return [
        dict(zip(TOKENS, (base + draws.normal(scale=NOISE, size=base.shape)).astype(np.float32), strict=True))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def reference():
    return make_reference(rounds(5), GROUPS, "float32")


def test_the_floor_is_the_noise_of_rounds_and_a_sound_round_is_about_one_floor_away(reference) -> None:
    assert reference.floors["blocks.1.resid_post"] == pytest.approx(4 * NOISE, rel=0.15)
    (told,) = [compare(reference, one, GROUPS) for one in rounds(1, seed=7)]
    assert all(0.7 < distance < 1.5 for distance in told.distances.values())
    assert told.whole


def test_only_the_group_that_moved_has_moved_and_only_after_two_rounds(reference) -> None:
    shifted = [compare(reference, one, GROUPS) for one in rounds(2, seed=3, shift=20.0, columns=slice(3, 19))]
    quiet = compare(reference, rounds(1, seed=4)[0], GROUPS)
    assert moved(shifted[:1]) == frozenset()
    assert moved([quiet, shifted[0]]) == frozenset()
    assert moved([quiet, *shifted]) == {"blocks.1.resid_post"}


def test_a_round_that_is_not_whole_says_nothing(reference) -> None:
    full = rounds(1, seed=5, shift=50.0)[0]
    part = dict(list(full.items())[:30])
    told = compare(reference, part, GROUPS)
    assert not told.whole
    assert moved([told, told]) == frozenset()
    assert compare(reference, {}, GROUPS).compared == 0


def test_numbers_that_are_none_are_left_out_and_a_group_without_any_has_no_distance(reference) -> None:
    one = rounds(1, seed=6)[0]
    one[TOKENS[0]] = np.full(19, np.nan, np.float32)
    assert all(np.isfinite(distance) for distance in compare(reference, one, GROUPS).distances.values())
    for row in one.values():
        row[:3] = np.nan
    told = compare(reference, one, GROUPS)
    assert np.isnan(told.distances["circuit"])
    assert told.unread == {"circuit"}
    assert not told.whole
    assert moved([told, told]) == frozenset()


def test_where_rounds_are_bit_for_bit_the_same_the_floor_is_that_of_the_type() -> None:
    same = rounds(1) * 3
    floors = {
        dtype: make_reference(same, GROUPS, dtype).floors["blocks.1.resid_post"] for dtype in ("float32", "bfloat16")
    }
    assert 0 < floors["float32"] < floors["bfloat16"] / 1000
    made = make_reference(same, GROUPS, "float32")
    assert compare(made, same[0], GROUPS).distances["blocks.1.resid_post"] < 1


def test_a_fingerprint_keeps_distances_and_is_the_same_everywhere() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 576)).astype(np.float32)
    made = fingerprint(TapPoint(3), rows)
    ratios = np.linalg.norm(made, axis=1) / np.linalg.norm(rows, axis=1)
    assert 0.95 < ratios.mean() < 1.05
    assert np.array_equal(made[:1], fingerprint(TapPoint(3), rows)[:1])
    assert not np.allclose(made, fingerprint(TapPoint(4), rows))
    assert float(fingerprint(TapPoint(0), np.ones((1, 8), np.float32))[0, :4].sum()) == pytest.approx(0.25)


def test_a_group_of_which_more_than_a_tenth_is_no_number_is_neither_quiet_nor_moved_and_the_others_are_judged(
    reference,
) -> None:
    def told(shift: float, lost: int):
        made = rounds(1, seed=8, shift=shift, columns=slice(3, 19))[0]
        for token in TOKENS[:lost]:
            made[token][0] = np.inf
        return compare(reference, made, GROUPS)

    assert told(0.0, lost=4).whole
    assert says([told(0.0, lost=4)] * 2, "circuit", 5.0) is Canaries.QUIET
    assert says([told(0.0, lost=5)] * 2, "circuit", 5.0) is Canaries.SILENT
    assert (
        says([told(0.0, lost=5)] * 2, "blocks.1.resid_post", 5.0) is Canaries.SILENT
    )  # all that is read is quiet, and not all is
    assert says([told(20.0, lost=5)] * 2, "blocks.1.resid_post", 5.0) is Canaries.MOVED
    assert says([told(20.0, lost=4)] * 2, "circuit", 5.0) is Canaries.MOVED_ELSEWHERE


def test_a_tap_point_without_any_number_is_not_sent_and_one_with_some_is_broken(reference) -> None:
    made = rounds(1, seed=9)[0]
    for row in made.values():
        row[3:] = np.nan
    assert compare(reference, made, GROUPS).whole
    made[TOKENS[0]] = rounds(1, seed=9)[0][TOKENS[0]]
    assert compare(reference, made, GROUPS).unread == {"blocks.1.resid_post"}


def test_one_round_alone_is_no_word(reference) -> None:
    quiet, shifted = (compare(reference, rounds(1, seed=3, shift=shift)[0], GROUPS) for shift in (0.0, 20.0))
    assert says([quiet], "circuit", 5.0) is says([shifted], "circuit", 5.0) is Canaries.SILENT
    assert says([quiet, quiet], "circuit", 5.0) is Canaries.QUIET


def test_a_circuit_that_the_plan_has_no_more_is_not_missing_from_its_rounds(reference) -> None:
    now = replaced(ABOUT, groups=ABOUT.groups[1:])
    read = {token: row[3:] for token, row in rounds(1, seed=7)[0].items()}
    told = compare(reference, in_columns_of(ABOUT, now, read), shared_groups(ABOUT, now))
    assert told.whole
    assert told.distances.keys() == {"blocks.1.resid_post"}


ABOUT = About(
    "m" * 64, "float32", "transformers", "p" * 64, 1000, (("circuit", 3, False), ("blocks.1.resid_post", 16, True))
)


def test_a_reference_is_made_of_kept_rounds_and_only_the_newest_are_kept(tmp_path: Path, capsys) -> None:
    for number, values in enumerate(rounds(6)):
        write_round(tmp_path / "canaries", Kept(replaced(ABOUT, at_s=1000 + number), values), most=4)
    paths = sorted((tmp_path / "canaries").iterdir())
    assert [path.name for path in paths] == [f"round-{1000 + n:010d}.safetensors" for n in range(2, 6)]
    assert main(["canary", "record", str(tmp_path), "--out", str(tmp_path / "reference"), "--rounds", "4"]) == 0
    about, made = read_reference(tmp_path / "reference")
    assert about.same(ABOUT)
    assert len(made.tokens) == len(TOKENS)
    assert "floor" in capsys.readouterr().out
    assert main(["canary", "record", str(tmp_path), "--out", str(tmp_path / "reference"), "--rounds", "9"]) == 65


def test_rounds_of_two_models_make_no_reference_and_what_is_no_file_of_canaries_is_refused(tmp_path: Path) -> None:
    values = rounds(2)
    write_round(tmp_path, Kept(ABOUT, values[0]), 9)
    write_round(tmp_path, Kept(replaced(ABOUT, at_s=1001, model_hash="n" * 64), values[1]), 9)
    with pytest.raises(CanaryFileError, match="several models"):
        record(sorted(tmp_path.glob("round-*")), tmp_path / "reference")
    for content in (b"", b"\0" * 64, b"\x08\0\0\0\0\0\0\0{}      "):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(CanaryFileError, match="no file of canaries"):
            read_round(tmp_path / "bad")
    with pytest.raises(CanaryFileError, match="no canary reference"):
        read_reference(tmp_path / "round-0000001000.safetensors")


def replaced(about: About, **changes) -> About:
    from dataclasses import replace

    return replace(about, **changes)


@pytest.mark.parametrize(
    ("canaries", "excluded", "cause"),
    [
        (Canaries.QUIET, 0.0, Cause.TRAFFIC),
        (Canaries.MOVED, 0.0, Cause.MODEL),
        (Canaries.MOVED_ELSEWHERE, 0.0, Cause.BOTH),
        (Canaries.SILENT, 0.0, Cause.UNKNOWN),
        (Canaries.QUIET, 0.2, Cause.DATA),
        (Canaries.QUIET, float("nan"), Cause.DATA),
    ],
)
def test_the_product_of_both_alarms_is_the_diagnosis(canaries: Canaries, excluded: float, cause: Cause) -> None:
    assert diagnose(canaries, excluded) is cause


def test_prompts_are_our_own_or_a_file_of_eight_to_a_hundred_and_twenty_eight(tmp_path: Path) -> None:
    assert len(set(own())) == 32
    path = tmp_path / "prompts"
    path.write_text("\n\n".join(f"prompt {number}" for number in range(8)))
    assert prompts_of(path)[7] == "prompt 7"
    path.write_text("one\ntwo")
    with pytest.raises(ConfigError):
        prompts_of(path)


@pytest.mark.parametrize("marks", ["headers", "vllm_xargs"])
def test_canaries_want_a_token_and_an_archive(marks: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(env={}, flags={"canary.url": "http://127.0.0.1:8000", "canary.marks": marks})
    assert [problem.partition(" ")[0] for problem in refused.value.problems] == ["canary.url", "canary.url"]


@pytest.mark.parametrize("text", ["", "\n", "sec\nret", "sec\tret", "sécret", "\x00secret"])
def test_a_token_that_a_request_cannot_carry_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        token_of(Canary(token_file=path))
    assert "ret" not in str(refused.value)
    path.write_text("secret\n")
    assert token_of(Canary(token_file=path)) == "secret"


def test_deploy_windows_are_chained_and_the_newest_entry_decides(tmp_path: Path) -> None:
    declare(tmp_path, 100, 200, "new weights", 100)
    assert is_open(windows(tmp_path), 150)
    assert not is_open(windows(tmp_path), 200)
    declare(tmp_path, 150, 150, "done", 150)
    entries = windows(tmp_path)
    assert not is_open(entries, 160)
    assert [one.why for one in entries] == ["new weights", "done"]
    assert entries[1].previous != ""


@pytest.mark.parametrize("tampering", ["changed", "first taken out", "garbage"])
def test_an_entry_that_is_changed_or_taken_out_is_found_and_nothing_is_added_behind_it(
    tmp_path: Path, tampering: str
) -> None:
    for number in range(3):
        declare(tmp_path, 100 * number, 100 * number + 50, f"deploy {number}", 100 * number)
    path = tmp_path / FILE
    lines = path.read_bytes().splitlines()
    if tampering == "changed":
        lines[0] = lines[0].replace(b"deploy 0", b"deploy 9")
    elif tampering == "first taken out":
        lines = lines[1:]
    else:
        lines[1] = b'{"at_s": 1}'
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(WindowError):
        windows(tmp_path)
    with pytest.raises(WindowError):
        declare(tmp_path, 900, 950, "late", 900)


def test_a_deploy_window_is_opened_listed_and_closed_by_its_command(tmp_path: Path, capsys) -> None:
    archive = str(tmp_path)
    assert main(["deploy-window", "open", archive, "--for", "30m", "--why", "new kernel"]) == 0
    assert main(["deploy-window", "list", archive]) == 0
    assert "a window is open" in capsys.readouterr().out
    assert main(["deploy-window", "close", archive, "--why", "done"]) == 0
    assert main(["deploy-window", "list", archive]) == 0
    assert "a window is not open" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["open"], "open wants --why TEXT, and wants --for TIME such as 30m, at most 24h"),
        (["open", "--for", "30m"], "open wants --why TEXT"),
        (["open", "--why", "x"], "open wants --for TIME such as 30m, at most 24h"),
        (["open", "--for", "25h", "--why", "x"], "open wants --for TIME such as 30m, at most 24h"),
        (["close"], "close wants --why TEXT"),
        (["close", "--why", "x", "--for", "1m"], "close takes no --for: it ends the window now"),
    ],
)
def test_whoever_forgets_something_of_a_window_is_told_just_that(tmp_path: Path, capsys, given, told) -> None:
    assert main(["deploy-window", *given, str(tmp_path)]) == 78
    assert capsys.readouterr().err == f"sidecar: {told}\n"
    assert not list(tmp_path.iterdir())


def test_an_alarm_that_comes_before_the_one_before_it_was_diagnosed_takes_nothing_away() -> None:
    band = Watched("going_on", "all", "m", "s", 4, Reference(np.array([0.5]), np.array([0.1]), 0.05))
    alarms = Alarms(cool_down=5)
    for tick in (10, 16):
        alarm = Alarm(band, tick, 1, 1, "less", Checkpoint(tick - 3, (0,) * 12))
        alarms.add(Raised(alarm, (), 0.0, True, 60.0, 0, "d" * 64))
    assert alarms.settle(lambda _: None) == []
    assert [one.alarm.tick for one in alarms.settle(lambda _: Canaries.QUIET)] == [10, 16]
    assert alarms.counts == {("going_on", "all", "traffic"): 2}
    alarms.cool(21)
    assert [one.alarm.tick for one in alarms.open.values()] == [16]
    alarms.cool(22)
    assert not alarms.open
