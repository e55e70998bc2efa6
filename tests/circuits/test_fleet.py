"""The fleet as a whole: one detector over the merged sketches of replicas that each run their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.detecting import flat
from bench.streams import IID, MEAN, ablated, stream
from probes.circuits.baseline_fit import Options, fit_baseline
from sidecar.circuits.archive import write_archive
from sidecar.circuits.fleet import detect
from sidecar.circuits.merge import OtherHashError, SketchError
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Settings, Watch, Watched
from sidecar.cli import main
from tests.circuits.live import TICK_S, row

WATCHED = Watched("induction", "all", "m" * 64, "s" * 64, 4, flat(MEAN, 0.01))
REPLICAS = 4


def history(sound: int, gone: int, seed: int = 0) -> np.ndarray:
    """[ticks, k+1], what the whole fleet's sessions bet."""
    rng = np.random.default_rng(seed)
    return np.concatenate((stream(IID, sound, rng)[0], ablated(gone, rng)[0]))


def dealt(counts: np.ndarray, seed: int = 0) -> list[list[TickRow]]:
    """By replica: each session bets on one of them."""
    rng = np.random.default_rng(seed)
    made: list[list[TickRow]] = [[] for _ in range(REPLICAS)]
    for tick, one in enumerate(counts):
        shares = np.stack([rng.multinomial(many, [1 / REPLICAS] * REPLICAS) for many in one], axis=1)  # [replicas, k+1]
        for at, share in enumerate(shares):
            if share.any():
                made[at].append(row(share.tolist(), tick=tick, source=f"replica-{at}"))
    return made


def test_one_detector_over_the_merged_fleet_is_bit_for_bit_one_over_all_its_sessions() -> None:
    counts = history(200, 30)
    alone = Watch([WATCHED], TICK_S)
    alarms = [alarm for tick, one in enumerate(counts) for alarm in alone.take(tick, [row(one.tolist(), tick=tick)])]
    parts = [one for replica in dealt(counts) for one in replica]
    np.random.default_rng(1).shuffle(parts)  # type: ignore[arg-type]
    found = detect(parts, [WATCHED], TICK_S, Settings())
    assert alarms
    assert [(one.tick, one.log_e, one.leans, one.since) for one in found.alarms] == [
        (one.tick, one.log_e, one.leans, one.since) for one in alarms
    ]
    assert found.watch.evidence.tolist() == alone.evidence.tolist()
    assert found.sessions == {("induction", "all"): int(counts.sum())}


def test_the_fleet_alarms_before_any_of_its_replicas_does() -> None:
    replicas = dealt(history(100, 40))
    together = detect([one for each in replicas for one in each], [WATCHED], TICK_S, Settings())
    own = replace(WATCHED, slices=REPLICAS)  # each spends its share of the circuit's budget
    firsts = [detect(each, [own], TICK_S, Settings()).alarms[0].tick for each in replicas]
    assert 100 <= together.alarms[0].tick < min(firsts)


def test_sketches_of_another_spec_or_length_of_tick_are_refused_and_unknown_circuits_passed_over() -> None:
    sound = row([9, 0, 0, 0, 0])
    with pytest.raises(OtherHashError):
        detect([row([9, 0, 0, 0, 0], spec_hash="x" * 64)], [WATCHED], TICK_S, Settings())
    with pytest.raises(SketchError, match="ticks of 5 s"):
        detect([row([9, 0, 0, 0, 0], tick_s=5)], [WATCHED], TICK_S, Settings())
    found = detect([sound, row([9, 0, 0, 0, 0], circuit="copying")], [WATCHED], TICK_S, Settings())
    assert (found.passed_over, found.ticks) == (1, 1)


def test_the_command_says_where_and_when_and_its_status_is_1_for_an_alarm(tmp_path: Path, capsys) -> None:
    learned = write_archive(
        tmp_path / "sound.parquet", [row(one.tolist(), tick=at) for at, one in enumerate(history(900, 0, 5))]
    )
    baseline = tmp_path / "baseline"
    fit_baseline([learned.path], baseline, Options(buckets=1))
    files = [
        str(write_archive(tmp_path / f"replica-{at}.parquet", each).path)
        for at, each in enumerate(dealt(history(60, 20, 6)))
    ]
    merged = tmp_path / "merged.parquet"
    assert main(["sketch", "merge", *files, "--out", str(merged)]) == 0
    capsys.readouterr()
    assert main(["sketch", "detect", str(merged), "--baseline", str(baseline)]) == 1
    told = capsys.readouterr().out
    assert "induction in all: ALARM in the tick of 1970-01-01 01:0" in told
    assert main(["sketch", "detect", *reversed(files), "--baseline", str(baseline)]) == 1
    assert capsys.readouterr().out == told
    assert main(["sketch", "detect", str(learned.path), "--baseline", str(baseline)]) == 0
    assert "ALARM" not in capsys.readouterr().out
    assert main(["sketch", "detect", str(merged), "--baseline", str(tmp_path)]) == 65
    (empty := tmp_path / "empty.parquet").touch()
    capsys.readouterr()
    assert main(["sketch", "detect", *files, str(empty), "--baseline", str(baseline)]) == 65
    assert f"{empty} cannot be read as Parquet" in capsys.readouterr().err
    assert main(["sketch", "detect", *files, str(empty), "--baseline", str(baseline), "--skip-unsound"]) == 1
    assert capsys.readouterr().out.startswith(told + f"1 unsound file passed over:\n  {empty} cannot be read")
