"""What the sidecar's own processes cost, read by prometheus_client's collector at every scrape."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, ProcessCollector

from sidecar.snapshot import ProcessSnapshot


def watch(role: str, pid: Callable[[], int]) -> Callable[[], ProcessSnapshot]:
    """A function that reads the process; zeros once it is gone."""
    collector = ProcessCollector(pid=pid, registry=CollectorRegistry())  # not the global one: a page of ours is not its

    def read() -> ProcessSnapshot:
        found = {sample.name: sample.value for family in collector.collect() for sample in family.samples}
        return ProcessSnapshot(
            role,
            found.get("process_cpu_seconds_total", 0.0),
            found.get("process_resident_memory_bytes", 0.0),
            found.get("process_open_fds", 0.0),
        )

    return read
