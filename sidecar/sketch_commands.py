"""``sidecar sketch merge|show|detect``: what a sidecar has archived of circuits, for people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.unsound import add_skip, passed_over

if TYPE_CHECKING:
    from probes.circuits.baseline import Baseline
    from sidecar.circuits.fleet import Detected
    from sidecar.circuits.tick import TickRow

EX_ALARM = 1
EX_DATA = 65  # a file is not what it should be
_FILES = "Parquet files that sidecars wrote, or folders of them"
_SPARKS = " ▁▂▃▄▅▆▇█"
_HEAD = ("slice", "rows", "engaged", "sessions", "share", "scores, low to high", "what did not count")


def add(commands: Any) -> None:
    sketch = commands.add_parser("sketch", help="about archived sketches of circuits").add_subparsers(
        required=True, metavar="WHAT"
    )
    merge = sketch.add_parser("merge", help="add up the sketches of replicas: the same bits in any order")
    _files(merge, _FILES)
    merge.add_argument("--out", type=Path, required=True, metavar="FILE")
    merge.set_defaults(run=_merge)
    show = sketch.add_parser("show", help="what archived sketches say")
    _files(show, _FILES)
    show.set_defaults(run=_show)
    detect = sketch.add_parser(
        "detect",
        help="run the live detectors over the sketches of all replicas together",
        description="Each replica runs detectors of its own, over the sessions that bet there. This is one over all of them, with "
        "the same arithmetic: would the fleet as a whole have alarmed, where and when?",
        epilog=f"exit status: 0 no alarm, {EX_ALARM} an alarm, {EX_DATA} a file is unsound or of another model or spec",
    )
    _files(detect, f"{_FILES}, merged or not")
    detect.add_argument("--baseline", type=Path, required=True, metavar="FOLDER")
    detect.add_argument(
        "--run-length",
        type=int,
        metavar="TICKS",
        help="to a false alarm of a circuit; default: what the baseline was fitted for",
    )
    detect.add_argument("--cool-down", type=int, metavar="TICKS", default=60, help="after an alarm (default 60)")
    detect.set_defaults(run=_detect)


def _files(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help=what)
    add_skip(command)


def _merge(args: argparse.Namespace) -> int:
    from sidecar.circuits.archive import ArchiveError, read_archives, write_archive
    from sidecar.circuits.merge import SketchError, merge

    try:
        read = read_archives(args.files, skip_unsound=args.skip_unsound)
        made = merge(read.rows)
        written = write_archive(args.out, made.rows)
    except (ArchiveError, SketchError) as error:
        return _refuse(error)
    again = f"; {made.repeated} that came again count once" if made.repeated else ""
    print("\n".join((f"{args.out}: {len(made.rows)} rows{again}; sha256 {written.digest}", *passed_over(read.unsound))))
    return 0


def _show(args: argparse.Namespace) -> int:
    from sidecar.circuits.archive import ArchiveError, read_archives
    from sidecar.circuits.merge import SketchError, merge

    try:
        read = read_archives(args.files, skip_unsound=args.skip_unsound)
        made = merge(read.rows)
    except (ArchiveError, SketchError) as error:
        return _refuse(error)
    for name in sorted({row.key.circuit for row in made.rows}):
        print("\n".join(_circuit([row for row in made.rows if row.key.circuit == name])))
    if made.repeated:
        print(f"{made.repeated} rows that came again count once")
    for line in passed_over(read.unsound):
        print(line)
    return 0


def _circuit(rows: Sequence[TickRow]) -> Iterator[str]:
    """Lines for a terminal."""
    from datetime import UTC, datetime

    key, ticks = rows[0].key, [row.key.tick for row in rows]
    begin, end = (datetime.fromtimestamp(at * key.tick_s, UTC) for at in (min(ticks), max(ticks) + 1))
    yield f"{key.circuit}  spec {key.spec_hash[:12]}  model {key.model_hash[:12]}  {rows[0].shape.nodes} nodes"
    yield f"  {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, {len(set(ticks))} ticks of {key.tick_s} s"
    names = sorted({row.key.slice for row in rows})
    lines = [_HEAD, *(_cells(name, [row for row in rows if row.key.slice == name]) for name in names)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *numbers, scores, told in lines:
        right = "  ".join(cell.rjust(width) for cell, width in zip(numbers, widths[1:-2], strict=True))
        yield f"  {first:{widths[0]}}  {right}  {scores:{widths[-2]}}  {told}".rstrip()


def _cells(name: str, rows: Sequence[TickRow]) -> tuple[str, ...]:
    """A line of the table, under `_HEAD`."""
    import numpy as np

    counts = sum(row.counts for row in rows)
    whole = type(rows[0])(rows[0].key, rows[0].sources, rows[0].shape, np.asarray(counts))
    evidence = whole.evidence
    taken, sessions = int(evidence @ np.arange(len(evidence))), int(evidence.sum())
    left = {one: whole.single(one) for one in ("sinks", "non_finite", "clipped", "short")}
    told = ", ".join(f"{many} {what.replace('_', ' ')}" for what, many in left.items() if many)
    scores = whole.part("scores").reshape(32, 2).sum(axis=1)
    bars = "".join(_SPARKS[-(-8 * int(one) // max(1, int(scores.max())))] for one in scores)
    tokens = whole.single("rows")
    engaged, share = _share(whole.single("engaged"), tokens), _share(taken, sessions * rows[0].shape.tokens)
    return name, str(tokens), engaged, str(sessions), share, bars, told


def _share(part: int, whole: int) -> str:
    """Of nothing there is none.

    >>> _share(1, 8), _share(0, 0)
    ('12.5%', '-')
    """
    return f"{part / whole:.1%}" if whole else "-"


def _detect(args: argparse.Namespace) -> int:
    from sidecar.circuits.archive import ArchiveError, read_archives
    from sidecar.circuits.fleet import detect
    from sidecar.circuits.merge import SketchError
    from sidecar.circuits.watch import Settings

    try:
        baseline = baseline_of(args.baseline)
        run_length = baseline.manifest.run_length if args.run_length is None else args.run_length
        if run_length < 1 or args.cool_down < 1:
            raise SketchError("--run-length and --cool-down are ticks, one at least")
        read = read_archives(args.files, skip_unsound=args.skip_unsound)
        settings = Settings(run_length, args.cool_down)
        found = detect(read.rows, baseline.watched, baseline.manifest.tick_s, settings)
    except (ArchiveError, SketchError) as error:
        return _refuse(error)
    print("\n".join((*_detected(found, baseline.manifest.tick_s), *passed_over(read.unsound))))
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
