"""The demo's toy references: of the circuit on minutes of its own traffic, and of the canaries on their first rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from probes.circuits.baseline import BaselineManifest, load_baseline
from probes.circuits.baseline_fit import Options, fit_baseline
from probes.errors import LabError
from sidecar.circuits.archive import ArchiveError, read_archive
from sidecar.live.canary_file import CanaryFileError, record, rounds_in
from sidecar.live.canary_runner import ROUNDS

SESSIONS = 80  # that are learned from, at least: with fewer the band is so wide that nothing leaves it
CANARY_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Home:
    """Where the demo's sidecar looks and writes."""

    folder: Path

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    @property
    def canaries(self) -> Path:
        """The reference of the canaries."""
        return self.folder / "canaries.safetensors"

    @property
    def prompts(self) -> Path:
        """Of the canaries."""
        return self.folder / "canaries.txt"

    @property
    def token(self) -> Path:
        """By which the server believes that a request is a canary."""
        return self.folder / "token"

    @property
    def trigger(self) -> Path:
        """Once it exists, the server's heads are ablated."""
        return self.folder / "ablate"


@dataclass(frozen=True, slots=True)
class Learned:
    """What the reference of the circuit was made of."""

    sessions: int
    seconds: int
    mean: float
    low: float  # the band that sound traffic's mean lies in
    high: float
    tolerance: float
    run_length_s: int  # to a false alarm, at least, while it does

    @property
    def words(self) -> str:
        return (
            f"a toy reference: {self.seconds} s of this demo's own traffic in one bucket ({self.sessions} sessions), where a "
            f"service learns a week, hour by hour. Sound: {self.low:.0%} to {self.high:.0%} of a session's tokens engaged; while "
            f"that holds, at most one false alarm in {self.run_length_s / 3600:.0f} h"
        )


def record_canaries(home: Home) -> bool:
    """Whether there are rounds enough; the sidecar reads the file when its next round begins."""
    rounds = rounds_in(home.archive / ROUNDS)
    if len(rounds) < CANARY_ROUNDS:
        return False
    try:
        record(rounds[-CANARY_ROUNDS:], home.canaries)
    except CanaryFileError:  # a round from before the last reload has other columns; the next ones have not
        return False
    return True


def fit(home: Home) -> Learned | None:
    """Put a baseline among the artifacts; None, as long as the archive does not give one."""
    try:
        files = sorted(home.archive.glob("*.parquet"))
        if sum(int(row.evidence.sum()) for path in files for row in read_archive(path)) < SESSIONS:
            return None
        made = fit_baseline(files, home.folder / "baseline", Options(buckets=1, armed=True))
    except (ArchiveError, LabError):  # a replay of so little may alarm: more of it will not
        return None
    (home.folder / "baseline").rename(home.artifacts / "baseline")  # whole or not at all, for whoever reloads
    return _learned(made, home.artifacts)


def _learned(made: BaselineManifest, artifacts: Path) -> Learned:
    (watched,) = load_baseline(artifacts / "baseline", root=artifacts).watched
    band = watched.reference.band(0)
    return Learned(
        sum(made.circuits[0].sessions),
        (made.last_tick - made.first_tick + 1) * made.tick_s,
        float(watched.reference.mean[0]),
        band.low,
        band.high,
        watched.reference.tolerance,
        made.run_length * made.tick_s,
    )
