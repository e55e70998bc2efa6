"""``sidecar canary record`` and ``sidecar deploy-window``: what people say of the model that is served, and what became of it."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.unsound import add_skip, passed_over

if TYPE_CHECKING:
    from sidecar.circuits.archive import ReadRows
    from sidecar.circuits.since import Span
    from sidecar.live.deployed import Verdict

EX_CHANGED = 1
EX_USAGE, EX_DATA = 78, 65
_UNITS = {"s": 1, "m": 60, "h": 3600}
_LONGEST_S = 86_400


def add(commands: Any) -> None:
    canary = commands.add_parser("canary", help="about the prompts that are always the same").add_subparsers(
        required=True, metavar="WHAT"
    )
    record = canary.add_parser(
        "record",
        help="take the newest rounds of a sound model as what all others are compared with",
        description="A sidecar with canary.url keeps its rounds in the archive. Their mean is the reference, and how far they are "
        "apart is the floor of noise. Give the file to canary.reference.",
    )
    record.add_argument("archive", type=Path, metavar="ARCHIVE", help="the folder that circuits.archive names")
    record.add_argument("--out", type=Path, required=True, metavar="FILE")
    record.add_argument("--rounds", type=int, default=5, metavar="N", help="the newest so many, 2 at least (default 5)")
    record.set_defaults(run=_record)
    window = commands.add_parser(
        "deploy-window",
        help="say that the model is about to change: canaries that move then page nobody",
        description="Every entry says who made it, when and why, and is chained to the one before; none is ever changed. "
        "report tells which circuits changed since the newest window was opened (e-BH), and what is to be done with each.",
        epilog=f"exit status of report: 0 every circuit is unchanged, {EX_CHANGED} not; {EX_DATA} a file is unsound",
    )
    window.add_argument("what", choices=["open", "close", "list", "report"])
    window.add_argument("archive", type=Path, metavar="ARCHIVE", help="the folder that circuits.archive names")
    window.add_argument(
        "--for",
        dest="length",
        metavar="TIME",
        help="with open: how long, for example 30m; at most 24h. With report: how much of the traffic since is looked at, "
        "which is to be decided before any of it is seen; default: all",
    )
    window.add_argument("--why", metavar="TEXT", help="with open and close: for whoever reads this later")
    window.add_argument("--baseline", type=Path, metavar="FOLDER", help="with report: that of before the deploy")
    window.add_argument("--reference", type=Path, metavar="FILE", help="with report: what canaries are compared with")
    window.add_argument(
        "--alpha", type=float, default=0.1, metavar="SHARE", help="with report: of false alarms among those told (0.1)"
    )
    add_skip(window)
    window.set_defaults(run=_window)


def _record(args: argparse.Namespace) -> int:
    from sidecar.live.canary_file import CanaryFileError, record, rounds_in
    from sidecar.live.canary_runner import ROUNDS

    paths = rounds_in(args.archive / ROUNDS)[-max(2, args.rounds) :]
    try:
        if len(paths) < max(2, args.rounds):
            raise CanaryFileError(f"{args.archive}: {len(paths)} rounds are kept there, fewer than asked for")
        about, made = record(paths, args.out)
    except CanaryFileError as error:
        return _refuse(error)
    print(
        f"{args.out}: {len(paths)} rounds of {len(made.tokens)} tokens on model {about.model_hash[:12] or '(not known)'}"
    )
    for name, floor in made.floors.items():
        print(f"  {name}: floor {floor:.3g}")
    return 0


def _window(args: argparse.Namespace) -> int:
    from sidecar.live.windows import WindowError, declare, declared, is_open

    if args.what == "report":
        return _report(args)
    now = int(time.time())
    try:
        if args.what == "list":
            entries = declared(args.archive)
            for one in entries:
                print(f"{_when(one.at_s)}  {one.who}: from {_when(one.from_s)} until {_when(one.until_s)}  {one.why}")
            print(f"{len(entries)} entries, chained; a window is {'open' if is_open(entries, now) else 'not open'}")
            return 0
        if wrong := ", and ".join(_wrong(args)):
            print(f"sidecar: {args.what} {wrong}", file=sys.stderr)
            return EX_USAGE
        seconds = _seconds(args.length) or 0
        made = declare(args.archive, now, now + seconds, args.why, now)
    except WindowError as error:
        return _refuse(error)
    print(f"open until {_when(made.until_s)}" if seconds else "closed")
    return 0


def _wrong(args: argparse.Namespace) -> Iterator[str]:
    """What open or close lacks, or has too much."""
    if not args.why:
        yield "wants --why TEXT"
    if args.what == "open" and _seconds(args.length) is None:
        yield "wants --for TIME such as 30m, at most 24h"
    if args.what == "close" and args.length:
        yield "takes no --for: it ends the window now"


def _report(args: argparse.Namespace) -> int:
    from probes.circuits.baseline import load_baseline
    from sidecar.circuits.archive import ArchiveError
    from sidecar.circuits.merge import SketchError
    from sidecar.errors import ArtifactError
    from sidecar.live.canary_file import CanaryFileError
    from sidecar.live.deployed import Compared, Standing, canary_rounds, newest_window, rows_since, span_of, verdicts
    from sidecar.live.windows import WindowError

    seconds = None if args.length is None else _seconds(args.length)
    if args.baseline is None or (args.length is not None and seconds is None) or not 0 < args.alpha < 1:
        print(
            "sidecar: report wants --baseline FOLDER, a TIME such as 2h, and --alpha between 0 and 1", file=sys.stderr
        )
        return EX_USAGE
    try:
        baseline = load_baseline(args.baseline, root=args.baseline)
        since_s = newest_window(args.archive).from_s
        read = rows_since(args.archive, since_s, skip_unsound=args.skip_unsound)
        span = span_of(read.rows, since_s, baseline.manifest.tick_s, seconds)
        canaries = Compared() if args.reference is None else canary_rounds(args.archive, args.reference, since_s)
        found = verdicts(read.rows, baseline.watched, span, canaries, args.alpha)
    except ArtifactError as error:
        return _refuse(f"{args.baseline}: {error.text}")
    except (ArchiveError, CanaryFileError, SketchError, WindowError) as error:
        return _refuse(error)
    whole = sum(one.whole for one in canaries.rounds)
    print(f"since {_when(since_s)}: {span.ticks} ticks of {span.tick_s} s, {whole} whole rounds")
    print("\n".join(_on_disk(read, span)))
    if seconds is None:
        print("how long was not decided beforehand: whoever looks until something shows will find it (--for)")
    for one in found:
        print("\n".join(_verdict(one, baseline.manifest.model_hash)))
    return 0 if all(one.standing is Standing.UNCHANGED for one in found) else EX_CHANGED


def _on_disk(read: ReadRows, span: Span) -> Iterator[str]:
    """What of the span was looked at: a running sidecar has its newest ticks in memory."""
    from sidecar.live.deployed import ticks_on_disk

    ticks = ticks_on_disk(read.rows, span)
    newest = f", the newest of {_when(ticks[-1] * span.tick_s)}" if ticks else ""
    yield (
        f"{len(ticks)} of these ticks are on disk{newest}; what is in no file yet (a sidecar keeps up to circuits.file_ticks "
        "ticks until it ends) was not looked at"
    )
    yield from passed_over(read.unsound)


def _verdict(one: Verdict, before: str) -> Iterator[str]:
    """Two lines for a terminal."""
    told, model = one.since, one.since.model_hash
    on = f" on {model[:12]}" if model not in ("", before) else ""
    seen = f"{told.sessions} sessions{on}"
    if not told.sessions:
        seen = "no session"
    elif one.rejected:
        seen += f", {told.leans} engaged than before: e-value {_e_value(told.log_e)}, told by e-BH"
    else:
        seen += f", e-value {_e_value(told.log_e)}, not told by e-BH"
    if not one.rejected and told.sessions < told.needed:
        many = f"about {told.needed:.0f}" if math.isfinite(told.needed) else "no number of them"
        seen += f"; {many} would show that it stopped"
    yield f"{told.circuit}: {one.standing}: {one.advice}"
    yield f"  traffic: {seen}; canaries: {one.canaries.value.replace('_', ' ')}"


def _e_value(log_e: float) -> str:
    """As a power of ten: they grow without end."""
    return f"10^{log_e / math.log(10):.1f}" if log_e > -math.inf else "0"


def _seconds(text: str | None) -> int | None:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smh])", text or "")
    if match is None:
        return None
    found = int(match[1]) * _UNITS[match[2]]
    return found if found <= _LONGEST_S else None


def _when(at_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_s))


def _refuse(error: Exception | str) -> int:
    print(f"sidecar: {error}", file=sys.stderr)
    return EX_DATA
