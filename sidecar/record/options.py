"""What ``sidecar record`` was given, checked all at once."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import ConfigError
from sidecar.types import TapPoint

_LAYER = re.compile(r"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Ask:
    """Prompts, and the server that is to be asked; so many at once, each so often at most."""

    prompts: Path
    server: str
    at_once: int
    tries: int


@dataclass(frozen=True, slots=True)
class Options:
    """ask: None records whatever is asked by others. wait_s: for an engine, and for its server. held_bytes: see Recording."""

    folder: Path
    points: tuple[TapPoint, ...]
    ask: Ask | None
    wait_s: float
    held_bytes: int


def parse_points(text: str) -> tuple[TapPoint, ...]:
    """Numbers of blocks, whose residual stream is meant, and names. Raises ValueError.

    >>> [point.name for point in parse_points("8,blocks.9.mlp_out")]
    ['blocks.8.resid_post', 'blocks.9.mlp_out']
    """
    names = [name.strip() for name in text.split(",")]
    return tuple(
        dict.fromkeys(TapPoint(int(name)) if _LAYER.fullmatch(name) else TapPoint.parse(name) for name in names)
    )


def record_options(args: argparse.Namespace) -> Options:
    """Raises ConfigError with every problem."""
    problems = list(_problems(args))
    try:
        points = parse_points(args.tap_points)
    except ValueError as error:
        points = ()
        problems.append(f"--tap-points: {error}")
    if problems:
        raise ConfigError(problems)
    ask = None if args.ask is None else Ask(args.ask, args.server, args.at_once, args.tries)
    return Options(args.into, points, ask, args.wait_s, args.held_mib << 20)


def _problems(args: argparse.Namespace) -> Iterator[str]:
    if (args.ask is None) != (args.server is None):
        yield "--ask and --server come together: what is asked, and who"
    if args.server is not None and not args.server.startswith(("http://", "https://")):
        yield f"--server {args.server}: want a URL such as http://127.0.0.1:8000"
    for name, least, most in (("at_once", 1, 256), ("tries", 1, 100), ("held_mib", 1, 1 << 20)):
        if not least <= getattr(args, name) <= most:
            yield f"--{name.replace('_', '-')}: from {least} to {most}"
    if not (math.isfinite(args.wait_s) and args.wait_s > 0):
        yield "--wait-s: want seconds over 0"
