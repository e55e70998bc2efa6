"""A full verdict by the ring and by gRPC, beside a bare gRPC echo of the same bytes and beside a naive service."""

from __future__ import annotations

from contextlib import ExitStack

from bench.artifacts import write_artifacts
from bench.peers import GrpcPeer, Peer, RingPeer
from bench.rounds import Contender, Round, alternate, cpus, p50s
from bench.row import Row, median_interval, ratio
from bench.serving import child, home, serving
from bench.steps import REFERENCE, Steps

DIRECTIONS = 64
_WHAT = "4 tap points x 64 rows x 4096 bf16, 64 directions each"


def measure(*, short: bool = False) -> list[Row]:
    rounds = _race(*((3, 15) if short else (24, 40)))
    return [*_bare_rows(rounds), *_naive_rows(rounds), *_plain_rows(rounds)]


def _race(rounds: int, count: int) -> dict[str, list[Round]]:
    """Every service in processes of its own; one is asked at a time, the others sleep."""
    with ExitStack() as stack:
        folder = stack.enter_context(home())
        write_artifacts(folder / "artifacts", REFERENCE.columns, REFERENCE.taps, DIRECTIONS)
        rings, calls = (stack.enter_context(serving(folder / "artifacts")) for _ in range(2))
        contenders: dict[str, tuple[Peer, tuple[int, ...], int]] = {
            "ring": (RingPeer(rings.address, REFERENCE.columns), (rings.control_pid, rings.worker_pid), count),
            "gRPC": (GrpcPeer(calls.address, REFERENCE.columns), (calls.control_pid, calls.worker_pid), count),
        }
        others = {"bare": ["bench.bare"], "naive": ["bench.naive", f"{folder}/artifacts"]}
        others["thrifty"] = [*others["naive"], "thrifty"]
        for name, (module, *arguments) in others.items():
            address = f"unix:{folder}/{name}.sock"
            process = stack.enter_context(child("-m", module, address, *arguments))
            few = count if name == "bare" else max(3, count // 5)  # a naive step takes as long as many
            contenders[name] = (GrpcPeer(address), (process.pid,), few)
        made = {}
        for name, (peer, pids, steps) in contenders.items():
            stack.enter_context(peer)
            made[name] = Contender(peer, Steps(), pids, steps, checked=name != "bare").round
        return alternate(made, rounds)


def _bare_rows(rounds: dict[str, list[Round]]) -> list[Row]:
    bare, ring, grpc = (p50s(rounds[name]) for name in ("bare", "ring", "gRPC"))
    return [
        ratio("bare gRPC echo / full verdict by the ring, p50", bare, ring, f"2 MiB: {_WHAT}").at_least(1.5),
        ratio("full verdict by gRPC / bare gRPC echo, p50", grpc, bare, _WHAT),
        ratio("full verdict by gRPC / by the ring, p50", grpc, ring, _WHAT),
    ]


def _naive_rows(rounds: dict[str, list[Round]]) -> list[Row]:
    naive, thrifty, ring, grpc = (rounds[name] for name in ("naive", "thrifty", "ring", "gRPC"))
    same = "same verdicts, same histograms: protobuf, .labels().observe() per reading, a span per layer"
    less = "a thrifty naive service: .labels().observe() once per signal and step"
    return [
        ratio("naive service / ours by the ring, p50", p50s(naive), p50s(ring), same).at_least(6.5, 8),
        ratio("naive service / ours by the ring, CPU", cpus(naive), cpus(ring), same).at_least(5.5, 7),
        ratio("naive service / ours by gRPC, p50", p50s(naive), p50s(grpc), same),
        ratio("naive service / ours by gRPC, CPU", cpus(naive), cpus(grpc), same),
        ratio("thrifty naive service / ours by the ring, p50", p50s(thrifty), p50s(ring), less),
        ratio("thrifty naive service / ours by the ring, CPU", cpus(thrifty), cpus(ring), less),
    ]


def _plain_rows(rounds: dict[str, list[Round]]) -> list[Row]:
    """Absolute figures: of this machine only."""
    rows = []
    for name in ("ring", "gRPC"):
        p50, interval = median_interval([1e3 * value for value in p50s(rounds[name])])
        rows.append(Row(f"full verdict by {name}, p50, ms", p50, interval=interval, note="absolute, of this machine"))
        each, interval = median_interval([REFERENCE.token_layers / value for value in cpus(rounds[name])])
        note = "absolute, of this machine; both processes"
        rows.append(Row(f"token-layers per CPU-second by {name}", each, interval=interval, note=note))
    return rows
