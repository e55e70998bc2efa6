"""The demo's live table: signals, coverage and the ledger, as a sidecar tells them."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from protos.stethoscope.v1 import control_pb2
from sidecar.demo.collector import Received
from sidecar.demo.traffic import Answered

_EVIDENCE_STYLE = {"decodable": "green", "used": "bold green", "stale": "yellow", "unverified": "yellow"}
_BAR = 12


def _bar(share: float) -> Text:
    filled = round(share * _BAR)
    return Text("█" * filled + "░" * (_BAR - filled), style="cyan")


def signals(now: control_pb2.GetStatusResponse) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="signals", title_justify="left")
    for name in ("signal", "evidence", "tokens read", "mean score", "", "detections"):
        table.add_column(name, justify="right" if name in ("tokens read", "mean score", "detections") else "left")
    for one in now.signals:
        evidence = Text(one.evidence, style=_EVIDENCE_STYLE.get(one.evidence, ""))
        table.add_row(one.name, evidence, f"{one.readings:,}", f"{one.mean:.3f}", _bar(one.mean), f"{one.detections:,}")
    return table


def coverage(now: control_pb2.GetStatusResponse) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="coverage", title_justify="left")
    for name in ("tap point", "tokens expected", "tokens seen", "state"):
        table.add_column(name, justify="right" if name.startswith("tokens") else "left")
    for one in now.coverage:
        state = Text(f"BLIND: {one.reason}", style="bold red") if one.blind else Text("seen", style="green")
        table.add_row(one.tap_point, f"{one.expected:,}", f"{one.seen:,}", state)
    return table


def ledger(now: control_pb2.GetStatusResponse) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title="ledger: received = scored + dropped + rejected + in flight", title_justify="left"
    )
    for name in ("", "received", "scored", "dropped", "rejected", "in flight"):
        table.add_column(name, justify="right" if name else "left")
    for name, one in (("step batches", now.step_batches), ("rows", now.rows)):
        counts = (one.received, one.scored, one.dropped, one.rejected, one.in_flight)
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def page(
    now: control_pb2.GetStatusResponse | None, traffic: Answered, spans: Received, circuits: RenderableType
) -> RenderableType:
    """Everything at once; without a status yet, the last line alone."""
    parts: list[RenderableType] = [] if now is None else [signals(now), circuits, coverage(now), ledger(now)]
    trace = f", the last in trace {spans.last_trace}" if spans.last_trace else ""
    stopped = f", {traffic.stopped} of them stopped by a verdict" if traffic.stopped else ""
    answered = f"{traffic.requests} requests answered{stopped}, {traffic.failed} failed"
    parts.append(Text(f"{answered}; {spans.spans} spans received{trace}", "dim"))
    return Group(*parts)
