"""``sidecar replay``: an alarm, or all of a folder, computed again; and whether a record of them was changed or taken out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.circuits.record import AlarmRecord
    from sidecar.circuits.replay import Against

EX_DIFFERENT = 1
EX_DATA = 65  # a file is not what it should be
_BELIEVED = "diagnosis, configuration, traces, and that it pages"  # neither the archive nor the baseline knows of them


def add(commands: Any) -> None:
    replay = commands.add_parser(
        "replay",
        help="compute an alarm again from the archive, bit by bit",
        description="Evidence, log E, which way it leans and that it reached the threshold are computed again from the archive; "
        f"bands and threshold with --baseline. Taken as they are told: {_BELIEVED}. Of a folder all records are computed "
        "again, and whether they are one chain is told: what was changed or taken out under a later one breaks it; that the "
        "newest ones were taken away is not seen.",
        epilog=f"exit status: 0 the same, {EX_DIFFERENT} different, {EX_DATA} a file is missing or unsound",
    )
    replay.add_argument("alarm", type=Path, metavar="ALARM", help="the record, a JSON file, or the folder of all")
    replay.add_argument(
        "--archive", type=Path, metavar="FOLDER", help="of the Parquet files; default: beside the record"
    )
    replay.add_argument("--baseline", type=Path, metavar="FOLDER", help="compare its bands and the threshold, too")
    replay.add_argument(
        "--run-length",
        type=int,
        metavar="TICKS",
        help="what circuits.run_length was; default: what the baseline was fitted for",
    )
    replay.add_argument(
        "--skip-unsound",
        action="store_true",
        help="of a folder: an alarm whose archive files cannot be read is named with the reason and counted, and the others "
        "are computed; the exit status is 1 then",
    )
    replay.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> int:
    from sidecar.circuits.archive import ArchiveError
    from sidecar.circuits.merge import SketchError
    from sidecar.circuits.record import RecordError

    try:
        against = _against(args)
        if not args.alarm.is_dir():
            same = _one(args.alarm, args.archive or args.alarm.parent, against)
        else:
            same = _all(args.alarm, args.archive or args.alarm, against, skip_unsound=args.skip_unsound)
    except (ArchiveError, SketchError, RecordError) as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return EX_DATA
    return 0 if same else EX_DIFFERENT


def _against(args: argparse.Namespace) -> Against | None:
    from probes.circuits.baseline import load_baseline
    from sidecar.circuits.archive import ArchiveError
    from sidecar.circuits.replay import Against
    from sidecar.errors import ArtifactError

    if args.run_length is not None and (args.baseline is None or args.run_length < 1):
        raise ArchiveError("--run-length is ticks, one at least, and goes with --baseline")
    if args.baseline is None:
        return None
    try:
        made = load_baseline(args.baseline, root=args.baseline)
    except ArtifactError as error:
        raise ArchiveError(f"{args.baseline}: {error.text}") from None
    return Against(made.digest, made.watched, args.run_length or made.manifest.run_length)


def _all(folder: Path, archive: Path, against: Against | None, *, skip_unsound: bool) -> bool:
    """Whether the records are one chain, and each is the same; a file that is no record breaks the chain.

    skip_unsound: one whose archive cannot be read is told and not the same; else it raises ArchiveError.
    """
    from sidecar.circuits.archive import ArchiveError
    from sidecar.circuits.chain import Chain, records_in
    from sidecar.circuits.record import RecordError

    chain, paths = Chain(folder), records_in(folder)
    if not paths:
        raise RecordError(f"{folder}: there is no alarm's record")
    chain.look()
    breaks = list(chain.breaks())
    print("\n".join((f"{folder}: BROKEN CHAIN", *(f"  {one}" for one in breaks))) if breaks else f"{folder}: one chain")
    same, unread = [], 0
    for path in paths:
        if path.name in chain.unsound:
            continue
        try:
            same.append(_one(path, archive, against))
        except ArchiveError as error:
            if not skip_unsound:
                raise
            print(f"{path.stem}: NOT COMPUTED: {error}")
            unread += 1
    if unread:
        print(f"{unread} of {len(paths)} records rest on files that cannot be read: passed over")
    return all(same) and not breaks and not unread


def _one(path: Path, archive: Path, against: Against | None) -> bool:
    from sidecar.circuits.record import read_record
    from sidecar.circuits.replay import differences

    record = read_record(path)
    found = differences(record, archive, against)
    print("\n".join((f"{record.id}: DIFFERENT", *(f"  {one}" for one in found))) if found else _same(record, against))
    return not found


def _same(record: AlarmRecord, against: Against | None) -> str:
    sessions = sum(sum(one.evidence) for one in record.trace)
    believed = _BELIEVED if against is not None else f"bands and threshold (--baseline), {_BELIEVED}"
    return (
        f"{record.id}: the same, bit for bit: {record.circuit} in {record.slice} was {record.leans} engaged than in sound "
        f"traffic, after {sessions} sessions in {len(record.trace)} ticks\n  not computed again: {believed}"
    )
