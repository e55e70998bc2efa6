"""What scraping costs the verdicts. ``python -m bench.scrape PORT HZ`` is the scraper, a process of its own."""

from __future__ import annotations

import http.client
import sys
import time

from bench.peers import GrpcPeer, Peer, RingPeer
from bench.rounds import Contender, Round, p99s
from bench.row import Row, ratio
from bench.serving import Served, child, serving_plan
from bench.steps import REFERENCE, Steps

_HZ = 4.0
_FEW, _MANY = 7, 64  # directions at each of 4 tap points: 1,000 series, and what the reference plan has


def read_metrics(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def read_series(port: int) -> dict[str, float]:
    """Every series and its value."""
    lines = (line for line in read_metrics(port).splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.partition(" # ")[0].rpartition(" ") for line in lines)}


def scrape_for_ever(port: str, hertz: str) -> None:
    """At even distances, until the process is ended."""
    due_s = time.monotonic()
    while True:
        read_metrics(int(port))
        due_s += 1 / float(hertz)
        time.sleep(max(0.0, due_s - time.monotonic()))


def measure(*, short: bool = False) -> list[Row]:
    """A plan of the goal's 1,000 series by both ways, and the reference plan with its many more by the ring."""
    rounds, count = (4, 200) if short else (8, 300)
    by_ring, *others = _plan(
        _FEW, {"the ring": RingPeer} if short else {"the ring": RingPeer, "gRPC": GrpcPeer}, rounds, count
    )
    many = [] if short else _plan(_MANY, {"the ring": RingPeer}, rounds, count)
    return [by_ring.at_most(1.15), *others, *many]


def _plan(directions: int, ways: dict[str, type[RingPeer | GrpcPeer]], rounds: int, count: int) -> list[Row]:
    rows = []
    with serving_plan(REFERENCE.columns, REFERENCE.taps, directions) as served:
        for name, kind in ways.items():
            with kind(served.address, REFERENCE.columns, engine=kind.__name__) as peer:
                quiet, scraped = _rounds(peer, kind.__name__, served, rounds, count)
            series = round(len(read_series(served.metrics_port)), -2)
            note = f"{directions} directions a tap point, {count} steps a round"
            what = f"p99 with {_HZ:g} Hz scraping of {series} series / without, by {name}"
            rows.append(ratio(what, p99s(scraped), p99s(quiet), note))
    return rows


def _rounds(peer: Peer, engine: str, served: Served, rounds: int, count: int) -> tuple[list[Round], list[Round]]:
    contender = Contender(peer, Steps(engine=engine), (served.worker_pid,), count)
    contender.round()
    quiet, scraped = [], []
    for number in range(rounds):
        for with_scraper in (True, False) if number % 2 else (False, True):
            if not with_scraper:
                quiet.append(contender.round())
                continue
            with child("-m", "bench.scrape", str(served.metrics_port), str(_HZ)):
                scraped.append(contender.round())
    return quiet, scraped


if __name__ == "__main__":
    scrape_for_ever(*sys.argv[1:])
