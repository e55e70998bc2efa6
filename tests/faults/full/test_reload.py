"""Another plan, again and again, under load: each batch is read by exactly one."""

from __future__ import annotations

import signal
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from probes.artifact import save_artifact
from tests.builders import axis, manifest_fields, write_control
from tests.faults.full.driven import Driver, Sets
from tests.faults.full.heavy import RING_SLOTS, WORKERS, way
from tests.faults.full.scale import SCALE
from tests.faults.full.watch import Watch, ledger, reconcile
from tests.faults.process import Process

pytestmark = pytest.mark.timeout(60 + SCALE.reloads)
PROBES = ("left", "right")
RATE = 100.0
ALWAYS = {
    "probability": 1e-6,
    "target_fpr": 0.05,
    "measured_fpr": 0.05,
    "fpr_interval": [0.0, 0.1],
    "benign_rows": 100,
    "certified": True,
}


class Folder:
    """Artifacts as Kubernetes puts them there: both probes change in one rename of ``..data``."""

    def __init__(self, home: Path) -> None:
        self.root = home / "artifacts"
        self._versions = 0
        write_control(self.root)
        self.change()
        for name in PROBES:
            (self.root / name).symlink_to(f"..data/{name}")

    def change(self) -> None:
        """Two probes whose readings, at every token, say which version they are of."""
        self._versions += 1
        version = self.root / f"..{self._versions}"
        for column, name in enumerate(PROBES):
            offset = np.array([self._versions * 0.003 - 1.5], dtype=np.float32)
            save_artifact(version / name, manifest_fields(name, threshold=ALWAYS), axis(column), offset)
        link = self.root / "..next"
        link.symlink_to(version.name)
        link.rename(self.root / "..data")


@pytest.mark.parametrize("mode", ["raw", "projected"])
def test_under_reloads_each_batch_is_read_by_exactly_one_generation(home, record, mode):
    folder = Folder(home)
    flags = ("artifacts.reload_s=0.02", f"sampling.mode={mode}", "sampling.request_fraction=1.0")
    with Process(home, folder.root, *(word for flag in flags for word in ("--set", flag))) as process:
        process.event("started")
        with (
            Watch(process, most=2 * (RING_SLOTS + WORKERS)),
            Driver(way(home, "ring"), home / "ring", engine="ring", rows=16, life_steps=1).ready() as by_ring,
            Driver(way(home, "grpc"), home / "grpc", engine="grpc", rows=16, life_steps=1).ready() as by_grpc,
        ):
            drivers = (by_ring, by_grpc)
            for driver in drivers:
                driver.phase("load", RATE)
                driver.until(_whole)
            for _ in range(SCALE.reloads):
                _change(folder, drivers)
            for driver in drivers:
                driver.end()
            journals = [driver.sets() for driver in drivers]
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    counts, _ = ledger(home)
    reconcile(counts, *journals)
    assert counts.received == counts.scored == sum(len(sets.ended("scored")) for sets in journals)
    for sets in journals:
        _only_grows(sets)
    read = _readings(journals)
    whole = {generation: max(readings, key=len) for generation, readings in read.items()}
    assert len(set(whole.values())) >= SCALE.reloads
    for generation, readings in read.items():
        assert all(one <= whole[generation] for one in readings), (generation, readings)
        assert mode == "projected" or len(readings) == 1, (generation, readings)
    record(
        "reload",
        f"{SCALE.reloads} reloads under load, {mode}, ring and gRPC",
        "each batch by one generation, none lost",
        batches=counts.received,
        generations=len(read),
    )


def _change(folder: Folder, drivers: tuple[Driver, ...]) -> None:
    """Until both engines are answered by the new version."""
    before = drivers[0].sets().scores
    folder.change()
    for driver in drivers:
        driver.until(lambda sets: _whole(sets) and sets.scores != before)


def _only_grows(sets: Sets) -> None:
    generations = [answer.generation for answer, *_ in sets.answers.values()]
    assert generations == sorted(generations)
    assert not sets.unknown


def _whole(sets: Sets) -> bool:
    """The newest answer tells readings of both probes."""
    return all(name in sets.scores for name in PROBES)


def _readings(journals: list[Sets]) -> dict[int, set[frozenset[str]]]:
    """What was read of the same rows, by generation. Of what a tap projected by an earlier plan, some is of no use any more."""
    read: defaultdict[int, set[frozenset[str]]] = defaultdict(set)
    for sets in journals:
        for answer, *_ in sets.answers.values():
            read[answer.generation].add(frozenset(answer.scores.split(",")) - {"-"})
    return read
