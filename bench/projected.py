"""What is left for the sidecar where the tap multiplies."""

from __future__ import annotations

from bench.peers import RingPeer
from bench.rounds import Contender, alternate, cpus
from bench.row import Row, median_interval, ratio
from bench.serving import Served, serving_plan
from bench.steps import REFERENCE, Shape, Steps

_DIRECTIONS = 64
_COLUMNS = _DIRECTIONS + 1  # readings, and the squared norm


def measure(*, short: bool = False) -> list[Row]:
    rounds, count = (3, 30) if short else (20, 80)
    shapes = {"raw": REFERENCE} | {
        f"projected {rows}": Shape(REFERENCE.taps, rows, _COLUMNS, projected=True) for rows in (64, 512)
    }
    with serving_plan(REFERENCE.columns, REFERENCE.taps, _DIRECTIONS) as served, _peer(served) as peer:
        contenders = {
            name: Contender(peer, Steps(shape), (served.worker_pid,), count) for name, shape in shapes.items()
        }
        rounds_of = alternate({name: one.round for name, one in contenders.items()}, rounds)
    each = {name: [shapes[name].token_layers / cpu for cpu in cpus(made)] for name, made in rounds_of.items()}
    what = "projected / raw, token-layers per CPU-second"
    rows = [
        ratio(f"{what}, 64 rows a step", each["projected 64"], each["raw"], "worker, by the ring").at_least(9),
        ratio(
            f"{what}, 512 rows a projected step", each["projected 512"], each["raw"], "a projecting tap sends all rows"
        ),
    ]
    value, interval = median_interval(each["projected 512"])
    name = "token-layers per CPU-second, projected, 512 rows a step"
    return [*rows, Row(name, value, interval=interval, note="absolute, of this machine")]


def _peer(served: Served) -> RingPeer:
    return RingPeer(served.address, REFERENCE.columns)
