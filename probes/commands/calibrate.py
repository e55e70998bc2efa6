"""``probes calibrate``: from scores to probabilities and to thresholds that keep a promise."""

from __future__ import annotations

import argparse
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.errors import LabError

if TYPE_CHECKING:
    from rich.table import Table

    from probes.activations.store import ActivationStore
    from probes.draft import Draft
    from probes.stages import Calibrated


def add(commands: Any) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        help="turn a draft's scores into probabilities, and set its threshold at a stated false-positive rate",
        description="Fits the calibration on rows that training did not see. The threshold is the lowest whose rate on benign "
        "requests is at most --fpr with 95 % confidence; with fewer benign rows than that takes (59 for 5 %, 299 for 1 %, "
        "2,995 for 0.1 %) it is marked as not certified.",
    )
    calibrate.add_argument("draft", type=Path, metavar="DRAFT", help="the folder that `probes train` wrote")
    calibrate.add_argument(
        "--fpr", type=float, default=0.05, help="share of benign requests that may fire (default 0.05)"
    )
    calibrate.add_argument(
        "--method",
        choices=("temperature", "platt", "isotonic"),
        default="temperature",
        help="temperature: a scale around the score's own zero (default); platt: scale and offset; isotonic: from 1,000 rows",
    )
    calibrate.add_argument(
        "--benign",
        type=Path,
        metavar="ACTS",
        help="more benign rows for the threshold: the negatives of another collection (same model, same tap point)",
    )
    calibrate.add_argument(
        "--length-buckets",
        action=argparse.BooleanOptionalAction,
        help="a threshold for each range of lengths (default: for scores that can only rise as a text grows)",
    )
    calibrate.add_argument(
        "--prior", type=float, metavar="P", help="the share of positives in your traffic, for probabilities to speak of"
    )
    calibrate.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.draft import Draft
    from probes.quality.calibration import calibrate
    from probes.quality.scaling import Method

    draft = Draft(arguments.draft)
    found = calibrate(
        draft,
        store_of(draft),
        fpr=arguments.fpr,
        method=Method(arguments.method),
        benign=None if arguments.benign is None else _benign(arguments.benign),
        length_buckets=arguments.length_buckets,
        prior=arguments.prior,
    )
    draft.write(found)
    console = Console(highlight=False)
    console.print(_thresholds(found))
    if hint := _uncertified(found):
        console.print(hint, soft_wrap=True)
    console.print(f"{_told(found)} Next: probes evaluate {arguments.draft}", soft_wrap=True)
    return 0


def store_of(draft: Draft) -> ActivationStore:
    """Open the store that a draft was trained on. Raises LabError naming its folder if it is gone."""
    from probes.activations.store import ActivationStore

    return ActivationStore.open(Path(draft.training.store))


def _benign(folder: Path) -> ActivationStore:
    from probes.activations.store import ActivationStore

    if folder.is_file():
        how = f"`probes collect --negative-only --data {folder} --model MODEL --into ACTS`"
        raise LabError(f"{folder} is a file of texts: collect their states first, with {how}, and name that folder")
    return ActivationStore.open(folder)


def _thresholds(found: Calibrated) -> Table:
    from rich.table import Table

    table = Table("tokens", "fires above", "benign rows", "fired", "at most, 95 %", title="Thresholds")
    for one in found.thresholds:
        low, high = one.fpr_interval
        promise = f"{one.target_fpr:.1%}" if one.certified else "not certified"
        fired = f"{one.measured_fpr:.1%} [{low:.1%}, {high:.1%}]"
        table.add_row(f"from {one.min_tokens}", f"{one.probability:.4f}", str(one.benign_rows), fired, promise)
    return table


def _uncertified(found: Calibrated) -> str:
    """What would make it certified; empty if it is."""
    from probes.quality.measures import fpr_to_certify, rows_to_certify

    few = min((one for one in found.thresholds if not one.certified), key=lambda one: one.benign_rows, default=None)
    if few is None:
        return ""
    able = ceil(1000 * fpr_to_certify(few.benign_rows)) / 1000
    return (
        f"{few.benign_rows} benign rows cannot certify {few.target_fpr:.1%}, which takes {rows_to_certify(few.target_fpr)}: "
        f"add some with --benign, or ask for --fpr {able:g}. Without a certificate its gate fails."
    )


def _told(found: Calibrated) -> str:
    kind = found.calibration.kind
    if kind == "none":
        return f"On {found.rows} rows higher scores do not mean more positives: nothing was fitted, and no gate will let it pass."
    speaks = "" if found.prior is None else f" They speak of traffic in which {found.prior:.1%} are positive."
    before, after = found.ece_before, found.ece_after
    return f"Probabilities ({kind}, {found.rows} rows) were off by {before:.3f} before and {after:.3f} after, on average.{speaks}"
