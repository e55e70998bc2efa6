"""The whole zoo: every condition in so many runs, what was said in each beside what was expected of it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.circuits.zoo.alerts import fired
from tests.circuits.zoo.conditions import CONDITIONS, Condition, Traffic
from tests.circuits.zoo.runs import Length, Outcome, Prepared, prepare, run
from tests.circuits.zoo.subjects import Seen, Subject, seen
from tests.circuits.zoo.variants import SOUND, VARIANTS

EXPECTED = Path(__file__).with_name("expected.yaml")
RIGHT = 0.95  # of the runs of a condition
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """runs: of each condition. histories: weeks of sound traffic, each with a baseline and canaries of its own.

    texts: of each kind. ticks: of a run, model_ticks: of one in which the model changes, 0 for as many: canaries tell that at once.
    change: the first tick with the change.
    """

    runs: int
    histories: int
    texts: int
    ticks: int
    change: int
    model_ticks: int = 0

    def length(self, condition: Condition) -> Length:
        model = self.model_ticks and condition.variant != SOUND
        return Length(self.model_ticks if model else self.ticks, self.change)


COMMITTED = Size(runs=20, histories=2, texts=24, ticks=72, change=24)  # of results.json
SHORT = Size(runs=10, histories=1, texts=48, ticks=40, change=8, model_ticks=14)


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one condition. any_of: at least one of these fires, and no other alert."""

    diagnosis: str
    reason: str
    alerts: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()

    def holds(self, diagnosis: str, alerts: Collection[str]) -> bool:
        wanted = bool(alerts) and set(alerts) <= set(self.any_of) if self.any_of else set(alerts) == set(self.alerts)
        return diagnosis == self.diagnosis and wanted


def expected(subject: str) -> dict[str, dict[str, Expected]]:
    """By numerics and condition."""
    told = yaml.safe_load(EXPECTED.read_text(encoding="utf-8"))
    return {
        numerics: {name: _expected(one.get("where", {}).get(subject, one)) for name, one in of.items()}
        for numerics, of in told.items()
    }


def expected_digest() -> str:
    return hashlib.sha256(EXPECTED.read_bytes()).hexdigest()


def _expected(told: Mapping[str, Any]) -> Expected:
    alerts, any_of = (tuple(told.get(name, ())) for name in ("alerts", "any_of"))
    return Expected(told["diagnosis"], told["reason"], alerts, any_of)


def diagnosis_of(outcome: Outcome, alerts: Collection[str]) -> str:
    """What is said of a run as a whole: of the model if canaries have moved, and of whatever the stream's alarms say.

    Traffic that is told by what its states look like is a diagnosis of traffic, too.
    """
    found = {*outcome.causes, *(["model"] if outcome.moved else [])}
    if not found and "CircuitUnseenTraffic" in alerts:
        found = {"traffic"}
    return "+".join(sorted(found)) or "none"


def measure(
    subject: Subject, numerics: str, names: Sequence[str], size: Size, seed: int, promtool: str, told: Told
) -> Iterator[dict[str, Any]]:
    """A row for each condition, with every run's outcome. Runs go round the ways of its fault, and then round the weeks."""
    conditions = {name: CONDITIONS[name] for name in names}
    variants = [one for one in VARIANTS if one in {SOUND, *(each.variant for each in conditions.values())}]
    known = seen(subject, numerics, variants, size.runs, told)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        home = Path(folder)
        learned = _learned(home, subject, known, conditions, size, seed)
        told(f"{subject.name} {numerics}: learned")
        for place, (name, condition) in enumerate(conditions.items()):
            seeds = [100_000 * seed + 1000 * place + number for number in range(size.runs)]
            faults, weeks = known.faults(condition.variant), learned[condition.history]
            of = [(faults[at % len(faults)], weeks[at // len(faults) % len(weeks)]) for at in range(size.runs)]
            runs = [
                run(home / "run", subject, known, condition, fault, week, size.length(condition), one)
                for (fault, week), one in zip(of, seeds, strict=True)
            ]
            alerts = fired(promtool, [series for _, series in runs], home / "alerts")
            row = _row(subject, numerics, name, [outcome for outcome, _ in runs], alerts)
            told(f"{subject.name} {numerics} {name}: {row['right']} of {len(runs)}")
            yield row


def _learned(
    home: Path, subject: Subject, known: Seen, conditions: Mapping[str, Condition], size: Size, seed: int
) -> dict[Traffic, list[Prepared]]:
    """Weeks of each kind of traffic that a baseline is fitted on."""
    kinds = list(dict.fromkeys(one.history for one in conditions.values()))
    return {
        kind: [
            prepare(home / f"week-{place}-{number}", subject, known, kind, 100 * seed + 10 * place + number)
            for number in range(size.histories)
        ]
        for place, kind in enumerate(kinds)
    }


def _row(
    subject: Subject, numerics: str, name: str, outcomes: Sequence[Outcome], alerts: Sequence[tuple[str, ...]]
) -> dict[str, Any]:
    wanted = expected(subject.name)[numerics][name]
    runs = []
    for outcome, shown in zip(outcomes, alerts, strict=True):
        diagnosis = diagnosis_of(outcome, shown)
        right = wanted.holds(diagnosis, shown)
        runs.append(asdict(outcome) | {"diagnosis": diagnosis, "alerts": shown, "right": right})
    about = {"subject": subject.name, "numerics": numerics, "condition": name}
    return about | {"right": sum(one["right"] for one in runs), "runs": runs}
