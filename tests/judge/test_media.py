"""How much of a request is pictures and the like is counted by rows, and told when it ends."""

from __future__ import annotations

from pathlib import Path

from probes.registry import load_folder
from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import SystemClock
from sidecar.snapshot import EndedRequest
from sidecar.types import EngineId, Medium, RequestId
from tests.builders import wire_batch, wire_segments, write_probe
from tests.hot import Hot

IMAGE, AUDIO = ingest_pb2.MEDIUM_IMAGE, ingest_pb2.MEDIUM_AUDIO


def step(positions: tuple[int, ...], *media: tuple[int, int, int]) -> ingest_pb2.StepBatch:
    """A request without media beside one with spans (medium, position, tokens)."""
    requests = [("plain", (0, 1)), ("mixed", positions)]
    spans = [ingest_pb2.MediaSpan(segment=1, medium=m, position=p, tokens=t) for m, p, t in media]
    return wire_batch(None, requests, segments=wire_segments(requests, media=spans))


def test_rows_within_a_piece_are_counted_however_the_request_is_cut_and_sampled(tmp_path: Path) -> None:
    ended: list[EndedRequest] = []
    write_probe(tmp_path, "probe")
    hot = Hot(SystemClock(), ended.append, load_folder(tmp_path, limit=9))
    hot.register()
    hot.submit(step((0, 1, 2, 3), (IMAGE, 2, 4)))
    hot.submit(step((4, 6, 8, 10), (IMAGE, 2, 4), (AUDIO, 8, 3)))
    hot.pipeline.judge.finish(EngineId("engine-0"), (RequestId("plain"), RequestId("mixed")))
    hot.snapshot()
    told = {one.request_id: dict(one.media) for one in ended}
    assert told == {"plain": {}, "mixed": {Medium.IMAGE: 3, Medium.AUDIO: 2}}
