"""Detectors side by side, over the life of a sidecar: ticks in disorder, restarts, alarms, their records and their replay."""

from __future__ import annotations

import gc
import json
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from bench.detecting import detect, flat
from bench.streams import IID, MEAN, ablated, stream
from sidecar.circuits.archive import write_archive
from sidecar.circuits.detector import BETS, NOTHING, RUN_LENGTH, advance, betting_table, log_threshold
from sidecar.circuits.merge import OtherHashError
from sidecar.circuits.record import About, RecordError, make_record, read_record, write_record
from sidecar.circuits.reference import SILENT_TICKS, WEEK, Reference, hour_of_week
from sidecar.circuits.replay import Against, differences
from sidecar.circuits.watch import Settings, Watch, Watched
from sidecar.cli import main
from tests.circuits.live import TICK_S, row

WATCHED = Watched("induction", "all", "m" * 64, "s" * 64, 4, flat(MEAN, 0.01))
DIGEST = "b" * 64
REPO = Path(__file__).parents[2]


def history(sound: int, gone: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    counts = np.concatenate((stream(IID, sound, rng)[0], ablated(gone, rng)[0])) if sound else ablated(gone, rng)[0]
    return [row(one.tolist(), tick=tick) for tick, one in enumerate(counts)]


def run(watch: Watch, rows: list) -> list:
    return [alarm for one in rows for alarm in watch.take(one.key.tick, [one])]


def test_an_ablation_is_seen_within_160_sessions_and_says_less():
    for seed in range(20):
        (alarm, *_) = run(Watch([WATCHED], TICK_S), history(300, 30, seed))
        assert 300 < alarm.tick + 1 <= 300 + 160 // 20
        assert alarm.leans == "less"
        assert alarm.log_e >= alarm.log_threshold


def test_a_circuit_that_wakes_up_is_seen_too_and_says_more():
    rng = np.random.default_rng(0)
    counts = stream(IID, 40, rng, mean=0.6)[0]
    (alarm, *_) = run(Watch([WATCHED], TICK_S), [row(one.tolist(), tick=tick) for tick, one in enumerate(counts)])
    assert alarm.tick < 20
    assert alarm.leans == "more"


def test_after_an_alarm_it_cools_down_and_then_begins_anew():
    watch = Watch([WATCHED], TICK_S, Settings(cool_down=50))
    ticks = [one.tick for one in run(watch, history(0, 200))]
    assert len(ticks) == 4
    assert all(50 < later - earlier < 60 for earlier, later in pairwise(ticks))


def test_late_and_repeated_ticks_change_nothing_and_are_counted():
    rows = history(0, 3)
    watch, other = Watch([WATCHED], TICK_S), Watch([WATCHED], TICK_S)
    run(watch, rows)
    run(other, [rows[0], rows[1], rows[1], rows[0], rows[2], rows[2], rows[0]])
    assert (other.repeated, other.late, other.missed) == (2, 2, 0)
    assert other.evidence.tolist() == watch.evidence.tolist()
    other.take(10, [])
    assert other.missed == 7
    assert other.evidence.tolist() == watch.evidence.tolist()


def test_no_data_is_no_evidence_and_is_counted_for_an_alert_of_its_own():
    watch = Watch([replace(WATCHED, reference=bringing(1.0))], TICK_S)
    run(watch, history(0, 2))
    before = watch.evidence
    for tick in range(2, 5000):
        assert watch.take(tick, []) == ()
    assert watch.silent_ticks.tolist() == [4998]
    np.testing.assert_array_equal(watch.evidence, before)


def bringing(per_tick: float) -> Reference:
    return replace(flat(MEAN, 0.01), per_tick=np.array([per_tick]))


@pytest.mark.parametrize("few", [0.0, 0.33])
def test_an_hour_in_which_few_came_while_the_baseline_was_learned_is_no_silence(few):
    """Of any width: it may be that of the same hour on other days."""
    per_tick = np.full(WEEK, 0.34)
    per_tick[hour_of_week(3600)] = few
    reference = Reference(np.full(WEEK, MEAN), np.full(WEEK, 0.01), 0.05, per_tick)
    watch = Watch([replace(WATCHED, reference=reference)], 60)
    silent = []
    for tick in range(3 * 60):
        watch.take(tick, [])
        silent.append(int(watch.silent_ticks[0]))
    assert silent == [*range(1, 61), *[60] * 60, *range(61, 121)]


def test_of_two_replicas_each_expects_half_of_the_sessions_and_has_the_band_of_all():
    assert bringing(0.4).expects(0)
    assert not bringing(0.4).of_one_in(2).expects(0)
    assert bringing(0.4).of_one_in(2).band(0) == bringing(0.4).band(0)
    with pytest.raises(ValueError, match="how many sessions come"):
        bringing(-1.0)


def test_the_alert_waits_as_many_ticks_as_sessions_are_expected_in():
    (rules,) = yaml.safe_load((REPO / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    (told,) = [one["expr"] for one in rules["rules"] if one["alert"] == "StethoscopeCircuitNoData"]
    assert f"{SILENT_TICKS} * stethoscope_circuits_tick_seconds" in told


def test_detectors_that_begin_anew_hold_no_evidence_may_see_any_tick_and_cool_as_before():
    watch = Watch([WATCHED], TICK_S, Settings(cool_down=10))
    (alarm, *_) = run(watch, history(0, 8))
    watch.begin_anew()
    rows = [row(one.evidence.tolist(), tick=at) for at, one in enumerate(history(0, 20), -5)]
    again = run(watch, rows)
    assert (watch.late, watch.repeated, watch.missed) == (0, 0, 0)
    assert [one.tick for one in again[:1]] == [-5 + 10 - (8 - alarm.tick - 1) + alarm.tick]
    assert again[0].since.tick < again[0].tick


def test_many_detectors_are_each_what_they_would_be_alone():
    others = [
        replace(WATCHED, circuit=f"c{at}", tokens=k, reference=flat(0.2 + at / 20)) for at, k in enumerate((1, 2, 4, 8))
    ]
    rng = np.random.default_rng(0)
    together = Watch([WATCHED, *others], TICK_S)
    alone = [Watch([one], TICK_S) for one in together.watched]
    for tick in range(60):
        rows = [
            row(rng.integers(0, 5, one.tokens + 1).tolist(), tick=tick, circuit=one.circuit) for one in together.watched
        ]
        together.take(tick, rows)
        for one, mine in zip(alone, rows, strict=True):
            one.take(tick, [mine])
    assert together.evidence.tolist() == [int(one.evidence[0]) for one in alone]


def test_it_is_the_detector_that_the_bench_runs():
    rows = history(50, 8)
    counts = np.array([one.evidence for one in rows])[None]
    watch = Watch([WATCHED], TICK_S)
    (alarm,) = run(watch, rows)
    assert detect(counts, WATCHED.reference).first.tolist() == [alarm.tick + 1]


def test_a_sketch_of_another_spec_is_never_evidence():
    watch = Watch([WATCHED], TICK_S)
    with pytest.raises(OtherHashError):
        watch.take(0, [row([9, 0, 0, 0, 0], spec_hash="x" * 64)])
    with pytest.raises(ValueError, match="one row of tick 0"):
        watch.take(0, [row([9, 0, 0, 0, 0], source=name) for name in "ab"])
    assert watch.evidence.tolist() == [int(Watch([WATCHED], TICK_S).evidence[0])]


def test_a_restart_goes_on_bit_by_bit_and_a_new_spec_begins_anew():
    rows = history(30, 3)
    whole, before = Watch([WATCHED], TICK_S), Watch([WATCHED], TICK_S)
    run(whole, rows)
    run(before, rows[:20])
    kept = json.loads(json.dumps(before.state()))
    after = Watch([WATCHED], TICK_S)
    assert after.restore(kept) == 1
    run(after, rows[20:])
    assert after.evidence.tolist() == whole.evidence.tolist()
    other = Watch([replace(WATCHED, spec_hash="x" * 64)], TICK_S)
    assert other.restore(kept) == 0
    assert int(other.evidence[0]) == int(Watch([WATCHED], TICK_S).evidence[0])
    with pytest.raises(ValueError, match="no state"):
        after.restore({"detectors": [{"circuit": 3}]})


def week_of(seed: int) -> Reference:
    """Every hour of the week has a mean of its own."""
    draws = np.random.default_rng(seed)
    return Reference(draws.uniform(0.0, 1.0, WEEK), draws.uniform(0.0, 0.1, WEEK), 0.05, np.full(WEEK, 20.0))


def test_all_that_detectors_hold_is_told_and_is_below_400_bytes_each():
    """Of the arrays that numpy has allocated since, over three hours of the week, nothing else is left."""
    watched = [
        replace(WATCHED, circuit=f"c{at}", tokens=(1, 2, 4, 8)[at % 4], reference=week_of(at)) for at in range(256)
    ]
    run(Watch([WATCHED], TICK_S), history(0, 1))  # what all detectors share is there
    arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    tracemalloc.start()
    try:
        watch = Watch(watched, TICK_S)
        for tick in range(0, 180, 20):
            sessions = [[tick % 3] * (one.tokens + 1) for one in watched]
            made = [row(each, tick, circuit=one.circuit) for one, each in zip(watched, sessions, strict=True)]
            watch.take(tick, made)
        del made
        gc.collect()
        held = sum(one.size for one in tracemalloc.take_snapshot().filter_traces([arrays]).traces)
    finally:
        tracemalloc.stop()
    assert held == watch.nbytes < 400 * len(watched)


@pytest.mark.parametrize("hour", [0, 71, 167])
def test_bands_that_are_looked_up_together_give_the_very_bets_of_each_alone(hour):
    """What a replay computes detector by detector is what was computed for all at once."""
    watched = [
        replace(WATCHED, circuit=f"c{at}", tokens=(1, 2, 4, 8)[at % 4], reference=week_of(at)) for at in range(61)
    ]
    together = Watch(watched, TICK_S, Settings(run_length=1 << 40))  # after an alarm it would begin anew
    tick = hour * 3600 // TICK_S
    rows = [row([1] * (one.tokens + 1), tick, circuit=one.circuit) for one in watched]
    together.take(tick, rows)
    for at, one in enumerate(watched):
        table = betting_table([one.reference.band(tick * TICK_S)], one.tokens)[0]
        alone = advance(np.full(BETS, NOTHING), rows[at].evidence, table)
        told = together.state()["detectors"][at]
        assert told["log_m"] == alone.tolist()


@pytest.fixture
def alarmed(tmp_path):
    """A folder with an alarm's record and its archive, in two files, beside rows of somebody else."""
    rows = history(400, 12)
    (alarm,) = run(Watch([WATCHED], TICK_S, Settings(checkpoint=50)), rows)
    used = rows[: alarm.tick + 1]
    others = [replace(one, key=replace(one.key, circuit="copying")) for one in used]
    files = [
        write_archive(tmp_path / "first.parquet", used[:350] + others),
        write_archive(tmp_path / "second.parquet", used[350:]),
    ]
    about = About(DIGEST, config_hash="c" * 64, diagnosis="model", pages=True, trace_ids=["t1"])
    record = make_record(alarm, used, files, about)
    return alarm, record, write_record(record, tmp_path)


def test_an_alarms_record_replays_from_the_archive_bit_by_bit(alarmed, capsys):
    alarm, record, path = alarmed
    assert record.log_e == alarm.log_e
    assert 50 <= len(record.trace) <= 110
    assert any(one != NOTHING for one in record.start)
    assert read_record(path) == record
    assert differences(record, path.parent) == []
    assert main(["replay", str(path)]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one["trace"][3]["evidence"].__setitem__(0, one["trace"][3]["evidence"][0] + 1), "the archive has"),
        (lambda one: one["trace"][3].__setitem__("high", one["trace"][3]["high"] + 1e-6), "log E is"),
        (lambda one: one["start"].__setitem__(11, one["start"][11] + 1000), "log E is"),
        (lambda one: one["trace"].pop(5), "log E is"),
        (lambda one: one["archives"][0].__setitem__("digest", "0" * 64), "its bytes are not"),
        (lambda one: one.__setitem__("log_threshold", one["log_e"] + 1), "this is no alarm"),
        (lambda one: one.__setitem__("leans", "more"), "leans to less engaged, the record says more"),
        (lambda one: one.__setitem__("tick_s", one["tick_s"] * 2), "the archive has None"),
    ],
)
def test_whatever_was_changed_since_is_told_and_the_exit_is_1(alarmed, capsys, change, words):
    from sidecar.circuits.record import _digest

    _, _, path = alarmed
    fields = json.loads(path.read_text())
    change(fields)
    fields["content_digest"] = _digest(fields)  # by somebody who knows how
    path.write_text(json.dumps(fields))
    assert main(["replay", str(path)]) == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("told", [1, -1, None])
def test_the_threshold_is_that_of_the_baselines_budget_over_whole_parts(alarmed, told):
    _, record, path = alarmed
    against = Against(DIGEST, (WATCHED,), RUN_LENGTH)
    assert differences(record, path.parent, against) == []
    changed = 1 if told is None else record.log_threshold + told
    (found,) = differences(record.model_copy(update={"log_threshold": changed}), path.parent, against)
    assert f"the threshold {changed} is not that of one false alarm in 43200 ticks" in found


def test_a_threshold_of_several_replicas_is_sound_and_one_of_fewer_slices_than_the_baseline_is_not(alarmed):
    _, record, path = alarmed
    split = record.model_copy(update={"log_threshold": log_threshold(RUN_LENGTH, 2)})
    assert split.log_e >= split.log_threshold  # it is an alarm still
    both = replace(WATCHED, slices=2)
    assert differences(split, path.parent, Against(DIGEST, (both,), RUN_LENGTH)) == []
    (found,) = differences(record, path.parent, Against(DIGEST, (both,), RUN_LENGTH))
    assert "2 slices or more" in found


def test_a_record_that_pages_on_a_baseline_that_learns_is_told(alarmed):
    _, record, path = alarmed
    learning = Against(DIGEST, (replace(WATCHED, learning=True),), RUN_LENGTH)
    (found,) = differences(record, path.parent, learning)
    assert "still learning" in found


def test_a_replay_says_what_it_has_not_computed_again(alarmed, capsys):
    _, _, path = alarmed
    assert main(["replay", str(path)]) == 0
    assert "not computed again: bands and threshold (--baseline), diagnosis" in capsys.readouterr().out
    assert main(["replay", str(path), "--run-length", "100"]) == 65
    assert "goes with --baseline" in capsys.readouterr().err


def test_a_change_that_keeps_its_digest_is_refused_before_it_is_replayed(alarmed, capsys):
    _, _, path = alarmed
    path.write_text(path.read_text().replace('"diagnosis": "model"', '"diagnosis": "noise"'))
    assert main(["replay", str(path)]) == 65
    assert "content_digest" in capsys.readouterr().err


def test_without_its_archive_an_alarm_is_not_called_the_same(alarmed, capsys):
    _, _, path = alarmed
    (path.parent / "second.parquet").unlink()
    assert main(["replay", str(path)]) == 65
    assert "give the archive's folder" in capsys.readouterr().err


def test_a_record_is_never_written_over(alarmed):
    _, record, path = alarmed
    with pytest.raises(RecordError, match="cannot be written"):
        write_record(record, path.parent)


def test_rows_that_do_not_lead_to_an_alarm_make_no_record_of_it(tmp_path):
    rows = history(100, 12)
    (alarm,) = run(Watch([WATCHED], TICK_S), rows)
    file = write_archive(tmp_path / "a.parquet", rows)
    with pytest.raises(RecordError, match="do not lead"):
        make_record(alarm, rows[50:], [file], About(DIGEST))


def test_a_circuit_that_is_learning_pages_nobody_whatever_is_asked(tmp_path):
    rows = history(0, 12)
    (alarm, *_) = run(Watch([replace(WATCHED, learning=True)], TICK_S), rows)
    file = write_archive(tmp_path / "a.parquet", rows)
    assert not make_record(alarm, rows, [file], About(DIGEST, pages=True)).pages
