"""What the bench of circuits compares is what it says: the same streams, exact intervals, peers that can see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import betabinom

from bench.batches import BEGIN, batches
from bench.changes import CAP, Change, ablations, falls
from bench.circuits import Rate, main, put
from bench.drift_peers import PEERS, alarms
from bench.matched import SLACKS, Matched, as_slow, false_alarms
from bench.streams import AR1, BOTH, BURSTY, DAY, IID, MEAN, SESSIONS, diurnal, engaged_share, stream, tick_means


@pytest.mark.parametrize("kind", [IID, AR1, BOTH, BURSTY], ids=lambda one: one.name)
def test_a_null_stream_has_the_mean_that_it_says(kind):
    counts = stream(kind, 2 * DAY, np.random.default_rng(0), streams=10)
    means = tick_means(counts)
    expected = MEAN + (diurnal(0, 2 * DAY).mean() if kind.diurnal else 0.0)
    assert np.nanmean(means) == pytest.approx(expected, abs=0.01)
    if not kind.bursts:
        assert counts.sum(axis=2).mean() == pytest.approx(SESSIONS, rel=0.02)


@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_sessions_bet_as_if_each_drew_a_share_of_its_own_and_its_tokens_from_it(tokens):
    means = np.array([0.01, 0.3, 0.77])
    made = np.array([engaged_share(means, engaged, tokens) for engaged in range(tokens + 1)])
    want = [betabinom(tokens, 2 * mean, 2 * (1 - mean)).pmf(range(tokens + 1)) for mean in means]
    np.testing.assert_allclose(made.T, want)


def test_each_stream_has_a_history_and_a_reference_of_its_own():
    one = next(batches(BOTH, 3, seed=1))
    assert len(one.counts) == len(one.histories) == len(one.references) == 3
    assert not np.array_equal(one.references[0].mean, one.references[1].mean)
    for at in range(3):
        assert abs(one.sound(at, residual=True).mean()) < 0.002
        assert abs(np.nanmean(one.means(at, residual=True))) < 0.01


def test_a_poisson_interval_is_exact():
    assert Rate(0, 1.0).interval == (0.0, pytest.approx(3.6889, abs=1e-4))
    low, high = Rate(10, 2.0).interval
    assert (low, high) == (pytest.approx(4.7954 / 2, abs=1e-4), pytest.approx(18.3904 / 2, abs=1e-4))


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_can_see_a_change_that_is_large_and_stays(name):
    rng = np.random.default_rng(0)
    sound = rng.normal(0.3, 0.05, 3000)
    changed = np.concatenate((rng.normal(0.3, 0.05, 400), rng.normal(0.9, 0.05, 400)))
    if name == "river PageHinkley":
        changed = np.concatenate((changed, rng.normal(0.9, 0.05, 4000)))  # its threshold of 50 takes its time
    found = alarms(PEERS[name].learn(sound), changed, 10)
    assert any(tick >= 400 for tick in found)


def test_cusums_side_by_side_alarm_as_each_would_alone():
    batch = next(batches(BURSTY, 2, seed=3))
    assert np.isnan(batch.means(0, residual=True)).any()  # ticks without sessions
    peers = [Matched(0.25, 4.0, residual=True), Matched(0.5, 5.0, residual=True)]
    want = [
        sum(len(alarms(one.learn(batch.sound(at, residual=True)), batch.means(at, residual=True), 60)) for at in (0, 1))
        for one in peers
    ]
    assert false_alarms(batch, peers, 60).tolist() == want
    assert min(want) > 10


@pytest.mark.parametrize("k", SLACKS)
def test_a_cusum_as_slow_as_ours_is_never_faster_and_as_quiet_as_that_allows(k):
    runs = list(ablations(6))

    def delay(h: float) -> float:
        one = Matched(k, h, residual=True)
        return float(np.median([min(run.of(one.learn, residual=True), CAP) for run in runs]))

    made = as_slow(runs, 4.0, k, residual=True)
    assert delay(made.h - 0.002) <= 4.0 <= delay(made.h)
    assert delay(made.h + 0.002) > 4.0


@pytest.mark.parametrize(("changes", "after"), [(ablations, 0.01), (falls, MEAN - 0.1)])
def test_what_happens_happens_at_the_tick_that_is_told(changes, after):
    moved = [_moved(run) for run in changes(3)]
    assert np.mean(moved) == pytest.approx(after - MEAN, abs=0.05)


def _moved(run: Change) -> float:
    """What was left of the hour's reference, after less before; an ablation does not follow the hour."""
    means = tick_means(run.batch.counts[0])
    hours = diurnal(BEGIN, len(means))
    before = (means - hours)[: run.at].mean()
    after = means[run.at :].mean() if len(means) - run.at == CAP else (means - hours)[run.at :].mean()
    return float(after - before)


@pytest.mark.timeout(400)
def test_the_short_form_has_every_figure_and_writes_only_where_it_is_told(tmp_path, monkeypatch):
    from bench import circuits

    monkeypatch.setattr(circuits, "RESULTS", tmp_path / "never.json")
    monkeypatch.setattr(circuits, "NULLS", (IID, BOTH))
    out = tmp_path / "out.json"
    assert main(["--short", "--only", "streams", "costs", "--out", str(out)]) == 0
    rows = {row["name"]: row for part in json.loads(out.read_text()).values() for row in part}
    assert not (tmp_path / "never.json").exists()
    assert rows["false alarms per 30 d, ours, all of iid"]["met"]
    assert rows["false alarms per 30 d, ours, diurnal + AR(1)"]["value"] == 0
    assert rows["sessions until a full ablation is seen, ours"]["met"]
    assert rows["random shardings that merge to the same bits"]["met"]
    matched = [Matched(k, 0.0, residual=True).name for k in SLACKS]
    for name in (*PEERS, *matched):
        assert any(one.startswith(f"{name}: lower bound / our upper bound") for one in rows)
    for name in matched:
        assert rows[f"threshold of {name}"]["value"] > 1
        assert f"ticks until ten points less are seen, {name}" in rows
        assert f"false alarms per 30 d, {name}, AR(1) of 5 points" in rows
    for name in PEERS:
        assert f"false alarms per 30 d, {name}, less the hour, diurnal + AR(1)" in rows
        assert f"ticks until a full ablation is seen, {name}" in rows


def test_a_part_that_is_run_alone_leaves_the_others_as_they_were(tmp_path: Path):
    path = tmp_path / "circuits.json"
    put("costs", [{"name": "a"}], path)
    put("streams", [{"name": "b"}], path)
    put("costs", [{"name": "c"}], path)
    assert json.loads(path.read_text()) == {"streams": [{"name": "b"}], "costs": [{"name": "c"}], "sweep": []}
