"""The course of the demo: what it learns from, when it is armed, and what it says of what was raised."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from probes.circuits.baseline import load_baseline
from probes.circuits.baseline_fit import AT_LEAST, levels
from protos.stethoscope.v1.control_pb2 import (
    CanaryState,
    CircuitAlarm,
    CircuitSliceState,
    CircuitState,
    GetStatusResponse,
)
from sidecar.circuits.archive import write_archive
from sidecar.circuits.detector import BETS, NOTHING, RUN_LENGTH, advance, betting_table, log_e, log_threshold
from sidecar.circuits.reference import Reference
from sidecar.demo import commands
from sidecar.demo.ablated import ablate
from sidecar.demo.alerts import Alert, alerts
from sidecar.demo.circuit_table import Recent
from sidecar.demo.course import ARMED_S, LEARNING_S, LIMIT_S, QUIET_S, Course, Phase
from sidecar.demo.options import Plant
from sidecar.demo.prompts import REPEATING, Prompts, canaries, repeated
from sidecar.demo.reference import CANARY_ROUNDS, SESSIONS, Home
from sidecar.live.canary_file import About, Kept, write_round
from sidecar.live.canary_prompts import LEAST
from sidecar.live.canary_runner import ROUNDS
from tests.circuits.live import row
from tests.tap.models import tiny

ABOUT = About("m" * 64, "float32", "transformers", "p" * 64, 1000, (("circuit", 3, False),))


def status(*told: CircuitAlarm, moved: bool = False, deploying: bool = False, rounds: int = 9) -> GetStatusResponse:
    part = CircuitSliceState(slice="all", tokens=10, engaged=5, log_evidence=1.0, log_threshold=9.0)
    circuit = CircuitState(name="induction", state="validated", slices=[part], alarms=told, canary_moved=moved)
    return GetStatusResponse(circuits=[circuit], canaries=CanaryState(whole=rounds, recorded=True, deploying=deploying))


def alarm(cause: str = "traffic", *, is_open: bool = True) -> CircuitAlarm:
    return CircuitAlarm(slice="all", cause=cause, leans="less", severity="ticket", open=is_open)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """After some rounds of canaries and fifty ticks of traffic that uses the circuit half of the time."""
    made = Home(tmp_path)
    made.artifacts.mkdir()
    draws = np.random.default_rng(0)
    for number in range(CANARY_ROUNDS):
        values = {(f"canary-{at}", -1): draws.normal(size=3).astype(np.float32) for at in range(8)}
        about = About(**{name: getattr(ABOUT, name) for name in ABOUT.__slots__} | {"at_s": 1000 + number})
        write_round(made.archive / ROUNDS, Kept(about, values), 9)
    rows = [row(draws.multinomial(4, [0.4, 0.05, 0.1, 0.05, 0.4]).tolist(), tick=tick, tick_s=5) for tick in range(50)]
    write_archive(made.archive / "a.parquet", rows)
    return made


def armed(home: Home, plant: Plant | None, planted: list[float]) -> tuple[Course, float]:
    course = Course(home, plant, lambda: planted.append(1.0))
    for at_s in (0.0, 5.0):
        course.look(status(), at_s)
        assert course.phase is Phase.LEARNING
    course.look(status(rounds=11), 10.0)
    assert course.phase is Phase.ARMED
    return course, 10.0


def test_it_is_armed_once_both_references_are_there_and_compared_with_and_the_baseline_is_a_real_one(
    home: Home,
) -> None:
    course, _ = armed(home, None, [])
    assert course.learned is not None
    assert course.learned.sessions == 200 >= SESSIONS
    (watched,) = load_baseline(home.artifacts / "baseline", root=home.artifacts).watched
    assert watched.reference.mean.shape == (1,)
    assert not watched.learning
    assert (watched.reference.band(0).low, watched.reference.band(0).high) == (course.learned.low, course.learned.high)
    assert "a toy reference: 250 s of this demo's own traffic in one bucket (200 sessions)" in course.learned.words
    assert "at most one false alarm in 60 h" in course.learned.words


def test_as_long_as_there_are_too_few_sessions_or_rounds_it_learns(home: Home) -> None:
    rounds = sorted((home.archive / ROUNDS).iterdir())
    rounds[0].rename(home.folder / rounds[0].name)
    course = Course(home, None, lambda: None)
    course.look(status(), 5.0)
    assert not home.canaries.exists()
    (home.folder / rounds[0].name).rename(rounds[0])
    (home.archive / "a.parquet").unlink()
    write_archive(home.archive / "b.parquet", [row([SESSIONS - 1, 0, 0, 0, 0], tick=1, tick_s=5)])
    course.look(status(), 10.0)
    assert home.canaries.exists()
    assert course.learned is None
    assert course.phase is Phase.LEARNING


def test_it_plants_after_some_quiet_and_is_over_when_nothing_came_after_the_right_alarm(home: Home) -> None:
    planted: list[float] = []
    course, now = armed(home, Plant.TRAFFIC, planted)
    course.look(status(), now + ARMED_S - 0.1)
    assert not planted
    course.look(status(), now + ARMED_S)
    assert planted == [1.0]
    assert course.phase is Phase.PLANTED
    assert not course.as_planted
    course.look(status(alarm()), now + ARMED_S + 30)
    assert (course.phase, course.as_planted, course.over) == (Phase.ALARM, True, False)
    assert [(one.what.name, one.what.diagnosis, one.after_plant_s) for one in course.alerts] == [
        ("CircuitActivity", "traffic", 30.0)
    ]
    course.look(status(alarm()), now + ARMED_S + 30 + QUIET_S)
    assert course.over


def test_one_that_never_learns_ends_too_if_something_was_to_be_planted(tmp_path: Path) -> None:
    course = Course(Home(tmp_path), Plant.TRAFFIC, lambda: None)
    course.look(status(), 0.0)
    assert not course.over
    course.look(status(), LEARNING_S)
    assert (course.phase, course.over, course.as_planted) == (Phase.LEARNING, True, False)


def test_an_alarm_of_another_cause_or_before_the_planting_or_none_in_time_is_not_what_was_planted(home: Home) -> None:
    course, now = armed(home, Plant.TRAFFIC, [])
    course.look(status(), now + ARMED_S)
    course.look(status(alarm("unknown")), now + ARMED_S + 5)
    assert not course.as_planted
    assert not course.over
    course.look(status(alarm("unknown")), now + ARMED_S + LIMIT_S)
    assert course.over
    assert not course.as_planted


def test_an_ablation_wants_the_models_alert_and_that_the_circuits_own_alarm_says_the_same(home: Home) -> None:
    course, now = armed(home, Plant.ABLATION, [])
    course.look(status(), now + ARMED_S)
    course.look(status(moved=True), now + ARMED_S + 9)
    assert (course.phase, course.as_planted) == (Phase.ALARM, False)
    course.look(status(alarm("model"), moved=True), now + ARMED_S + 20)
    assert course.as_planted
    assert [one.what.name for one in course.alerts] == ["CircuitModelChanged"]


def test_nothing_planted_and_an_alarm_is_told(home: Home) -> None:
    course, now = armed(home, None, [])
    assert course.as_planted
    course.look(status(alarm()), now + 5)
    assert not course.as_planted


def test_a_model_that_changed_holds_back_what_its_circuits_say_but_in_a_deploy_window() -> None:
    assert alerts(status(alarm())) == (Alert("CircuitActivity", "traffic", "induction", "less"),)
    assert alerts(status(alarm(is_open=False))) == ()
    assert [one.name for one in alerts(status(alarm("model"), moved=True))] == ["CircuitModelChanged"]
    assert alerts(status(moved=True, deploying=True)) == ()
    assert alerts(status(alarm("model"), moved=True, deploying=True)) == (
        Alert("CircuitActivity", "model", "induction", "less"),
    )


def test_the_newest_half_minute_is_told_apart_from_all_before() -> None:
    recent = Recent()
    for at_s, tokens, engaged in ((0.0, 100, 50), (40.0, 200, 100), (60.0, 300, 100), (80.0, 400, 100)):
        part = CircuitSliceState(slice="all", tokens=tokens, engaged=engaged)
        recent.note(GetStatusResponse(circuits=[CircuitState(name="induction", slices=[part])]), at_s)
    assert recent.share("induction") == 0.0
    assert recent.share("another") is None


def test_six_in_ten_requests_repeat_themselves_until_none_does_and_every_run_asks_the_same() -> None:
    prompts, again = Prompts(), Prompts()
    drawn = [prompts.next() for _ in range(400)]
    assert drawn == [again.next() for _ in range(400)]
    assert 0.5 < np.mean([not one.chat for one in drawn]) < 0.7
    prompts.stop_repeating()
    assert all(prompts.next().chat for _ in range(400))


def test_canaries_are_as_many_as_are_wanted_and_half_of_them_repeat_themselves() -> None:
    assert len(canaries()) == LEAST
    words = [one.split() for one in canaries()]
    assert sum(len(set(one)) * 2 < len(one) for one in words) == 4
    assert repeated(random.Random(1)) == canaries()[4]


def test_the_heads_are_those_of_the_shipped_circuit() -> None:
    assert commands.heads()
    assert all(one.split(".")[2] == "attn_heads" for one in commands.heads())


def test_an_ablation_silences_its_heads_alone_once_it_is_planted() -> None:
    model = tiny()
    planted: list[bool] = []
    ablate(model, ["blocks.1.attn_heads.1"], lambda: bool(planted))
    seen: list[torch.Tensor] = []
    module = model.model.layers[1].self_attn.o_proj
    module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
    ids = torch.arange(6)[None]
    with torch.no_grad():
        before = model(ids).logits
        planted.append(True)
        after = model(ids).logits
    size = model.config.head_dim
    assert seen[0].abs().amin(dim=(0, 1)).max() > 0
    assert (seen[1][..., size : 2 * size] == 0).all()
    others = [at for at in range(seen[0].shape[-1]) if not size <= at < 2 * size]
    assert torch.equal(seen[0][..., others], seen[1][..., others])
    assert not torch.allclose(before, after)


def sessions(draws: np.random.Generator, shape: tuple[int, ...], repeating: float) -> np.ndarray:
    """[..., 5]: how many of the sessions, the last axis of shape, had so many of their 4 tokens engaged, much as the demo's do."""
    share = np.where(draws.random(shape) < repeating, draws.beta(6, 0.9, shape), 0.005)
    engaged = draws.binomial(4, share)
    return np.stack([(engaged == many).sum(axis=-1) for many in range(5)], axis=-1)


def test_a_thousand_plain_hours_alarm_never_and_traffic_that_stops_repeating_alarms_within_sixty_sessions_mostly() -> (
    None
):
    """With references as small as the demo's, and its own threshold; simulated, for nobody has a thousand hours."""
    many, tick, draws = 1000, 12, np.random.default_rng(0)
    limit = log_threshold(RUN_LENGTH, 1)
    bands = []
    for evidence in sessions(draws, (many, SESSIONS), REPEATING):
        found = levels(evidence[None, None])
        bands.append(Reference(found.mean[0].astype(float), found.half_width[0].astype(float), AT_LEAST).band(0))
    table = betting_table(bands, 4)
    log_m = np.full((many, BETS), NOTHING)
    for _ in range(3600 // 5):
        log_m = advance(log_m, sessions(draws, (many, tick), REPEATING), table)
        assert (log_e(log_m) < limit).all()
    log_m, after = np.full((many, BETS), NOTHING), np.full(many, np.inf)
    for number in range(1, 60):
        log_m = advance(log_m, sessions(draws, (many, tick), 0.0), table)
        after = np.where(log_e(log_m) >= limit, np.minimum(after, number * tick), after)
    assert np.median(after) <= 60
    assert np.quantile(after, 0.99) <= 100
    assert after.max() <= 200
