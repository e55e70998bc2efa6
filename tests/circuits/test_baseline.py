"""Baselines: learned from an archive, frozen, signed; the tolerance is the smallest that stays silent on the days left out."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from bench.streams import BOTH, DAY, DIURNAL, IID, Kind, stream
from probes.circuits.baseline import FORM, MOST, load_baseline, save_baseline
from probes.circuits.baseline_fit import COVERED, Options, fit_baseline, levels
from probes.cli import main
from probes.errors import LabError
from sidecar.circuits.archive import write_archive
from sidecar.circuits.reference import WEEK, Reference, hour_of_week
from sidecar.circuits.tick import SINGLE
from sidecar.circuits.watch import Watch
from sidecar.errors import ArtifactError
from tests.circuits.live import row

TICK_S = 600
PER_TICK = TICK_S // 60


def rows(kind: Kind, days: float, seed: int = 0, **key) -> list:
    """Ticks of ten minutes."""
    counts = stream(kind, int(days * DAY), np.random.default_rng(seed), sessions=6)[0]
    merged = counts.reshape(-1, PER_TICK, counts.shape[-1]).sum(axis=1)
    return [row(one.tolist(), tick=tick, tick_s=TICK_S, **key) for tick, one in enumerate(merged)]


def archived(folder, made: list, name: str = "a.parquet"):
    return write_archive(folder / name, made).path


def test_two_weeks_of_traffic_that_follows_the_hour_give_a_frozen_reference_that_follows_it(tmp_path, capsys):
    path = archived(tmp_path, rows(BOTH, 14))
    out = tmp_path / "baseline"
    assert main(["baseline", "fit", str(path), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "frozen: 14.0 days" in told
    baseline = load_baseline(out, root=out)
    (watched,) = baseline.watched
    assert baseline.manifest.state == "frozen"
    assert baseline.manifest.left_out == 14
    assert watched.reference.tolerance == 0.05
    mean = watched.reference.mean
    noon, midnight = mean[[12, 36, 60, 84]].mean(), mean[[0, 24, 48, 72]].mean()
    assert 0.15 < noon - midnight < 0.25  # +-10 points on working days
    assert not watched.learning
    watch = Watch(baseline.watched, TICK_S)
    later = rows(BOTH, 14, seed=9)  # other weeks like it
    assert all(watch.take(one.key.tick, [one]) == () for one in later)


def test_without_the_hour_the_same_traffic_needs_a_tolerance_as_wide_as_its_swing(tmp_path):
    path = archived(tmp_path, rows(DIURNAL, 8))
    made = fit_baseline([path], tmp_path / "b", Options(buckets=1))
    assert made.circuits[0].tolerance >= 0.08
    assert made.buckets == 1


def test_under_a_week_it_is_learning_and_says_so(tmp_path, capsys):
    path = archived(tmp_path, rows(IID, 5))
    assert main(["baseline", "fit", str(path), "--out", str(tmp_path / "b")]) == 0
    assert "learning: 5.0 days are less than a week" in capsys.readouterr().out
    assert load_baseline(tmp_path / "b", root=tmp_path / "b").watched[0].learning


def without_hours(made: list, many: int) -> list:
    """Nothing came in the last so many hours of the week."""
    return [one for one in made if hour_of_week(one.key.at_s) < WEEK - many]


@pytest.mark.parametrize(("hours", "state"), [(WEEK - COVERED, "frozen"), (WEEK - COVERED + 1, "learning")])
def test_a_week_is_known_when_sessions_bet_in_nine_in_ten_of_its_hours(tmp_path, capsys, hours, state):
    path = archived(tmp_path, without_hours(rows(IID, 14), hours))
    assert main(["baseline", "fit", str(path), "--out", str(tmp_path / "b")]) == 0
    assert ("in fewer than 152 of the week's 168 hours" in capsys.readouterr().out) == (state == "learning")
    assert load_baseline(tmp_path / "b", root=tmp_path / "b").manifest.state == state


def test_hours_without_a_bet_are_not_known_though_tokens_came(tmp_path):
    made = [
        one if hour_of_week(one.key.at_s) < 100 else row([0] * 5, tick=one.key.tick, tick_s=TICK_S)
        for one in rows(IID, 14)
    ]
    assert fit_baseline([archived(tmp_path, made)], tmp_path / "b", Options()).state == "learning"


def test_a_few_ticks_that_are_more_than_a_week_apart_are_no_week(tmp_path):
    made = rows(IID, 8)
    path = archived(tmp_path, made[:3] + made[-3:])
    assert fit_baseline([path], tmp_path / "b", Options()).state == "learning"


@pytest.mark.parametrize("days", [0.5, 8])
def test_one_bucket_pages_nobody_however_long_it_learned_but_for_the_demo_which_arms_it(tmp_path, capsys, days):
    path = archived(tmp_path, rows(IID, days))
    assert main(["baseline", "fit", str(path), "--one-bucket", "--out", str(tmp_path / "b")]) == 0
    assert "learning: one bucket" in capsys.readouterr().out
    assert load_baseline(tmp_path / "b", root=tmp_path / "b").watched[0].learning
    assert fit_baseline([path], tmp_path / "armed", Options(buckets=1, armed=True)).state == "frozen"


def test_a_folder_of_sketches_is_as_good_as_its_files(tmp_path):
    made = rows(IID, 8)
    files = [archived(tmp_path / "kept", part, f"{at}.parquet") for at, part in enumerate((made[:500], made[500:]))]
    whole = fit_baseline([tmp_path / "kept"], tmp_path / "a", Options())
    assert whole == fit_baseline(files, tmp_path / "b", Options())
    assert len(whole.archives) == 2


def test_a_file_that_cannot_be_read_stops_the_fit_or_is_named_and_passed_over(tmp_path, capsys):
    kept = archived(tmp_path / "kept", rows(IID, 8), "0.parquet")
    (tmp_path / "kept" / "torn.parquet").write_bytes(kept.read_bytes()[:100])
    fit = ["baseline", "fit", str(tmp_path / "kept"), "--out", str(tmp_path / "b")]
    assert main(fit) == 1
    assert "torn.parquet cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert main([*fit, "--skip-unsound"]) == 0
    said = capsys.readouterr().out
    assert "1 unsound file passed over:" in said
    assert "torn.parquet cannot be read" in said
    alone = fit_baseline([kept], tmp_path / "alone", Options())
    assert load_baseline(tmp_path / "b", root=tmp_path / "b").manifest.content_digest == alone.content_digest


@pytest.mark.parametrize("change", [{"spec_hash": "x" * 64}, {"model_hash": "x" * 64}])
def test_two_specs_or_models_of_a_circuit_are_refused(tmp_path, change, capsys):
    files = [
        archived(tmp_path, rows(IID, 2), "a.parquet"),
        archived(tmp_path, rows(IID, 2, source="b", **change), "b.parquet"),
    ]
    assert main(["baseline", "fit", *map(str, files), "--out", str(tmp_path / "b")]) == 1
    assert "two of its" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_circuits_of_two_models_are_no_baseline(tmp_path):
    made = [*rows(IID, 2), *rows(IID, 2, circuit="copying", model_hash="x" * 64)]
    with pytest.raises(LabError, match="2 models"):
        fit_baseline([archived(tmp_path, made)], tmp_path / "b", Options())


def test_an_incident_in_the_history_widens_the_tolerance_or_is_refused_and_is_never_learned_in_silence(tmp_path):
    made = rows(IID, 10)
    for at in range(700, 760):  # ten hours without any engaged token
        made[at] = row([60, 0, 0, 0, 0], tick=at, tick_s=TICK_S)
    with pytest.raises(LabError, match="alarms even at a tolerance"):
        fit_baseline([archived(tmp_path, made)], tmp_path / "b", Options())


def test_no_tolerance_below_the_least_is_tried_and_a_smaller_least_finds_a_smaller_one(tmp_path):
    path = archived(tmp_path, rows(IID, 8))
    assert fit_baseline([path], tmp_path / "a", Options()).circuits[0].tolerance == 0.05
    assert fit_baseline([path], tmp_path / "b", Options(at_least=0.03)).circuits[0].tolerance == 0.03


def test_a_baseline_is_signed_and_verified_like_any_artifact_and_a_change_is_told(tmp_path):
    out, key = tmp_path / "b", tmp_path / "key"
    fit_baseline([archived(tmp_path, rows(IID, 8))], out, Options())
    assert main(["keygen", str(key)]) == 0
    assert main(["sign", str(out), "--key", str(key)]) == 0
    assert main(["verify", str(out), "--key", f"{key}.pub"]) == 0
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace('"tolerance": 0.05', '"tolerance": 0.5'))
    assert main(["verify", str(out), "--key", f"{key}.pub"]) == 5
    with pytest.raises(ArtifactError, match="content_digest"):
        load_baseline(out, root=out)


def test_an_hour_with_hardly_a_session_is_taken_with_the_same_hour_of_other_days_and_one_with_none_knows_nothing():
    evidence = np.zeros((168, 1, 5), np.int64)
    evidence[:, 0] = [100, 100, 100, 100, 100]
    evidence[3, 0], evidence[3 + 24, 0] = [1, 0, 0, 0, 0], [0, 0, 0, 0, 1000]
    evidence[5::24, 0] = 0
    found = levels(evidence)
    assert found.mean[0, 3] == pytest.approx(levels_mean(evidence[3::24, 0].sum(axis=0)))
    assert found.mean[0, 4] == 0.5
    assert (found.half_width[0, 5::24] == 1.0).all()
    reference = Reference(found.mean[0].astype(float), found.half_width[0].astype(float), 0.05)
    at_s = next(at * 3600 for at in range(168) if hour_of_week(at * 3600) == 5)
    assert (reference.band(at_s).low, reference.band(at_s).high) == (0.0, 1.0)


def by_hour(per_hour, weeks: int) -> list:
    """So many sessions in each hour of the week, in its first tick, half of them engaged."""
    made = []
    for hour in range(weeks * WEEK):
        at_s = BEGIN_S + hour * 3600
        if count := per_hour(hour_of_week(at_s)):
            half = count // 2
            made.append(row([half, 0, 0, 0, count - half], tick=at_s // TICK_S, tick_s=TICK_S))
    return made


BEGIN_S = 4 * 86_400  # a Monday
SATURDAY = 5 * 24


def expects(folder, hour: int) -> bool:
    (watched,) = load_baseline(folder, root=folder).watched
    return watched.reference.expects(BEGIN_S + hour * 3600)


def test_a_weekend_on_which_nobody_came_has_the_band_of_other_days_and_is_not_expected_to_bring_anybody(tmp_path):
    path = archived(tmp_path, by_hour(lambda hour: 300 if hour < SATURDAY else 0, weeks=2))
    fit_baseline([path], tmp_path / "b", Options())
    (watched,) = load_baseline(tmp_path / "b", root=tmp_path / "b").watched
    assert watched.reference.half_width[SATURDAY + 10] < 0.1
    found = [expects(tmp_path / "b", hour) for hour in range(WEEK)]
    assert found == [True] * SATURDAY + [False] * (WEEK - SATURDAY)


@pytest.mark.parametrize(("an_hour", "expected"), [(1, False), (2, True)])
def test_an_hour_is_expected_to_bring_sessions_if_ten_came_in_thirty_ticks_on_average_over_its_weeks(
    tmp_path, an_hour, expected
):
    """Thirty ticks of ten minutes are five hours. The first Monday has a hundred, and is but one of ten."""
    made = by_hour(lambda hour: 100 if hour == 9 else an_hour if hour % 24 >= 9 else 30, weeks=10)
    path = archived(tmp_path, made)
    fit_baseline([path], tmp_path / "b", Options(at_least=0.3))
    assert expects(tmp_path / "b", 10) == expected
    assert expects(tmp_path / "b", 9)


def test_one_bucket_expects_what_came_on_average_over_all_hours(tmp_path):
    for name, many in (("few", 20), ("many", 25)):  # twice a day; thirty ticks are five hours
        path = archived(tmp_path, by_hour(lambda hour, many=many: many if hour % 12 == 0 else 0, 1), f"{name}.parquet")
        fit_baseline([path], tmp_path / name, Options(buckets=1, at_least=0.3))
    assert not expects(tmp_path / "few", 0)
    assert expects(tmp_path / "many", 0)


@pytest.mark.parametrize("wrong", [1.5, -1.0, 2.0, float(MOST) + 2])
def test_hours_that_are_no_counts_or_not_those_of_the_manifest_are_refused(tmp_path, wrong):
    fit_baseline([archived(tmp_path, rows(IID, 2))], tmp_path / "b", Options(buckets=1))
    found = FORM.open(tmp_path / "b", root=tmp_path / "b")
    fields = found.manifest.model_dump(mode="json", exclude={"schema_", "content_digest", "signature"})
    with pytest.raises(ArtifactError, match="sessions"):
        save_baseline(tmp_path / "c", fields, replace(found.weights, sessions=np.float32([[wrong]])))
    assert save_baseline(tmp_path / "c", fields, found.weights).content_digest == found.manifest.content_digest


def levels_mean(counts: np.ndarray) -> float:
    return float(counts @ np.arange(5) / 4 / counts.sum())


def test_one_day_is_nothing_to_compare_with_itself(tmp_path):
    with pytest.raises(LabError, match="nothing to compare"):
        fit_baseline([archived(tmp_path, rows(IID, 0.5))], tmp_path / "b", Options())


@pytest.mark.parametrize(
    ("short", "why"),
    [
        (3, "6 ended with fewer than the 4 tokens that a bet takes: is k too large for this traffic?"),
        (0, "none ended with fewer than the 4 tokens that a bet takes. Most likely no request names its session"),
    ],
)
def test_an_archive_in_which_nobody_bet_is_refused_with_the_cause_that_it_shows(tmp_path, short, why):
    made = [row([0] * 5, tick=tick) for tick in range(2)]
    for one in made:
        one.counts[: len(SINGLE)] = 0
        one.counts[SINGLE.index("rows")], one.counts[SINGLE.index("short")] = 100, short
    path = archived(tmp_path, made)
    with pytest.raises(LabError, match=re.escape(f"induction: no session has bet in 2 ticks; {why}")):
        fit_baseline([path], tmp_path / "b", Options())
