"""What the tap costs a real vLLM: two servers, one of them tapped, take turns under the same load.

Throughput and the slowest request are ratios, round by round; and so is the tap's CPU time on the engine's own thread, to that
of the forward pass that it rides on, since noise hides one per cent of throughput. What is noise is measured first, by two
servers that are not tapped; at last the sidecar is slowed, frozen and killed under load. ``python -m bench.vllm [--short]``;
results with every round in bench/vllm.json, half an hour. ``--only killed,frozen`` measures some phases again and leaves the
others in that file as they were.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.disturbed import frozen, killed, slowed
from bench.machine import describe
from bench.row import Row
from bench.serving import Served, serving
from bench.vllm_phase import Load, Phase, measure
from probes.recipe import ZOO
from probes.smollm2 import cache_folder, prepared_model
from tests.engines.environment import VLLM
from tests.engines.vllm_server import VllmServer

RESULTS = Path(__file__).parent / "vllm.json"
PHASES = {
    "noise": "what is noise",
    "absent": "attached, no sidecar",
    "default": "default sampling, 10 % of requests",
    "every": "every request",
    "slowed": "sidecar slowed",
    "frozen": "sidecar frozen",
    "killed": "sidecar killed",
}
_EVERY = "sampling.request_fraction=1.0"
_CONNECTED_S = 30.0


def connections(server: VllmServer) -> int:
    """How often the tap has connected so far."""
    return sum(" connected why=" in line for line in server.log)


def connected(server: VllmServer, times: int) -> None:
    """Wait until the tap has connected so many times."""
    ends_s = time.monotonic() + _CONNECTED_S
    while connections(server) < times:
        if time.monotonic() > ends_s:
            raise RuntimeError("the tap did not connect")
        time.sleep(0.1)


def run(rounds: int, chosen: Collection[str]) -> Iterator[Phase]:
    """The chosen of PHASES, in their order."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stv-", dir="/tmp")))
        environment = stack.enter_context(VLLM.environment(cache_folder()))
        model, address = prepared_model(progress=False), f"unix:{home}/s"
        folders = [home / name for name in ("bare", "again", "tapped")]
        for folder in folders:
            folder.mkdir()
        home.chmod(0o700)
        env = {"STETHOSCOPE_TAP": "8,14", "STETHOSCOPE_ADDRESS": address, "STETHOSCOPE_TAP_COST": "1"}
        bare = stack.enter_context(VllmServer(environment, model, folders[0], eager=False))
        if "noise" in chosen:
            with VllmServer(environment, model, folders[1], eager=False) as again:
                yield measure(PHASES["noise"], bare, again, rounds, pair="untapped / untapped")
        if set(chosen) - {"noise"}:
            tapped = stack.enter_context(VllmServer(environment, model, folders[2], eager=False, env=env))
            yield from _phases(bare, tapped, address, rounds, chosen)


def _phases(
    bare: VllmServer, tapped: VllmServer, address: str, rounds: int, chosen: Collection[str]
) -> Iterator[Phase]:
    @contextmanager
    def beside(*settings: str) -> Iterator[Served]:
        times = connections(tapped)
        with serving(ZOO, *settings, address=address) as served:
            connected(tapped, times + 1)
            yield served

    @contextmanager
    def killed_once() -> Iterator[None]:
        with beside(_EVERY) as served, killed(served):
            yield

    def whole(key: str, around: Callable[[Served], AbstractContextManager[Any]], *settings: str) -> Phase:
        with beside(*settings) as served, around(served):
            return measure(PHASES[key], bare, tapped, rounds)

    made: dict[str, Callable[[], Phase]] = {
        "absent": lambda: measure(PHASES["absent"], bare, tapped, rounds),
        "default": lambda: whole("default", nullcontext),
        "every": lambda: whole("every", nullcontext, _EVERY),
        "slowed": lambda: whole("slowed", slowed, _EVERY),
        "frozen": lambda: whole("frozen", frozen, _EVERY),
        "killed": lambda: measure(PHASES["killed"], bare, tapped, rounds, around=killed_once),
    }
    yield from (make() for key, make in made.items() if key in chosen)


def main() -> int:
    """0 whether goals are met or not: they are printed as they are."""
    parser = argparse.ArgumentParser(prog="bench.vllm")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of rounds a phase (default 12)")
    parser.add_argument("--short", action="store_true", help="two pairs a phase, which are only printed: for a look")
    parser.add_argument("--only", type=_keys, default=tuple(PHASES), help=f"some of {','.join(PHASES)}")
    parser.add_argument("--out", type=Path, help="results file (default: bench/vllm.json, unless --short)")
    options = parser.parse_args()
    machine, phases = describe(), []
    for phase in run(2 if options.short else options.rounds, options.only):
        phases.append(phase)
        for row in phase.rows():
            print(told(row), flush=True)
    out = options.out or (None if options.short else RESULTS)
    if out is not None:
        kept = earlier(out) if set(options.only) < set(PHASES) else {}
        made = results(machine, {**kept, **{phase.name: (machine, phase) for phase in phases}})
        out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(text.split(","))
    if unknown := set(keys) - set(PHASES):
        raise argparse.ArgumentTypeError(f"no such phase: {', '.join(sorted(unknown))}; there are {', '.join(PHASES)}")
    return keys


def earlier(path: Path) -> dict[str, tuple[dict[str, Any], Phase]]:
    """Each phase of a results file by its name, and the machine that it was measured on."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: (found.get("machines", {}).get(name, found["machine"]), Phase.read(one))
        for name, one in found["rounds"].items()
    }


def results(machine: dict[str, Any], phases: dict[str, tuple[dict[str, Any], Phase]]) -> dict[str, Any]:
    """What is written. machine: of the last run; ``machines`` are those of phases that another run has left."""
    ordered = [phases[name] for name in PHASES.values() if name in phases]
    return {
        "machine": machine,
        "machines": {phase.name: where for where, phase in ordered if where != machine},
        "load": asdict(Load()),
        "rows": [asdict(row) for _, phase in ordered for row in phase.rows()],
        "rounds": {phase.name: asdict(phase) for _, phase in ordered},
    }


def told(row: Row) -> str:
    """One line."""
    interval = "" if row.interval is None else f" [{row.interval[0]:.3g}, {row.interval[1]:.3g}]"
    goal = "" if row.goal is None else f" (goal {row.goal}: {'met' if row.met else 'missed'})"
    return f"{row.name}: {row.value:.3g}{interval}{goal}"


if __name__ == "__main__":
    raise SystemExit(main())
