"""The status tells of circuits what a person asks first: what they are worth, how often at work, what speaks against it."""

from __future__ import annotations

from dataclasses import replace

from protos.stethoscope.v1 import control_pb2
from sidecar.ingest import wire
from sidecar.snapshot import CircuitAlarmSnapshot, CircuitsSnapshot
from sidecar.words import in_words
from tests.export.examples import circuits, snapshot

ALARM = CircuitAlarmSnapshot("induction", "chat", "page", "traffic", "less", "1-induction-00000000.json", 1_700_000_000)


def told(now: CircuitsSnapshot) -> tuple[control_pb2.GetStatusResponse, str]:
    status = wire.status(snapshot(circuits=now), "1.0")
    return status, "\n".join(in_words(control_pb2.GetStatusResponse.FromString(status.SerializeToString())))


def test_a_circuit_shows_its_state_share_evidence_canaries_and_alarm() -> None:
    now = circuits()
    now = replace(now, kept=replace(now.kept, alarms=(ALARM,), newest=(ALARM,)))
    status, words = told(now)
    (one,) = status.circuits
    part, shown = one.slices[0], now.circuits[0].slices[0]
    assert (one.name, one.state, one.canary_moved, one.canary_distance) == ("induction", "validated", True, 7.5)
    assert (part.tokens, part.engaged) == (shown.tokens, shown.engaged)
    assert part.sessions == sum(shown.sessions.counts)
    assert (part.log_evidence, part.log_threshold) == (shown.log_evidence, shown.log_threshold)
    assert "circuit induction 1.0.0: validated" in words
    assert f"{shown.slice}: {shown.engaged / shown.tokens:.1%} of {shown.tokens} tokens engaged" in words
    assert f"evidence {shown.log_evidence:.1f} of {shown.log_threshold:.1f}" in words
    assert "canaries: 7.5 times the noise from their reference, MOVED" in words
    assert "ALARM in chat, 2023-11-14 22:13:20Z: less engaged than sound traffic, cause traffic; 1-induction" in words
    assert "canaries: 9 whole rounds, 1 others, the newest 12 s ago; MOVED from blocks.5.attn_heads on" in words


def test_an_alarm_that_has_cooled_is_still_the_last_one() -> None:
    now = circuits()
    status, words = told(replace(now, kept=replace(now.kept, alarms=(), newest=(ALARM,))))
    assert [one.open for one in status.circuits[0].alarms] == [False]
    assert "last alarm in chat, 2023-11-14 22:13:20Z" in words


def test_what_is_not_known_is_absent_and_no_number() -> None:
    now = circuits()
    (one,) = now.circuits
    bare = replace(one, slices=tuple(replace(part, log_evidence=None, log_threshold=None) for part in one.slices))
    canaries = replace(
        now.kept.canaries, recorded=False, circuits={"induction": float("nan")}, moved_circuits=(), moved_layers=()
    )
    status, words = told(replace(now, circuits=(bare,), kept=replace(now.kept, canaries=replace(canaries, age_s=None))))
    assert not status.circuits[0].HasField("canary_distance")
    assert not status.circuits[0].slices[0].HasField("log_evidence")
    assert "no reference to compare with" in words
    assert "the newest" not in words
    assert "; compared with nothing" in words
    assert "nan" not in words


def test_without_circuits_and_canaries_the_status_says_nothing_of_them() -> None:
    status, words = told(CircuitsSnapshot())
    assert not status.HasField("canaries")
    assert "circuit" not in words
