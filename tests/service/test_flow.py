"""The path of a sound batch: read, judged, replied, counted, and nothing lost."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.ingest import decode
from sidecar.service import Sidecar
from tests.builders import MODEL, TAP, WIDTH, manifest_fields, wire_batch, wire_tap, write_control, write_probe
from tests.service.client import Client
from tests.waiting import until


def rows_with(column: int, values: list[float]) -> np.ndarray:
    rows = np.zeros((len(values), WIDTH), dtype=np.float32)
    rows[:, column] = values
    return rows


def traffic(tokens: int, **changes: object) -> ingest_pb2.TrafficReport:
    return ingest_pb2.TrafficReport(engine_id="engine-0", tokens_computed=tokens, requests=1, **changes)


def test_a_batch_is_scored_and_every_count_says_so(client):
    client.good(rows=rows_with(0, [1.0, 2.0, 3.0]))
    status = client.status()
    assert (status.step_batches.received, status.step_batches.scored, status.rows.scored) == (1, 1, 3)
    first = next(one for one in status.signals if one.name == "first")
    assert first.readings == 3
    assert first.mean == pytest.approx(np.mean(1 / (1 + np.exp(-np.array([1.0, 2.0, 3.0])))), abs=1e-6)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_each_element_type_reads_the_same_value(client, dtype):
    rows = rows_with(0, [0.5, -1.5, 2.0])
    raw = {
        "f32": rows.astype("<f4").tobytes(),
        "f16": rows.astype("<f2").tobytes(),
        "bf16": (rows.view(np.uint32) >> 16).astype("<u2").tobytes(),
    }[dtype]
    kind = ingest_pb2.ElementType.Value(f"ELEMENT_TYPE_{dtype.upper()}")
    tensor = ingest_pb2.TapTensor(tap_point=wire_tap(), dtype=kind, rows=3, columns=WIDTH, raw=raw)
    client.good(tensors=[tensor])
    first = next(one for one in client.status().signals if one.name == "first")
    assert first.mean == pytest.approx(np.mean(1 / (1 + np.exp(-np.array([0.5, -1.5, 2.0])))), abs=1e-6)


def test_a_projected_batch_reads_what_the_raw_one_reads(client, artifacts):
    """The tap multiplies; the offsets are the sidecar's, for the probe as for the control."""
    write_probe(artifacts, "first", offset=5.0)
    write_control(artifacts, offset=-3.0)
    until(lambda: client.status().plan_generation > 1)
    rows = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    client.good(rows=rows)
    before = {one.name: (one.readings, one.mean) for one in client.status().signals}
    plan = control_pb2.FetchPlanResponse.FromString(client.call("ControlService/FetchPlan", b""))
    (matrix,) = plan.tensors
    directions = np.frombuffer(matrix.directions, "<f4").reshape(matrix.width, len(matrix.columns))
    projected = np.concatenate([rows @ directions, (rows**2).sum(axis=1, keepdims=True)], axis=1)
    tensor = ingest_pb2.TapTensor(
        tap_point=matrix.tap_point,
        dtype=ingest_pb2.ELEMENT_TYPE_F32,
        rows=3,
        columns=projected.shape[1],
        projected=projected.astype("<f4").tobytes(),
    )
    client.good(tensors=[tensor], plan_generation=plan.generation)
    for one in client.status().signals:
        readings, mean = before[one.name]
        assert one.readings == 2 * readings
        assert one.mean == pytest.approx(mean, abs=1e-7)


def test_two_requests_of_one_step_never_get_each_others_rows(client):
    """Ids are prefixes of one another; one of them is far over the threshold, the other far below."""
    rows = rows_with(0, [9.0, 9.0, -9.0, -9.0, -9.0])
    batch = wire_batch(rows, requests=[("req-1", (0, 1)), ("req-10", (0, 1, 2))])
    result = client.observe(batch).result
    assert [verdict.request_id for verdict in result.verdicts] == ["req-1"]
    again = client.observe(wire_batch(rows_with(0, [-9.0, 9.0]), requests=[("req-10", (3,)), ("req-1", (2,))])).result
    assert [verdict.request_id for verdict in again.verdicts] == ["req-1"]
    detections = {one.name: one.detections for one in client.status().signals}
    assert detections == {"first": 1, "second": 0}


def test_the_same_request_id_of_two_engines_is_two_requests(client):
    client.register(engine="engine-1")
    hot = rows_with(0, [9.0])
    for engine in ("engine-0", "engine-1"):
        client.good(rows=hot, requests=[("same", (0,))], engine_id=engine)
    assert {one.name: one.detections for one in client.status().signals}["first"] == 2


def test_a_stream_answers_in_order_and_begins_with_control(client):
    stream = client.stream()
    batches = [wire_batch() for _ in range(20)]
    for batch in batches:
        stream.send_batch(batch)
    first = stream.next()
    assert [tap.layer for tap in first.control.tap_points] == [TAP.layer]
    assert first.control.sampling.request_fraction == pytest.approx(0.1)
    assert [stream.next_result().batch_id for _ in batches] == [batch.batch_id for batch in batches]
    stream.send(ingest_pb2.StreamRequest(goodbye=ingest_pb2.Goodbye(engine_id="engine-0")))
    stream.close()


def test_a_refused_batch_does_not_end_its_stream(client):
    stream = client.stream()
    stream.send(b"\xff\xff")
    refused = stream.next_result()
    assert (refused.outcome, refused.reason, refused.field) == (ingest_pb2.OUTCOME_REJECTED, "malformed", "$")
    stream.send_batch(wire_batch())
    assert stream.next_result().outcome == ingest_pb2.OUTCOME_SCORED
    stream.close()


def test_a_reload_reaches_the_tap_and_each_batch_has_one_generation(client, artifacts):
    stream = client.stream()
    stream.send_batch(wire_batch())
    generation = stream.next_result().plan_generation
    write_probe(artifacts, "third", column=3, tap=type(TAP)(2))
    write_control(artifacts, "control2", tap=type(TAP)(2))
    until(lambda: client.status().plan_generation > generation and len(client.status().artifacts) == 5)
    stream.send_batch(wire_batch())
    newest = client.status().plan_generation
    seen = []
    while not (any(one.HasField("result") for one in seen) and any(len(one.control.tap_points) == 2 for one in seen)):
        seen.append(stream.next())
    results = [reply.result for reply in seen if reply.HasField("result")]
    assert [result.plan_generation for result in results] == [newest]
    stream.cancel()


def test_a_folder_that_was_only_touched_makes_no_new_generation(client, artifacts):
    """As one looks that was read while it was being copied: whole already, and with its times still to come."""
    client.good()
    before, done = client.status().plan_generation, 'stethoscope_artifact_reloads_total{outcome="ok"}'
    for weights in artifacts.glob("*/weights.safetensors"):
        os.utime(weights, ns=(1, 1))
    until(lambda: float(client.series()[done]) >= 1)
    assert client.status().plan_generation == before


def test_a_request_that_ends_has_its_final_score_counted_once(client):
    client.good(requests=[("ends", (0, 1, 2))])
    client.good(requests=[("other", (0, 1, 2))], finished_request_ids=["ends"])
    series = client.series()
    assert float(series['stethoscope_probe_request_score_count{probe="first"}']) == 1
    assert float(series["stethoscope_requests_tracked"]) == 1


def test_a_batch_whose_hook_did_not_run_is_counted_and_the_gap_is_blind(client):
    stream = client.stream()
    for step in range(1, 8):
        stream.send_batch(wire_batch(tensors=[]))
        stream.send(ingest_pb2.StreamRequest(traffic=traffic(3 * step)))
        assert stream.next_result().reason == "no_rows"
    until(lambda: client.status().coverage[0].blind, 5.0)
    (tap,) = client.status().coverage
    assert (tap.expected, tap.seen, tap.reason) == (21, 0, "not_seen")
    assert float(client.series()[f'stethoscope_blind{{tap_point="{TAP.name}"}}']) == 1
    stream.cancel()


def test_traffic_whose_tap_was_removed_is_blind_within_five_seconds(client):
    """The meter goes on reporting; not one batch comes."""
    stream = client.stream()
    stream.send_batch(wire_batch())
    stream.send(ingest_pb2.StreamRequest(traffic=traffic(3)))
    stream.next_result()
    assert not client.status().coverage[0].blind
    stream.send(ingest_pb2.StreamRequest(traffic=traffic(500)))
    until(lambda: client.status().coverage[0].blind, 5.0)
    assert client.status().coverage[0].reason == "not_seen"
    stream.cancel()


def test_a_stream_that_breaks_without_goodbye_is_a_lost_engine(client):
    stream = client.stream()
    stream.send_batch(wire_batch())
    stream.send(ingest_pb2.StreamRequest(traffic=traffic(3)))
    stream.next_result()
    stream.cancel()
    until(lambda: client.status().coverage[0].reason == "engine_lost", 5.0)


def test_another_model_is_refused_while_an_engine_is_registered(client):
    with pytest.raises(grpc.RpcError) as refused:
        client.register(replace(MODEL, weights_digest="f" * 64), engine="engine-1")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    client.good()


def test_another_model_under_the_same_id_is_refused_while_its_rows_may_come(client):
    with pytest.raises(grpc.RpcError) as refused:
        client.register(replace(MODEL, weights_digest="f" * 64))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert client.good().plan_generation == client.status().plan_generation


def test_a_second_engine_under_an_id_that_streams_is_refused_and_the_first_goes_on(client):
    stream = client.stream()
    stream.send_batch(wire_batch())
    assert stream.next_result().outcome == ingest_pb2.OUTCOME_SCORED
    with pytest.raises(grpc.RpcError) as refused:
        client.register()
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    stream.send_batch(wire_batch())
    assert stream.next_result().outcome == ingest_pb2.OUTCOME_SCORED
    stream.close()
    client.register()


def test_another_model_takes_over_when_the_engine_is_gone_and_starts_its_statistics_anew(client):
    client.good()
    stream = client.stream()
    stream.send(ingest_pb2.StreamRequest(traffic=traffic(3)))
    stream.send(ingest_pb2.StreamRequest(goodbye=ingest_pb2.Goodbye(engine_id="engine-0")))
    stream.close()
    client.register(replace(MODEL, weights_digest="f" * 64))
    assert {one.evidence for one in client.status().artifacts} == {"stale"}
    assert [one.readings for one in client.status().signals] == [0, 0]


def test_a_batch_that_is_being_decoded_is_in_flight(client, monkeypatch):
    arrived, go_on = threading.Event(), threading.Event()
    real = decode.decode_segments

    def held(*args):
        arrived.set()
        assert go_on.wait(10)
        return real(*args)

    monkeypatch.setattr(decode, "decode_segments", held)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.good)
        assert arrived.wait(10)
        now = client.status().step_batches
        go_on.set()
        answer.result(10)
    assert (now.received, now.in_flight, now.scored) == (1, 1, 0)
    done = client.status().step_batches
    assert (done.received, done.in_flight, done.scored) == (1, 0, 1)


def test_an_id_that_is_used_again_is_another_request(client):
    """Its end is told in the same batch as its new beginning."""
    client.good(rows=rows_with(0, [9.0, 9.0, 9.0]), requests=[("again", (0, 1, 2))])
    client.good(rows=rows_with(0, [9.0, 9.0, 9.0]), requests=[("again", (0, 1, 2))], finished_request_ids=["again"])
    assert {one.name: one.detections for one in client.status().signals}["first"] == 2


def test_a_thousand_ends_are_spread_over_what_follows(serve):
    flags = {"limits.rows": 4096, "limits.segments": 1024, "limits.finished": 4096}
    with Client(serve(**flags)) as client:
        client.register()
        names = [f"r{i}" for i in range(1000)]
        client.good(requests=[(name, (0,)) for name in names])
        client.good(requests=[("other", (0,))], finished_request_ids=names)
        tracked = float(client.series()["stethoscope_requests_tracked"])
        assert 0 < tracked < 1001
        until(lambda: float(client.series()["stethoscope_requests_tracked"]) == 1)
        assert float(client.series()['stethoscope_probe_request_score_count{probe="first"}']) == 1000


def test_a_mean_over_the_whole_request_is_not_judged_on_its_first_token(client, artifacts):
    write_probe(artifacts, "first", aggregation={"kind": "mean", "window": 4})
    until(lambda: client.status().plan_generation > 1)
    verdicts = []
    for place in range(6):
        answer = client.observe(wire_batch(rows_with(0, [9.0]), requests=[("long", (place,))]))
        verdicts.append(bool(answer.result.verdicts))
    assert verdicts == [False, False, False, True, True, True]


def test_metrics_and_status_tell_the_same_story(client):
    for _ in range(5):
        client.good()
    client.observe(b"\xff")
    status, series = client.status(), client.series()
    received = float(series["stethoscope_step_batches_received_total"])
    rejected = sum(float(v) for k, v in series.items() if k.startswith("stethoscope_step_batches_rejected_total"))
    assert (received, rejected) == (status.step_batches.received, status.step_batches.rejected) == (6, 1)
    assert status.step_batches.received == (
        status.step_batches.scored + status.step_batches.dropped + status.step_batches.rejected
    )


def test_a_batch_whose_sender_set_no_deadline_is_answered(client):
    assert client.observe(wire_batch(), timeout_s=None).result.outcome == ingest_pb2.OUTCOME_SCORED


def test_the_health_service_answers_and_reflection_does_not(client):
    from grpc_health.v1 import health_pb2

    raw = client.channel.unary_unary("/grpc.health.v1.Health/Check")(
        health_pb2.HealthCheckRequest(service="stethoscope.v1.IngestService").SerializeToString(), timeout=5
    )
    assert health_pb2.HealthCheckResponse.FromString(raw).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as absent:
        client.channel.unary_unary("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(b"", timeout=5)
    assert absent.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_is_there_when_asked_for(serve):
    from grpc_reflection.v1alpha import reflection_pb2

    with Client(serve(**{"listen.reflection": True})) as client:
        call = client.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        reply = reflection_pb2.ServerReflectionResponse.FromString(next(call(iter([request]), timeout=5)))
        names = {one.name for one in reply.list_services_response.service}
        assert {"stethoscope.v1.IngestService", "stethoscope.v1.ControlService"} <= names


def test_stop_twice_is_fine_and_leaves_no_socket_behind(serve, home):
    sidecar: Sidecar = serve()
    sidecar.stop()
    sidecar.stop()
    assert not (home / "run" / "sidecar.sock").exists()


@pytest.mark.parametrize("spoil", ["pickle", "torn manifest", "moved threshold"])
def test_an_unsound_reload_leaves_the_old_generation_in_force_and_is_counted(client, artifacts, spoil):
    client.good()
    generation = client.status().plan_generation
    manifest = artifacts / "first" / "manifest.json"
    sound = manifest.read_text()
    if spoil == "pickle":
        (artifacts / "first" / "extra.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        manifest.touch()
    elif spoil == "torn manifest":
        manifest.write_text(sound[: len(sound) // 2])
    else:
        manifest.write_text(sound.replace('"probability": 0.9', '"probability": 0.1'))
    refused = 'stethoscope_artifact_reloads_total{outcome="refused"}'
    until(lambda: float(client.series()[refused]) >= 1)
    assert client.good().plan_generation == generation
    (artifacts / "first" / "extra.pkl").unlink(missing_ok=True)
    manifest.write_text(sound)
    sound_again = 'stethoscope_artifact_reloads_total{outcome="ok"}'
    until(lambda: float(client.series()[sound_again]) >= 1)
    write_probe(artifacts, "third", column=3)
    until(lambda: client.status().plan_generation > generation)
    client.good()


def test_an_artifact_of_another_model_is_refused_naming_both_sides_and_the_others_serve(client, artifacts):
    write_probe(artifacts, "foreign", model={**manifest_fields("x")["model"], "architecture": "OtherForCausalLM"})
    until(lambda: len(client.status().artifacts) == 4)
    state = next(one for one in client.status().artifacts if one.name == "foreign")
    assert state.evidence == "refused"
    assert "OtherForCausalLM" in state.reason
    assert "LlamaForCausalLM" in state.reason
    client.good()
    assert {one.name for one in client.status().signals} == {"first", "second"}


def test_a_stale_signal_is_shown_and_never_flags(client, artifacts):
    write_probe(artifacts, "old", column=2, model={**manifest_fields("x")["model"], "weights_digest": "9" * 64})
    until(lambda: len(client.status().signals) == 3)
    answer = client.observe(wire_batch(rows_with(2, [9.0, 9.0, 9.0])))
    assert not answer.result.verdicts
    old = next(one for one in client.status().signals if one.name == "old")
    assert (old.readings, old.detections, old.evidence) == (3, 0, "stale")
    assert old.mean > 0.99
