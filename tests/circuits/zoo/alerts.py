"""Which of the shipped alerts fire in a run: promtool evaluates the rules over what a scrape showed, tick by tick."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.circuits.zoo.served import TICK_S

_REPO = Path(__file__).parents[3]
_RULES = _REPO / "deploy" / "prometheus" / "rules.yml"
_NOTHING = "_"
# All that the rules about circuits read. The budget's has a window of 30 days, and takes what there is of it.
METRICS = (
    "canary_moved",
    "canary_configured",
    "canary_age_seconds",
    "canary_interval_seconds",
    "canary_recorded",
    "circuit_canary_moved",
    "circuit_alarm",
    "circuit_alarms_total",
    "circuit_evidence_threshold_ratio",
    "circuit_silent_seconds",
    "circuit_state",
    "circuit_tokens_total",
    "circuit_tokens_unusual_total",
    "circuits_alarm_records_total",
    "circuits_archive_rows_total",
    "circuits_false_alarms_promised",
    "circuits_tick_seconds",
    "circuits_ticks_total",
    "deploy_window",
    "deploy_windows_unsound",
)
PREFIX = "Stethoscope"
_ALERT = re.compile(rf"{PREFIX}Circuit\w+")


@dataclass(slots=True)
class Series:
    """What scrapes showed, one a tick."""

    scrapes: list[Mapping[str, float]] = field(default_factory=list)

    def add(self, scrape: Mapping[str, float]) -> None:
        self.scrapes.append(scrape)

    def names(self) -> list[str]:
        return sorted({name for scrape in self.scrapes for name in scrape})

    def first(self, prefixes: tuple[str, ...], begin: int) -> int | None:
        """Ticks after ``begin`` until one of these is 1; negative if that was before."""
        shown = [
            at for at, one in enumerate(self.scrapes) if any(n.startswith(prefixes) and v == 1 for n, v in one.items())
        ]
        return shown[0] - begin + 1 if shown else None

    def highest(self, prefix: str, before: int) -> float:
        values = [v for one in self.scrapes[:before] for n, v in one.items() if n.startswith(prefix)]
        return max(values, default=0.0)

    def grown(self, metric: str, since: int, label: str = "") -> float:
        """How much all of its series with this label grew together, from that scrape to the last one."""
        before, after = self.scrapes[since], self.scrapes[-1]
        own = [name for name in after if name.startswith(f"{metric}{{") and label in name]
        return sum(after[name] - before.get(name, 0.0) for name in own)

    def labels(self, metric: str, label: str) -> set[str]:
        found = (re.search(rf'{label}="([^"]*)"', name) for name in self.names() if name.startswith(f"{metric}{{"))
        return {match[1] for match in found if match is not None}


def promtool_here() -> str:
    """Its path. Raises CalledProcessError where it cannot be had."""
    script = ["/bin/sh", str(_REPO / "deploy" / "get_promtool.sh")]
    return subprocess.run(script, capture_output=True, text=True, timeout=120, check=True).stdout.strip()


def fired(
    promtool: str, runs: Sequence[Series], folder: Path, every_s: int = TICK_S, *, at_once: bool = False
) -> list[tuple[str, ...]]:
    """Of each run the alerts that fired at any time, sorted, without their prefix.

    every_s: seconds from one scrape to the next. at_once: rules wait for nothing, and whatever held a moment fires.

    Each run expects an alert that there is none of, by the run's number, and promtool tells what it got instead.
    Raises RuntimeError if it tells anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tests = [_test(number, one, every_s) for number, one in enumerate(runs)]
    (folder / "rules.yml").write_text(yaml.safe_dump(_rules({"annotations", "for"} if at_once else {"annotations"})))
    told = {"rule_files": ["rules.yml"], "evaluation_interval": f"{every_s}s", "tests": tests}
    path = folder / "zoo_test.yml"
    path.write_text(yaml.dump(told, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), width=10**6))
    done = subprocess.run(
        [promtool, "test", "rules", str(path)], capture_output=True, text=True, timeout=600, check=False
    )
    answers = re.findall(r'exp: \{alertname="run (\d+)"\}[^\n]*\n\s*got:([^\n]*)', done.stdout + done.stderr)
    found = {int(number): _alerts(got) for number, got in answers}
    if sorted(found) != list(range(len(runs))):
        raise RuntimeError(f"promtool: {(done.stdout + done.stderr)[:2000]}")
    return [found[number] for number in range(len(runs))]


def _rules(without: set[str]) -> dict[str, Any]:
    """The shipped rules about circuits, without what they tell people."""
    told = yaml.safe_load(_RULES.read_text())
    own = [rule for group in told["groups"] for rule in group["rules"] if _ALERT.fullmatch(rule.get("alert", ""))]
    rules = [{name: value for name, value in rule.items() if name not in without} for rule in own]
    return {"groups": [{"name": "circuits", "rules": rules}]}


def _alerts(got: str) -> tuple[str, ...]:
    return tuple(sorted(set(re.findall(rf'alertname="{PREFIX}(\w+)"', got))))


def _test(number: int, run: Series, every_s: int) -> dict[str, Any]:
    ends_s = (len(run.scrapes) - 1) * every_s
    query = (
        f'group by (alertname) (max_over_time(ALERTS{{alertstate="firing",alertname=~"{PREFIX}Circuit.*"}}[{ends_s}s]))'
    )
    return {
        "name": f"run {number}",
        "interval": f"{every_s}s",
        "input_series": [{"series": _labelled(name), "values": _values(run, name)} for name in run.names()],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": f"{ends_s}s",
                "exp_samples": [{"labels": f'{{alertname="run {number}"}}', "value": 1}],
            }
        ],
    }


def _labelled(name: str) -> str:
    metric, _, labels = name.partition("{")
    own = ",".join(part for part in (labels.rstrip("}"), 'job="stethoscope"', 'instance="host:9464"') if part)
    return f"stethoscope_{metric}{{{own}}}"


def _values(run: Series, name: str) -> str:
    """Runs of one value as promtool writes them."""
    return " ".join(_shorter([scrape.get(name) for scrape in run.scrapes]))


def _shorter(values: Sequence[float | None]) -> Iterator[str]:
    at = 0
    while at < len(values):
        stop = at + 1
        while stop < len(values) and values[stop] == values[at]:
            stop += 1
        value = values[at]
        own = _NOTHING if value is None or not math.isfinite(value) else f"{value:.10g}"
        yield own if stop == at + 1 else f"{own}x{stop - at - (own != _NOTHING)}"
        at = stop
