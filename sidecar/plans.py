"""The control process's side of the plan: made here from artifacts and model, put in force by the worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from probes.artifact import Artifact
from probes.circuits.baseline import Baseline
from probes.registry import Loaded
from sidecar.config import Config
from sidecar.errors import EngineIdInUseError, OtherModelError, TooManyEnginesError
from sidecar.ingest.wire import Settings
from sidecar.judge.policy import verdict_signals
from sidecar.reading.plan import Plan, build_plan
from sidecar.snapshot import ArtifactSnapshot
from sidecar.types import ModelIdentity, TrafficReport
from sidecar.worker import planwire

_REFUSALS = {one.__name__: one for one in (EngineIdInUseError, OtherModelError, TooManyEnginesError)}
_REMEMBERED = 8  # plans whose counts may still be read


class Orders(Protocol):
    """What this needs of the worker."""

    def give(self, what: str, descriptors: Sequence[int] = (), **fields: Any) -> dict[str, Any]: ...


class Plans:
    """Thread-safe. One plan is made at a time; ``changed`` is called when the taps must be told something else."""

    def __init__(self, config: Config, worker: Orders, changed: Callable[[], None]) -> None:
        self._config = config
        self._worker = worker
        self._changed = changed
        self._binding = threading.Lock()
        self._artifacts: tuple[Loaded, ...] = ()
        self._plans: dict[int, Plan] = {}  # the newest of them, by generation
        self._factor = 1.0
        self.plan: Plan | None = None

    @property
    def generation(self) -> int:
        return 0 if self.plan is None else self.plan.generation

    def of(self, generation: int) -> Plan | None:
        """The plan of that generation, as long as it is remembered."""
        return self._plans.get(generation)

    def settings(self) -> Settings:
        """What the taps are asked to do now."""
        wanted = self._config.sampling
        policy = wanted.policy()
        asked = replace(policy, request_fraction=policy.request_fraction * self._factor)
        return Settings(self.plan, asked, wanted.mode, wanted.sampled_steps, self._config.verdicts.at_deadline)

    def sample(self, factor: float) -> None:
        """The ladder's wish: multiply the share of requests by it."""
        self._factor = factor
        self._changed()

    def load(self, artifacts: tuple[Loaded, ...]) -> None:
        """Put other artifacts in force, between two batches. What does not fit stands in the plan as refused.

        The same ones as before make no new generation: a folder that was touched, or seen while it was still being copied,
        has nothing new to say. Raises WorkerLostError.
        """
        with self._binding:
            same = _digests(artifacts) == _digests(self._artifacts)
            self._artifacts = artifacts
            if self.plan is not None and not same:
                self._bind(self.plan.model)

    def register(self, model: ModelIdentity, report: TrafficReport) -> Plan:
        """An engine introduces itself. Raises EngineIdInUseError, OtherModelError, TooManyEnginesError or WorkerLostError."""
        with self._binding:
            answer = self._worker.give("admit", model=asdict(model), engine=report.engine_id)
            if "refused" in answer:
                raise _REFUSALS[answer["refused"]]
            plan = self.plan
            if plan is None or plan.model != model:
                plan = self._bind(model)
            self._worker.give("introduce", report=asdict(report))
            return plan

    def _bind(self, model: ModelIdentity) -> Plan:
        probes = (one.manifest.name for one in self._artifacts if isinstance(one, Artifact))
        deciding = verdict_signals(self._config.verdicts, probes)
        plan = build_plan(
            1 + max(self._plans, default=0), self._artifacts, model, verdict_signals=deciding, before=self.plan
        )
        self._plans = {**dict(list(self._plans.items())[1 - _REMEMBERED :]), plan.generation: plan}
        memory = planwire.to_memory(plan)
        try:
            self._worker.give("bind", [memory])
        finally:
            os.close(memory)
        self.plan = plan
        self._changed()
        return plan

    def waiting(self) -> tuple[ArtifactSnapshot, ...]:
        """Artifacts before any engine has registered: nothing is known yet about how they fit."""
        return tuple(
            ArtifactSnapshot(
                one.manifest.name, one.manifest.version, one.manifest.evidence.value, "no engine registered yet"
            )
            for one in self._artifacts
            if not isinstance(one, Baseline)
        )


def _digests(artifacts: tuple[Loaded, ...]) -> list[str]:
    return [one.manifest.content_digest for one in artifacts]
