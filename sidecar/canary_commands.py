"""``sidecar canary record`` and ``sidecar deploy-window``: what people say of the model that is served."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

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
        description="Every entry says who made it, when and why, and is chained to the one before; none is ever changed.",
    )
    window.add_argument("what", choices=["open", "close", "list"])
    window.add_argument("archive", type=Path, metavar="ARCHIVE", help="the folder that circuits.archive names")
    window.add_argument(
        "--for", dest="length", metavar="TIME", help="with open: how long, for example 30m; at most 24h"
    )
    window.add_argument("--why", metavar="TEXT", help="with open and close: for whoever reads this later")
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
    from sidecar.live.windows import WindowError, declare, is_open, windows

    now = int(time.time())
    try:
        if args.what == "list":
            entries = windows(args.archive)
            for one in entries:
                print(f"{_when(one.at_s)}  {one.who}: from {_when(one.from_s)} until {_when(one.until_s)}  {one.why}")
            print(f"{len(entries)} entries, chained; a window is {'open' if is_open(entries, now) else 'not open'}")
            return 0
        seconds = _seconds(args.length) if args.what == "open" else 0
        if seconds is None or not args.why or (args.what == "close" and args.length):
            print("sidecar: want --why TEXT, and with open --for TIME such as 30m, at most 24h", file=sys.stderr)
            return EX_USAGE
        made = declare(args.archive, now, now + seconds, args.why, now)
    except WindowError as error:
        return _refuse(error)
    print(f"open until {_when(made.until_s)}" if seconds else "closed")
    return 0


def _seconds(text: str | None) -> int | None:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smh])", text or "")
    if match is None:
        return None
    found = int(match[1]) * _UNITS[match[2]]
    return found if found <= _LONGEST_S else None


def _when(at_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_s))


def _refuse(error: Exception) -> int:
    print(f"sidecar: {error}", file=sys.stderr)
    return EX_DATA
