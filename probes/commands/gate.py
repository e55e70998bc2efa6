"""``probes gate``: whether a probe may page under another serving config."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.errors import LabError

if TYPE_CHECKING:
    from rich.console import Console

    from probes.release.gate import Gated
    from probes.release.realign import Proposal

EX_STALE, EX_DEGRADED, EX_INCONCLUSIVE = 10, 11, 12
_STATUSES = f"""exit status:
   0  PASS             quality and decisions hold
  {EX_STALE}  THRESHOLD_STALE  it ranks as before, but its threshold decides otherwise: realign or calibrate anew
  {EX_DEGRADED}  DEGRADED         it ranks worse: train anew under this config
  {EX_INCONCLUSIVE}  INCONCLUSIVE     too few texts to tell: collect more
   1  something stood in the way (texts that differ, a store or an artifact that cannot be read)
   2  a wrong call"""


def add(commands: Any) -> None:
    gate = commands.add_parser(
        "gate",
        help="compare the same texts under two serving configs, at the frozen threshold",
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gate.add_argument(
        "--reference", type=Path, required=True, metavar="ACTS", help="activations under the config it was made for"
    )
    gate.add_argument(
        "--candidate", type=Path, required=True, metavar="ACTS", help="the same texts under the other config"
    )
    gate.add_argument("--artifact", type=Path, required=True, metavar="ARTIFACT")
    gate.add_argument("--auroc-margin", type=float, default=0.02, help="AUROC that may be lost (default: %(default)s)")
    gate.add_argument(
        "--fpr-margin", type=float, default=0.02, help="benign texts that may fire more, a share (default: %(default)s)"
    )
    gate.add_argument(
        "--recall-margin", type=float, default=0.05, help="positives that may fire less, a share (default: %(default)s)"
    )
    gate.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    gate.add_argument(
        "--realign", type=Path, metavar="FILE", help="write a calibration for the candidate, found without labels"
    )
    gate.add_argument(
        "--admit",
        type=Path,
        metavar="FOLDER",
        help="if it passes, write the artifact's next version there: no longer stale at that config",
    )
    gate.set_defaults(run=_gate)


def _gate(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.activations.store import ActivationStore
    from probes.release import gate, realign
    from probes.release.admit import admit
    from probes.release.compare import compare_stores, read_artifact

    margins = gate.Margins(arguments.auroc_margin, arguments.fpr_margin, arguments.recall_margin)
    artifact = read_artifact(arguments.artifact)
    reference, candidate = (ActivationStore.open(folder) for folder in (arguments.reference, arguments.candidate))
    pair = compare_stores(artifact, reference, candidate)
    found, shown = gate.gate(pair, margins), Console(highlight=False, soft_wrap=True)
    _show(found, shown)
    if arguments.json is not None:
        _write(arguments.json, gate.as_json(found))
    if arguments.realign is not None:
        proposal = realign.propose(pair, artifact.manifest)
        _show_proposal(proposal, shown)
        _write(arguments.realign, realign.as_json(proposal))
    if arguments.admit is not None:
        admitted = admit(artifact, reference.facts.model, candidate.facts.model, found, arguments.admit)
        shown.print(
            f"{arguments.admit}: {admitted.name} {admitted.version}, admitted; sign it if you sign", markup=False
        )
    return {
        gate.Verdict.PASS: 0,
        gate.Verdict.THRESHOLD_STALE: EX_STALE,
        gate.Verdict.DEGRADED: EX_DEGRADED,
        gate.Verdict.INCONCLUSIVE: EX_INCONCLUSIVE,
    }[found.verdict]


def _show(found: Gated, shown: Console) -> None:
    from rich.table import Table

    table = Table()
    for column in ("", "reference", "candidate", "worse by, 95 %", "may be", ""):
        table.add_column(column)
    for one in found.quantities:
        low, high = one.interval
        worse = f"{one.worse:+.4f} [{low:+.4f}, {high:+.4f}]"
        row = (one.name, f"{one.reference:.4f}", f"{one.candidate:.4f}", worse, f"{one.margin:g}", one.state.value)
        table.add_row(*row)
    shown.print(table)
    low, high = found.flip_interval
    shown.print(f"{found.flips} of {found.rows} texts are decided otherwise [{low:.2%}, {high:.2%}]", markup=False)
    shown.print(f"moved: {'; '.join(found.moved) or 'nothing that is recorded'}", markup=False)
    shown.print(found.verdict.value, style="bold")


def _show_proposal(one: Proposal, shown: Console) -> None:
    new = one.calibration
    how = (
        f"scale {new.scale:.6g}, offset {new.offset:.6g}" if new.knots is None else f"a table of {len(new.knots)} knots"
    )
    told = f"proposed without labels, from {one.rows} texts: {how} at the same threshold"
    alone = "" if one.threshold is None else f"; or the old calibration and threshold {one.threshold:.6g}"
    shown.print(told + alone, markup=False)
    shares = (one.fires_reference, one.fires_candidate, one.fires_realigned)
    shown.print(
        "fires on {:.2%} of all texts under the reference, {:.2%} as it is, {:.2%} realigned".format(*shares),
        markup=False,
    )
    if not one.fits:
        shown.print(
            f"but the change is not a shift and a stretch (off by {one.straight:.2f} standard deviations): train anew",
            style="bold",
        )


def _write(path: Path, told: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None
