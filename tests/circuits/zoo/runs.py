"""One run: a baseline of a week, canaries recorded on the sound model, and some hours in which something happens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.cli import main as probes
from sidecar.circuits.reference import WEEK
from sidecar.cli import main as sidecar
from tests.circuits.zoo.alerts import METRICS, Series
from tests.circuits.zoo.conditions import Arrivals, Condition, Traffic, names_of
from tests.circuits.zoo.pools import Pool, Round
from tests.circuits.zoo.served import TICK_S, Served, configured, seeded
from tests.circuits.zoo.subjects import Seen, Subject
from tests.circuits.zoo.variants import SOUND_MODEL, Fault

WEEK_TICKS = WEEK * 3600 // TICK_S


@dataclass(frozen=True, slots=True)
class Length:
    """ticks: of a run; change: the first one with the change."""

    ticks: int
    change: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a sidecar has learned of the sound model and traffic. artifacts: the circuit and its baseline."""

    artifacts: Path
    reference: Path


@dataclass(slots=True)
class Model:
    """What is wrong with the model that answers now."""

    now: Fault = SOUND_MODEL


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was said in one run, but for its alerts.

    way: of the model's fault, empty if there is none. causes: of all alarms of the stream.
    first_alarm, moved_after: ticks from the change until the stream's alarm, or a move of canaries, is shown; None if it never is.
    moved: circuits and tap points at which canaries had moved at the end. floors: the circuit's distance in the last round;
    farthest: that of whatever was farthest. evidence: the most that log E came to before the change, as a share of its threshold.
    unusual: share of the tokens beyond SPE's limit, from the end of the first tick with the change on.
    """

    seed: int
    way: str
    causes: tuple[str, ...]
    leans: tuple[str, ...]
    first_alarm: int | None
    moved: tuple[str, ...]
    moved_after: int | None
    first_moved: str
    floors: float
    farthest: float
    evidence: float
    unusual: float


def prepare(home: Path, subject: Subject, seen: Seen, history: Traffic, seed: int) -> Prepared:
    """A week of sound traffic into a baseline, by `probes baseline fit`; rounds into a reference, by `sidecar canary record`."""
    home.mkdir(parents=True)
    (home / "prompts").write_text("\n".join(subject.prompts))
    draws = np.random.default_rng([seed, 10])
    with seeded(seed):
        served = Served(configured(home, None), subject.artifacts, seen.identity, iter(seen.recorded))
        for tick in range(WEEK_TICKS):
            _arrive(served, seen.pools, SOUND_MODEL, history(tick, False, draws), tick, draws)
            served.tick(canaries=tick < len(seen.recorded))
        served.keeper.stop()
    sketches = sorted(str(path) for path in (home / "archive").glob("*.parquet"))
    reference, artifacts = home / "reference", home / "artifacts"
    shutil.copytree(subject.artifacts, artifacts)
    _done(probes(["baseline", "fit", *sketches, "--out", str(artifacts / "baseline")]))
    rounds = str(len(seen.recorded))
    _done(sidecar(["canary", "record", str(home / "archive"), "--out", str(reference), "--rounds", rounds]))
    return Prepared(artifacts, reference)


def run(
    home: Path,
    subject: Subject,
    seen: Seen,
    condition: Condition,
    fault: Fault,
    prepared: Prepared,
    length: Length,
    seed: int,
) -> tuple[Outcome, Series]:
    """The outcome but for its alerts, and what a scrape showed tick by tick. fault: one of the condition's."""
    home.mkdir(parents=True)
    (home / "prompts").write_text("\n".join(subject.prompts))
    draws = np.random.default_rng([seed, 20])
    model, series = Model(), Series()
    with seeded(seed):
        config = configured(home, prepared.reference)
        served = Served(config, prepared.artifacts, seen.identity, _answers(seen, model, draws))
        for tick in range(length.ticks):
            changed = tick >= length.change
            model.now = fault if changed else SOUND_MODEL
            _arrive(served, seen.pools, model.now, condition.traffic(tick, changed, draws), tick, draws)
            served.tick()
            series.add(served.series(METRICS))
        outcome = _outcome(served, series, fault, length.change, seed)
        served.keeper.stop()
    shutil.rmtree(home)
    return outcome, series


def _arrive(
    served: Served,
    known: Mapping[tuple[Fault, str], Pool],
    model: Fault,
    arrivals: Arrivals,
    tick: int,
    draws: np.random.Generator,
) -> None:
    """One step with every request of the tick, each a text of its kind that is drawn anew."""
    asked = list(names_of(arrivals, tick))
    pools = [known[model, kind] for kind, _ in asked]
    texts = [int(draws.integers(len(pool))) for pool in pools]
    states = {
        where: np.stack([pool.states[where][text] for pool, text in zip(pools, texts, strict=True)])
        for where in pools[0].states
    }
    positions = np.stack([pool.positions[text] for pool, text in zip(pools, texts, strict=True)])
    served.traffic(states, positions, [session for _, session in asked])


def _answers(seen: Seen, model: Model, draws: np.random.Generator) -> Iterator[Round]:
    """What the engine answers to the fixed prompts; how it batches them is a matter of chance."""
    while True:
        rounds = seen.rounds[model.now]
        yield rounds[int(draws.integers(len(rounds)))]


def _outcome(served: Served, series: Series, fault: Fault, change: int, seed: int) -> Outcome:
    kept = served.snapshot().circuits.kept
    causes = sorted({cause for (_, _, cause), many in kept.alarm_counts.items() if many})
    told = kept.canaries
    farthest = {**told.circuits, **told.layers}
    return Outcome(
        seed,
        fault.way,
        causes=tuple(causes),
        leans=tuple(sorted(series.labels("circuit_alarm", "leans"))),
        first_alarm=series.first(("circuit_alarm{",), change),
        moved=tuple(sorted((*told.moved_circuits, *told.moved_layers))),
        moved_after=series.first(("circuit_canary_moved{", "canary_moved{"), change),
        first_moved=told.first_moved,
        floors=round(max(told.circuits.values()), 2),
        farthest=round(max(farthest.values()), 2),
        evidence=round(series.highest("circuit_evidence_threshold_ratio{", change), 3),
        unusual=round(_unusual(series, change), 5),
    )


def _unusual(series: Series, change: int) -> float:
    tokens = series.grown("circuit_tokens_total", change)
    return series.grown("circuit_tokens_unusual_total", change, 'measure="spe"') / tokens


def _done(status: int) -> None:
    if status:
        raise RuntimeError(f"a command of the product ended with {status}")
