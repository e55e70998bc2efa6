"""The parent's side of a driver: its orders, its journal, and what the journal says in sets of ids."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from sidecar.types import ModelIdentity
from tests.builders import MODEL
from tests.faults.process import START_S, plain_environment

POLL_S = 0.05
ROWS = 256  # of a step: a prefill, whose reading costs more than its sending


@dataclass(frozen=True, slots=True)
class Answered:
    """How one batch was answered."""

    at_s: float
    outcome: str
    reason: str
    generation: int
    scores: str


@dataclass
class Sets:
    """Which ids were sent and which were answered how; also when a phase began and when the tap dropped steps."""

    sent: dict[str, float] = field(default_factory=dict)
    answers: dict[str, list[Answered]] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    drops: list[tuple[float, int]] = field(default_factory=list)
    scores: str = "-"  # the newest that were told

    @property
    def unknown(self) -> set[str]:
        return self.sent.keys() - self.answers.keys()

    def ended(self, outcome: str) -> set[str]:
        return {one for one, (answer, *_) in self.answers.items() if answer.outcome == outcome}

    def reasons(self, outcome: str) -> Counter[str]:
        return Counter(answer.reason for answer, *_ in self.answers.values() if answer.outcome == outcome)

    def scored_between(self, begin_s: float, end_s: float) -> int:
        return sum(begin_s <= one.at_s < end_s and one.outcome == "scored" for one, *_ in self.answers.values())

    def first_scored_after(self, begin_s: float) -> float | None:
        times = (one.at_s for one, *_ in self.answers.values() if one.outcome == "scored" and one.at_s > begin_s)
        return min(times, default=None)

    def check(self) -> None:
        """Every id that was sent is in exactly one of scored, dropped, refused and unknown."""
        assert self.answers.keys() <= self.sent.keys(), sorted(self.answers.keys() - self.sent.keys())[:5]
        twice = {one: answers for one, answers in self.answers.items() if len(answers) > 1}
        assert not twice, twice


class Journal:
    """Reads what was added to a driver's journal, and adds it to the sets; a line that is just being written comes next time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.sets = Sets()

    def read(self) -> Sets:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.decode().splitlines():
                self._add(line)
        return self.sets

    def _add(self, line: str) -> None:
        kind, at_ns, *words = line.split(" ")
        at_s = int(at_ns) / 1e9
        if kind == "sent":
            self.sets.sent[words[0]] = at_s
        elif kind == "answer":
            name, outcome, reason, generation, read = words
            self.sets.answers.setdefault(name, []).append(Answered(at_s, outcome, reason, int(generation), read))
            self.sets.scores = self.sets.scores if read == "-" else read
        elif kind == "phase":
            self.sets.phases[words[0]] = at_s
        else:
            self.sets.drops.append((at_s, int(words[0])))


class Driver:
    """``python -m tests.faults.full.driver``, started and ended by us. Every wait has a deadline."""

    def __init__(
        self,
        address: str,
        journal: Path,
        *,
        engine: str = "engine-0",
        model: ModelIdentity = MODEL,
        rows: int = ROWS,
        life_steps: int = 16,
        wait: bool = True,
        stop_s: float = 5.0,
    ) -> None:
        self._journal = Journal(journal)
        settings: Mapping[str, Any] = {
            "address": address,
            "journal": str(journal),
            "engine": engine,
            "model": asdict(model),
            "rows": rows,
            "life_steps": life_steps,
            "wait": wait,
            "stop_s": stop_s,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.full.driver", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=plain_environment() | {"GRPC_VERBOSITY": "NONE"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(START_S)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):  # killed with an order on its way
                    pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> Self:
        """Connected, and told what to capture."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", self._errors(line)
        return self

    def phase(self, name: str, rate: float) -> None:
        """Steps a second from now on; 0 is as fast as they are answered, below 0 is none."""
        self._order(f"phase {name} {rate}")
        self.until(lambda sets: name in sets.phases)

    def sets(self) -> Sets:
        """What the journal says by now."""
        return self._journal.read()

    def until(self, done: Callable[[Sets], bool], timeout_s: float = 20.0) -> Sets:
        """The journal, once it says so."""
        ends_s = time.monotonic() + timeout_s
        while True:
            sets = self.sets()
            if done(sets):
                return sets
            assert self._process.poll() is None, self._errors("")
            assert time.monotonic() < ends_s, (len(sets.sent), len(sets.answers), sets.phases)
            pause(POLL_S)

    def served_s(self, moment_s: float, timeout_s: float = 20.0) -> float:
        """How long after that moment (monotonic) a batch was scored again."""
        sets = self.until(lambda sets: sets.first_scored_after(moment_s) is not None, timeout_s)
        return (sets.first_scored_after(moment_s) or math.inf) - moment_s

    def end(self) -> dict[str, Any]:
        """Its report, after a farewell to the sidecar."""
        self._order("end")
        out, errors = self._process.communicate(timeout=START_S)
        assert self._process.returncode == 0, errors
        assert not errors, errors
        report: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert report["sent"] == report["ok"] + report["refused"] + report["unknown"], report
        assert report["captured"] == report["sent"] + report["dropped"], report
        assert report["errors"] == 0, report
        return report

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(START_S)

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    def _errors(self, line: str) -> str:
        self._process.kill()
        return line + self._process.communicate(timeout=START_S)[1]


_NEVER = threading.Event()


def pause(seconds: float) -> None:
    """Let real processes run for so long: the load itself, and the step of a poll that has a deadline."""
    _NEVER.wait(seconds)
