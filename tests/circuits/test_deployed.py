"""After a deploy: which circuits changed is told by e-values and canaries, false ones are few, and what is to be done is said."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from bench.detecting import flat
from bench.streams import IID, MEAN, ablated, stream
from probes.circuits.baseline_fit import Options, fit_baseline
from sidecar.circuits.archive import write_archive
from sidecar.circuits.detector import BETS, NOTHING, UNIT, advance, betting_table, log_e
from sidecar.circuits.fdr import e_bh
from sidecar.circuits.reference import Band
from sidecar.circuits.since import Since, Span, since
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Watched
from sidecar.cli import main
from sidecar.live.alarms import Canaries
from sidecar.live.canary_file import About, Kept, record, write_round
from sidecar.live.canary_runner import ROUNDS
from sidecar.live.canary_values import circuit_group
from sidecar.live.deployed import Standing, Verdict
from sidecar.live.windows import declare
from tests.circuits.live import TICK_S, row

OLD, NEW, SPEC = "m" * 64, "n" * 64, "s" * 64
ALPHA = 0.1


# e-BH


def logs(*values: float) -> list[float]:
    return [math.log(one) if one else -math.inf for one in values]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((10.0,), (True,)),  # one e-value: 1 / alpha
        ((9.9,), (False,)),
        ((20.1, 9.0), (True, False)),  # K / alpha, K / (2 alpha)
        ((10.1, 10.1), (True, True)),  # neither would do by itself
        ((19.9, 9.9), (False, False)),
        ((0.0, 31.0, 16.0), (False, True, True)),
        ((31.0, 14.0, 10.1), (True, True, True)),  # the third takes the second along, which is below its own 15
        ((0.0, 0.0), (False, False)),
        ((), ()),
    ],
)
def test_e_bh_in_small_cases_that_are_worked_out_by_hand(values: tuple[float, ...], told: tuple[bool, ...]) -> None:
    assert e_bh(logs(*values), ALPHA) == told


def test_e_bh_is_what_its_definition_says_and_a_larger_e_value_never_unsays_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = np.exp(rng.normal(0, 3, size=int(rng.integers(1, 12))))
        many = len(values)
        least = [k for k in range(many + 1) if sum(values >= many / (ALPHA * max(k, 1))) >= k]
        told = e_bh(np.log(values).tolist(), ALPHA)
        assert sum(told) == max(least)
        more = e_bh(np.log(values * rng.uniform(1, 5, many)).tolist(), ALPHA)
        assert all(after or not before for before, after in zip(told, more, strict=True))


def test_the_false_discovery_rate_of_the_worst_dependence_is_alpha_exactly() -> None:
    """Each null has e = K / alpha with probability alpha / K, never two at once: mean 1, and one is told with probability alpha."""
    many = 8
    outcomes = [[many / ALPHA if at == hit else 0.0 for at in range(many)] for hit in range(many)]
    chance = ALPHA / many
    assert sum(chance * one[0] for one in outcomes) == pytest.approx(1.0)
    assert sum(chance * any(e_bh(logs(*one), ALPHA)) for one in outcomes) == pytest.approx(ALPHA)


def test_e_bh_takes_no_nan_for_an_e_value_and_no_alpha_beyond_a_share() -> None:
    for values, alpha in (([math.nan], 0.1), ([1.0], 0.0), ([1.0], 1.0)):
        with pytest.raises(ValueError, match="want e-values"):
            e_bh(values, alpha)


# what traffic says


def test_e_over_t_has_mean_at_most_one_at_the_edge_of_the_band_by_exact_enumeration() -> None:
    """Three ticks of one session of one token, every outcome; in the middle one a session comes with probability one half."""
    band = Band(0.2, 0.4)
    table = betting_table([band], 1)[0]
    none, zero, one = np.array([0, 0]), np.array([1, 0]), np.array([0, 1])
    for share in (band.low, band.high):
        sure, maybe = {0: 1 - share, 1: share}, {None: 0.5, 0: (1 - share) / 2, 1: share / 2}
        mean = 0.0
        for outcome in itertools.product(sure, maybe, sure):
            log_m = np.full(BETS, NOTHING)
            for bet in outcome:
                log_m = advance(log_m, none if bet is None else one if bet else zero, table)
            chance = math.prod(tick[bet] for tick, bet in zip((sure, maybe, sure), outcome, strict=True))
            mean += chance * math.exp(int(log_e(log_m)) / UNIT) / 3
        assert 0.5 < mean <= 1.0


def watched(names: list[str], mean: float = MEAN, slices: tuple[str, ...] = ("all",)) -> list[Watched]:
    return [Watched(name, part, OLD, SPEC, 4, flat(mean, 0.0, 0.05), len(slices)) for name in names for part in slices]


def rows_of(name: str, counts: np.ndarray, first: int = 0, **key: object) -> list[TickRow]:
    return [row(one.tolist(), tick=first + at, circuit=name, **key) for at, one in enumerate(counts)]


def test_of_dependent_nulls_and_some_true_changes_the_false_share_stays_below_alpha_and_the_true_are_told() -> None:
    """The nulls are at the very edge of their band, and all see the same sessions: as dependent as can be. 60 deploys.

    That E is divided by t is no ornament: without it the bound is broken by these very streams.
    """
    rng, ticks, nulls, changes = np.random.default_rng(3), 30, 12, 4
    names = [f"null_{at}" for at in range(nulls)] + [f"change_{at}" for at in range(changes)]
    known, span = watched(names), Span(0, ticks, TICK_S)
    false_shares: dict[float, list[float]] = {0.0: [], math.log(ticks): []}
    found = 0
    for _ in range(60):
        # A session's tokens are alike, its mean is the band's upper edge.
        shared = np.stack([np.bincount(4 * (rng.random(20) < MEAN + 0.05), minlength=5) for _ in range(ticks)])
        gone = ablated(ticks, rng)[0]
        rows = [one for name in names for one in rows_of(name, gone if name.startswith("change") else shared)]
        e_values = [one.log_e for one in since(rows, known, span, ALPHA)]
        for undone, shares in false_shares.items():
            told = e_bh([one + undone for one in e_values], ALPHA)
            shares.append(sum(told[:nulls]) / max(1, sum(told)))
        found += sum(e_bh(e_values, ALPHA)[nulls:])
    divided, undivided = (np.mean(shares) for shares in false_shares.values())
    assert divided <= ALPHA < undivided
    assert found == 60 * changes


def test_slices_are_averaged_silent_ticks_count_and_the_old_models_rows_do_not() -> None:
    counts = ablated(10, np.random.default_rng(0))[0]
    span = Span(100, 10, TICK_S)
    (whole,) = since(rows_of("c", counts, 100), watched(["c"]), span, ALPHA)
    split = watched(["c"], slices=("chat", "code"))
    (half,) = since(rows_of("c", counts, 100, slice_="chat"), split, span, ALPHA)
    assert half.log_e == pytest.approx(whole.log_e - math.log(2))
    (longer,) = since(rows_of("c", counts, 100), watched(["c"]), Span(100, 20, TICK_S), ALPHA)
    assert longer.log_e == pytest.approx(whole.log_e - math.log(2))
    before = rows_of("c", np.flip(counts, axis=1), 95)
    after = rows_of("c", counts, 100, model_hash=NEW, source="b")
    (new,) = since([*before, *after], watched(["c"]), span, ALPHA)
    assert (new.log_e, new.model_hash) == (whole.log_e, NEW)
    (nobody,) = since([], watched(["c"]), span, ALPHA)
    assert (nobody.log_e, nobody.sessions, nobody.model_hash) == (-math.inf, 0, "")


@pytest.mark.parametrize(
    ("canaries", "rejected", "sessions", "standing"),
    [
        (Canaries.MOVED, False, 500, Standing.CHANGED),
        (Canaries.MOVED, True, 500, Standing.CHANGED),
        (Canaries.MOVED_ELSEWHERE, True, 500, Standing.CHANGED),
        (Canaries.MOVED_ELSEWHERE, False, 500, Standing.UNCHANGED),
        (Canaries.MOVED_ELSEWHERE, False, 5, Standing.UNSEEN),
        (Canaries.MOVED_ELSEWHERE, False, 0, Standing.UNSEEN),
        (Canaries.QUIET, True, 500, Standing.TRAFFIC),
        (Canaries.QUIET, False, 5, Standing.UNCHANGED),
        (Canaries.SILENT, True, 500, Standing.CHANGED),
        (Canaries.SILENT, False, 500, Standing.UNCHANGED),
        (Canaries.SILENT, False, 5, Standing.UNSEEN),
    ],
)
def test_canaries_tell_of_the_model_and_traffic_of_its_use(
    canaries: Canaries, rejected: bool, sessions: int, standing: Standing
) -> None:
    told = Since("c", sessions, 0.0, "less", 100.0, NEW)
    assert Verdict(told, rejected, canaries).standing is standing


# the command

DEPLOYED_S = 100_000 * TICK_S
NAMES = ["copying", "grounding", "induction"]


def canary_round(
    folder: Path,
    at_s: int,
    seed: int,
    moved: str = "",
    model: str = OLD,
    prompts: str = "p" * 64,
    engine: str = "vllm",
) -> Path:
    """Two numbers a circuit at sixteen tokens, with noise."""
    draws, base = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(16, 2 * len(NAMES)))
    groups = tuple((circuit_group(name, SPEC), 2, False) for name in NAMES)
    values = base + draws.normal(scale=1e-3, size=base.shape)
    if moved:
        at = 2 * NAMES.index(moved)
        values[:, at : at + 2] += 1.0
    about = About(model, "float32", engine, prompts, at_s, groups)
    tokens = [(f"canary-{at // 4}", -1 - at % 4) for at in range(16)]
    return write_round(folder, Kept(about, dict(zip(tokens, values.astype(np.float32), strict=True))), 32)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three circuits, their baseline and canaries' reference of before a deploy; after it copying is gone from the traffic."""
    rng = np.random.default_rng(0)
    sound = [one for name in NAMES for one in rows_of(name, stream(IID, 900, rng)[0])]
    learned = write_archive(tmp_path / "learned" / "sketch-0-54000-a.parquet", sound)
    fit_baseline([learned.path], tmp_path / "baseline", Options(buckets=1))
    record([canary_round(tmp_path / "learned", at, at) for at in range(3)], tmp_path / "reference")
    folder, first = tmp_path / "archive", DEPLOYED_S // TICK_S
    folder.mkdir()
    declare(folder, DEPLOYED_S - 30, DEPLOYED_S + 600, "new weights", DEPLOYED_S - 30)
    declare(folder, DEPLOYED_S + 500, DEPLOYED_S + 500, "done", DEPLOYED_S + 500)
    facts = {"model_hash": NEW, "source": "b"}
    counts = {name: (ablated(40, rng) if name == "copying" else stream(IID, 40, rng))[0] for name in NAMES}
    since_then = [one for name in NAMES for one in rows_of(name, counts[name], first, **facts)]
    write_archive(folder / f"sketch-{DEPLOYED_S}-{DEPLOYED_S + 2400}-b.parquet", since_then)
    before = [one for name in NAMES for one in rows_of(name, stream(IID, 9, rng)[0], first - 9)]
    write_archive(folder / f"sketch-{DEPLOYED_S - 540}-{DEPLOYED_S - 60}-a.parquet", before)
    return folder


def report(archive: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, list[str]]:
    home = archive.parent
    status = main(["deploy-window", "report", str(archive), "--baseline", str(home / "baseline"), *more])
    return status, capsys.readouterr().out.splitlines()


def test_without_canaries_the_circuit_that_left_the_traffic_is_told_and_the_others_are_unchanged(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = report(archive, capsys, "--for", "40m")
    assert status == 1
    assert lines[0] == "since 1970-03-11 10:39:30Z: 40 ticks of 60 s, 0 whole rounds"
    assert lines[1].startswith(
        "40 of these ticks are on disk, the newest of 1970-03-11 11:19:00Z; what is in no file yet"
    )
    standing = {line.split(": ")[0]: line.split(": ")[1] for line in lines[2::2]}
    assert standing == {"copying": "CHANGED", "grounding": "unchanged", "induction": "unchanged"}
    assert "on nnnnnnnnnnnn, less engaged than before" in lines[3]
    assert lines[3].endswith("told by e-BH; canaries: silent")


def test_canaries_say_that_it_was_the_traffic_or_name_a_circuit_that_traffic_does_not_tell(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = ("--for", "40m", "--reference", str(archive.parent / "reference"))
    for seed in (7, 8):
        canary_round(archive / ROUNDS, DEPLOYED_S + seed, seed, model=NEW)
    status, lines = report(archive, capsys, *reference)
    assert (status, [line.split(": ")[1] for line in lines[2::2]]) == (1, ["TRAFFIC CHANGED", "unchanged", "unchanged"])
    for seed in (17, 18):
        canary_round(archive / ROUNDS, DEPLOYED_S + seed, seed, moved="induction", model=NEW)
    status, lines = report(archive, capsys, *reference)
    assert (status, [line.split(": ")[1] for line in lines[2::2]]) == (1, ["CHANGED", "unchanged", "CHANGED"])
    assert "canaries: moved" in lines[7]
    assert "canaries: moved elsewhere" in lines[5]


def test_too_little_traffic_without_canaries_is_not_called_unchanged(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = report(archive, capsys, "--for", "1m")
    assert status == 1
    assert [line.split(": ")[1] for line in lines[2::2]] == ["not told yet"] * 3
    assert "sessions on nnnnnnnnnnnn, e-value 10^" in lines[3]
    assert "would show that it stopped" in lines[3]


def test_canaries_that_moved_elsewhere_and_no_traffic_are_not_called_unchanged(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (17, 18):
        canary_round(archive / ROUNDS, DEPLOYED_S + seed, seed, moved="induction", model=NEW)
    for path in archive.glob("*.parquet"):
        path.unlink()
    status, lines = report(archive, capsys, "--for", "40m", "--reference", str(archive.parent / "reference"))
    assert status == 1
    assert lines[1].startswith("0 of these ticks are on disk; ")
    assert [line.split(": ")[1] for line in lines[2::2]] == ["not told yet", "not told yet", "CHANGED"]
    assert all("stale" in line for line in lines[2::2])  # the canaries alone say that these are other weights


def test_what_is_kept_on_the_same_weights_is_to_be_made_anew_on_others(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = ("--for", "40m", "--reference", str(archive.parent / "reference"))
    for seed in (7, 8):
        canary_round(archive / ROUNDS, DEPLOYED_S + seed, seed, model=NEW)
    _, lines = report(archive, capsys, *reference)
    assert "keep" not in "".join(lines[2::2])
    assert (
        "it does what it did; all the same, validate it on these weights, record canaries, fit a baseline" in lines[4]
    )
    for path in [*archive.glob("*.parquet"), *(archive / ROUNDS).iterdir()]:
        path.unlink()
    for seed in (7, 8):
        canary_round(archive / ROUNDS, DEPLOYED_S + seed, seed)
    status, lines = report(archive, capsys, *reference)  # no session at all: canaries were compared and are quiet
    assert (status, {line.split(": ", 1)[1] for line in lines[2::2]}) == (
        0,
        {"unchanged: keep its baseline and its canaries' reference"},
    )


def test_canaries_of_another_engine_or_of_other_prompts_are_compared_with_nothing_and_refused_by_name(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary_round(archive / ROUNDS, DEPLOYED_S + 7, 7, prompts="q" * 64, engine="transformers")
    arguments = ["deploy-window", "report", str(archive), "--baseline", str(archive.parent / "baseline")]
    assert main([*arguments, "--reference", str(archive.parent / "reference")]) == 65
    assert "another engine, another prompts" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_told_by_name_and_passed_over_only_where_that_is_asked_for(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty := archive / f"sketch-{DEPLOYED_S}-{DEPLOYED_S + 60}-c.parquet").touch()
    arguments = [
        "deploy-window",
        "report",
        str(archive),
        "--baseline",
        str(archive.parent / "baseline"),
        "--for",
        "40m",
    ]
    assert main(arguments) == 65
    assert f"{empty} cannot be read as Parquet" in capsys.readouterr().err
    status, lines = report(archive, capsys, "--for", "40m", "--skip-unsound")
    assert status == 1
    assert lines[2] == "1 unsound file passed over:"
    assert lines[3].startswith(f"  {empty} cannot be read as Parquet")
    assert len(lines) == 10


def test_whoever_did_not_decide_how_long_is_told_what_that_costs_and_nonsense_is_refused(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = report(archive, capsys)
    assert "not decided beforehand" in lines[2]
    assert main(["deploy-window", "report", str(archive)]) == 78
    assert report(archive, capsys, "--alpha", "1.5")[0] == 78
    assert report(archive.parent / "learned", capsys)[0] == 65  # no window was opened there
    assert report(archive, capsys, "--reference", str(archive / "none"))[0] == 65
