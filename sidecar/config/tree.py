"""The whole configuration: one frozen tree, and what must hold between its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field

from sidecar.config.sections import (
    Artifacts,
    Budget,
    Canary,
    Circuits,
    Coverage,
    Data,
    Ladder,
    Limits,
    Listen,
    Log,
    Metrics,
    Ring,
    Sampling,
    Section,
    Traces,
    Verdicts,
    Worker,
)


class Config(Section):
    """The sidecar's configuration."""

    listen: Listen = Field(default_factory=Listen)
    artifacts: Artifacts = Field(default_factory=Artifacts)
    limits: Limits = Field(default_factory=Limits)
    coverage: Coverage = Field(default_factory=Coverage)
    sampling: Sampling = Field(default_factory=Sampling)
    metrics: Metrics = Field(default_factory=Metrics)
    traces: Traces = Field(default_factory=Traces)
    budget: Budget = Field(default_factory=Budget)
    ladder: Ladder = Field(default_factory=Ladder)
    verdicts: Verdicts = Field(default_factory=Verdicts)
    worker: Worker = Field(default_factory=Worker)
    ring: Ring = Field(default_factory=Ring)
    data: Data = Field(default_factory=Data)
    circuits: Circuits = Field(default_factory=Circuits)
    canary: Canary = Field(default_factory=Canary)
    log: Log = Field(default_factory=Log)


@dataclass(frozen=True, slots=True)
class Relation:
    """What must hold between two settings."""

    settings: tuple[str, str]
    holds: Callable[[Config], bool]
    text: str


RELATIONS = (
    Relation(
        ("canary.url", "circuits.archive"),
        lambda c: not c.canary.url or c.circuits.archive is not None,
        "canary.url needs circuits.archive: rounds are kept there, and a reference is made of them",
    ),
    Relation(
        ("canary.url", "canary.token_file"),
        lambda c: not c.canary.url or c.canary.token_file is not None,
        "canary.url needs canary.token_file: nobody else may call itself a canary",
    ),
    Relation(
        ("circuits.replica", "circuits.replicas"),
        lambda c: c.circuits.replica < c.circuits.replicas,
        "circuits.replica must be below circuits.replicas: they are counted from 0",
    ),
    Relation(
        ("circuits.replicas", "circuits.key_file"),
        lambda c: c.circuits.replicas == 1 or c.circuits.key_file is not None,
        "circuits.key_file is needed with several replicas: a session bets on one of them",
    ),
    Relation(
        ("ladder.low", "ladder.high"),
        lambda c: c.ladder.low < c.ladder.high,
        "ladder.low must be below ladder.high",
    ),
    Relation(
        ("ladder.up_s", "ladder.max_up_s"),
        lambda c: c.ladder.up_s <= c.ladder.max_up_s,
        "ladder.up_s must not exceed ladder.max_up_s",
    ),
    Relation(
        ("limits.segments", "limits.rows"),
        lambda c: c.limits.segments <= c.limits.rows,
        "limits.segments must not exceed limits.rows: every segment has a row",
    ),
    Relation(
        ("limits.segments", "limits.requests"),
        lambda c: c.limits.segments <= c.limits.requests,
        "limits.segments must not exceed limits.requests: the requests of one step are tracked at once",
    ),
    Relation(
        ("coverage.window_s", "coverage.forget_s"),
        lambda c: c.coverage.window_s < c.coverage.forget_s,
        "coverage.window_s must be below coverage.forget_s",
    ),
)
