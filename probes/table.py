"""Artifacts as a table for people: what each reads, where, how well, on what evidence."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from probes.manifest import ControlRange, GateResult, Manifest, Quality, Threshold
from probes.stages import named
from probes.training.table import in_words
from sidecar.types import Evidence

_STYLES = {
    Evidence.USED: "bold green",
    Evidence.DECODABLE: "green",
    Evidence.UNVERIFIED: "yellow",
    Evidence.STALE: "red",
}


def artifact_table(manifests: Sequence[Manifest]) -> Group:
    """Lay out one row an artifact, and below what was found out about each. Texts are never read as markup."""
    table = Table(show_lines=True)
    for column in ("what", "where", "how good", "evidence"):
        table.add_column(column, overflow="fold")
    for manifest in manifests:
        table.add_row(_what(manifest), _where(manifest), _how_good(manifest), _evidence(manifest))
    return Group(table, *(_prose(manifest) for manifest in manifests))


def _what(manifest: Manifest) -> Text:
    text = Text.assemble((manifest.name, "bold"), f" {manifest.version}")
    if manifest.positive_label:
        text.append(f"\n{manifest.positive_label} against {manifest.negative_label}")
    return text


def _prose(manifest: Manifest) -> Text:
    verdict = "" if manifest.quality is None else f" {manifest.quality.verdict}"
    return Text.assemble((manifest.name, "bold"), f": {manifest.description}{verdict}\n")


def _where(manifest: Manifest) -> Text:
    contract = manifest.feature_contract
    lines = [manifest.model.name, named(manifest.everywhere), f"{contract.token_span.value} tokens"]
    if manifest.aggregation is not None:
        lines.append(in_words(manifest.aggregation))
    return Text("\n".join(lines))


def _how_good(manifest: Manifest) -> Text:
    lines = []
    if manifest.quality is not None:
        lines += _quality(manifest.quality)
    if manifest.threshold is not None:
        lines.append(_threshold(manifest.threshold))
    if manifest.control_range is not None:
        lines.append(_range(manifest.control_range))
    if manifest.gates is not None:
        lines.append(_gates(manifest.gates))
    return Text("\n".join(lines))


def _quality(quality: Quality) -> list[str]:
    low, high = quality.auroc_interval
    worse, better = quality.gain_interval
    return [
        f"AUROC {quality.auroc:.3f} [{low:.3f}, {high:.3f}] on {quality.test_rows} texts",
        f"{quality.gain:+.3f} [{worse:+.3f}, {better:+.3f}] over {quality.best_baseline}",
    ]


def _threshold(threshold: Threshold) -> str:
    promise = "certified" if threshold.certified else "not certified"
    share = f"at most {threshold.target_fpr:.0%} of benign"
    longer = f"; {len(threshold.buckets)} more for longer requests" if threshold.buckets else ""
    return f"fires above {threshold.probability:.3f}: {share}, {promise} on {threshold.benign_rows}{longer}"


def _gates(gates: Sequence[GateResult]) -> str:
    failed = [gate.name for gate in gates if not gate.passed]
    return f"failed: {', '.join(failed)}" if failed else f"all {len(gates)} gates passed"


def _range(bounds: ControlRange) -> str:
    return f"within [{bounds.low:.2f}, {bounds.high:.2f}] but for {bounds.outside:.1%} of real rows"


def _evidence(manifest: Manifest) -> Text:
    text = Text(manifest.evidence.value, style=_STYLES[manifest.evidence])
    return text.append("\nsigned" if manifest.signature is not None else "\nnot signed", style="dim")
