"""The ``probes`` command: from labelled text to a probe that deserves to page someone. Heavy imports wait for their command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from probes.commands import (
    baseline,
    calibrate,
    circuit,
    collect,
    control,
    discover,
    evaluate,
    gate,
    inspect,
    pack,
    report,
    sign,
    train,
    transfer,
    validate,
    zoo,
)
from probes.errors import LabError

COMMANDS = (
    collect,
    train,
    calibrate,
    evaluate,
    validate,
    report,
    pack,
    sign,
    gate,
    transfer,
    control,
    inspect,
    zoo,
    discover,
    circuit,
    baseline,
)
EX_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what it says, 1 if something that it was given stood in the way, 2 for a wrong call."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except LabError as error:
        print(f"probes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("probes: interrupted; what was finished is kept", file=sys.stderr)
        return EX_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="probes", description="The lab: train, test and inspect probes.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
