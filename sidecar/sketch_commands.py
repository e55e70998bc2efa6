"""``sidecar sketch merge|show|detect`` and ``sidecar replay``: what a sidecar has archived of circuits, for people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.circuits.baseline import Baseline
    from sidecar.circuits.fleet import Detected
    from sidecar.circuits.tick import TickRow

EX_DIFFERENT = EX_ALARM = 1
EX_DATA = 65  # a file is not what it should be
_SPARKS = " ▁▂▃▄▅▆▇█"


def add(commands: Any) -> None:
    sketch = commands.add_parser("sketch", help="about archived sketches of circuits").add_subparsers(
        required=True, metavar="WHAT"
    )
    merge = sketch.add_parser("merge", help="add up the sketches of replicas: the same bits in any order")
    merge.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Parquet files that sidecars wrote")
    merge.add_argument("--out", type=Path, required=True, metavar="FILE")
    merge.set_defaults(run=_merge)
    show = sketch.add_parser("show", help="what the sketches of a file say")
    show.add_argument("file", type=Path, metavar="FILE")
    show.set_defaults(run=_show)
    detect = sketch.add_parser(
        "detect",
        help="run the live detectors over the sketches of all replicas together",
        description="Each replica runs detectors of its own, over the sessions that bet there. This is one over all of them, with "
        "the same arithmetic: would the fleet as a whole have alarmed, where and when?",
        epilog=f"exit status: 0 no alarm, {EX_ALARM} an alarm, {EX_DATA} a file is unsound or of another model or spec",
    )
    detect.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Parquet files, merged or not")
    detect.add_argument("--baseline", type=Path, required=True, metavar="FOLDER")
    detect.add_argument(
        "--run-length",
        type=int,
        metavar="TICKS",
        help="to a false alarm of a circuit; default: what the baseline was fitted for",
    )
    detect.add_argument("--cool-down", type=int, metavar="TICKS", default=60, help="after an alarm (default 60)")
    detect.set_defaults(run=_detect)
    replay = commands.add_parser(
        "replay",
        help="compute an alarm again from the archive, bit by bit",
        epilog=f"exit status: 0 the same, {EX_DIFFERENT} different, {EX_DATA} a file is missing or unsound",
    )
    replay.add_argument("alarm", type=Path, metavar="ALARM", help="the record, a JSON file")
    replay.add_argument(
        "--archive", type=Path, metavar="FOLDER", help="of the Parquet files; default: beside the record"
    )
    replay.add_argument("--baseline", type=Path, metavar="FOLDER", help="compare its bands, too")
    replay.set_defaults(run=_replay)


def _merge(args: argparse.Namespace) -> int:
    from sidecar.circuits.archive import ArchiveError, read_archive, write_archive
    from sidecar.circuits.merge import SketchError, merge

    try:
        made = merge(row for path in args.files for row in read_archive(path))
        written = write_archive(args.out, made.rows)
    except (ArchiveError, SketchError) as error:
        return _refuse(error)
    again = f"; {made.repeated} that came again count once" if made.repeated else ""
    print(f"{args.out}: {len(made.rows)} rows{again}; sha256 {written.digest}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from sidecar.circuits.archive import ArchiveError, read_archive
    from sidecar.circuits.merge import SketchError, merge

    try:
        made = merge(read_archive(args.file))
    except (ArchiveError, SketchError) as error:
        return _refuse(error)
    for name in sorted({row.key.circuit for row in made.rows}):
        print("\n".join(_circuit([row for row in made.rows if row.key.circuit == name])))
    if made.repeated:
        print(f"{made.repeated} rows that came again count once")
    return 0


def _circuit(rows: Sequence[TickRow]) -> Iterator[str]:
    """Lines for a terminal."""
    from datetime import UTC, datetime

    key, ticks = rows[0].key, [row.key.tick for row in rows]
    begin, end = (datetime.fromtimestamp(at * key.tick_s, UTC) for at in (min(ticks), max(ticks) + 1))
    yield f"{key.circuit}  spec {key.spec_hash[:12]}  model {key.model_hash[:12]}  {rows[0].shape.nodes} nodes"
    yield f"  {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, {len(set(ticks))} ticks of {key.tick_s} s"
    yield f"  {'slice':14}{'rows':>10}{'engaged':>9}{'sessions':>10}{'share':>8}  {'scores, low to high':34}what did not count"
    for name in sorted({row.key.slice for row in rows}):
        yield _line(name, [row for row in rows if row.key.slice == name])


def _line(name: str, rows: Sequence[TickRow]) -> str:
    import numpy as np

    counts = sum(row.counts for row in rows)
    whole = type(rows[0])(rows[0].key, rows[0].sources, rows[0].shape, np.asarray(counts))
    evidence = whole.evidence
    share = float(evidence @ np.arange(len(evidence))) / max(1, int(evidence.sum()) * rows[0].shape.tokens)
    left = {one: whole.single(one) for one in ("sinks", "non_finite", "clipped", "short")}
    told = ", ".join(f"{many} {what.replace('_', ' ')}" for what, many in left.items() if many)
    scores = whole.part("scores").reshape(32, 2).sum(axis=1)
    bars = "".join(_SPARKS[-(-8 * int(one) // max(1, int(scores.max())))] for one in scores)
    engaged = whole.single("engaged") / max(1, whole.single("rows"))
    return f"  {name:14}{whole.single('rows'):10}{engaged:9.1%}{int(evidence.sum()):10}{share:8.1%}  {bars:34}{told}"


def _detect(args: argparse.Namespace) -> int:
    from sidecar.circuits.archive import ArchiveError, read_archive
    from sidecar.circuits.fleet import detect
    from sidecar.circuits.merge import SketchError
    from sidecar.circuits.watch import Settings

    try:
        baseline = baseline_of(args.baseline)
        run_length = baseline.manifest.run_length if args.run_length is None else args.run_length
        if run_length < 1 or args.cool_down < 1:
            raise SketchError("--run-length and --cool-down are ticks, one at least")
        rows = (row for path in args.files for row in read_archive(path))
        found = detect(rows, baseline.watched, baseline.manifest.tick_s, Settings(run_length, args.cool_down))
    except (ArchiveError, SketchError) as error:
        return _refuse(error)
    print("\n".join(_detected(found, baseline.manifest.tick_s)))
    return EX_ALARM if found.alarms else 0


def _detected(found: Detected, tick_s: int) -> Iterator[str]:
    """Alarms in their order, then how each detector stands."""
    from datetime import UTC, datetime

    from sidecar.circuits.detector import UNIT

    for alarm in found.alarms:
        at, one = datetime.fromtimestamp(alarm.tick * tick_s, UTC), alarm.watched
        yield (
            f"{one.circuit} in {one.slice}: ALARM in the tick of {at:%Y-%m-%d %H:%M:%S} UTC, {alarm.leans} engaged than in sound "
            f"traffic: evidence {alarm.log_e / UNIT:.1f} of {alarm.log_threshold / UNIT:.1f}"
        )
    stands = zip(found.watch.watched, found.watch.evidence.tolist(), found.watch.thresholds.tolist(), strict=True)
    for one, log_e, threshold in stands:
        bet = found.sessions[one.circuit, one.slice]
        yield (
            f"{one.circuit} in {one.slice}: evidence {max(0, log_e) / UNIT:.1f} of {threshold / UNIT:.1f} in the end, "
            f"{bet} sessions in {found.ticks} ticks"
        )
    if found.passed_over:
        yield f"{found.passed_over} rows of what the baseline does not know were passed over"


def _replay(args: argparse.Namespace) -> int:
    from sidecar.circuits.archive import ArchiveError
    from sidecar.circuits.merge import SketchError
    from sidecar.circuits.record import RecordError, read_record
    from sidecar.circuits.replay import differences

    try:
        record = read_record(args.alarm)
        baseline = None if args.baseline is None else baseline_of(args.baseline)
        bands = None if baseline is None else (baseline.digest, baseline.watched)
        found = differences(record, args.archive or args.alarm.parent, bands)
    except (ArchiveError, RecordError, SketchError) as error:
        return _refuse(error)
    if found:
        print("\n".join((f"{record.id}: DIFFERENT", *(f"  {one}" for one in found))))
        return EX_DIFFERENT
    sessions = sum(sum(one.evidence) for one in record.trace)
    print(
        f"{record.id}: the same, bit for bit: {record.circuit} in {record.slice} was {record.leans} engaged than in sound "
        f"traffic, after {sessions} sessions in {len(record.trace)} ticks"
    )
    return 0


def baseline_of(folder: Path) -> Baseline:
    """Raises ArchiveError."""
    from probes.circuits.baseline import load_baseline
    from sidecar.circuits.archive import ArchiveError
    from sidecar.errors import ArtifactError

    try:
        return load_baseline(folder, root=folder)
    except ArtifactError as error:
        raise ArchiveError(f"{folder}: {error.text}") from None


def _refuse(error: Exception) -> int:
    print(f"sidecar: {error}", file=sys.stderr)
    return EX_DATA
