"""The tap around vLLM's runners: whatever it finds there, the engine goes on, and what is lost is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sidecar.tap.client import TapClient
from sidecar.tap.vllm import v1, v2
from sidecar.tap.vllm.shelf import Shelf
from sidecar.tap.vllm.watch import COST_VARIABLE, Rows, StepWatch
from sidecar.types import TapPoint, UnseenReason
from tests.tap.clients import MakeClient, connected
from tests.tap.conftest import MakeReceiver
from tests.tap.receiver import Receiver, control
from tests.tap.vllm_runners import SAMPLED, FirstRunner, Runner, SecondRunner, Where, new, scheduled

WIDTH, ROWS = 8, 3
HANDED, PLACED = (TapPoint(0), TapPoint(3)), TapPoint(1)
ONE = "cmpl-one-0-0123abcd"


@dataclass(slots=True)
class Tapped:
    runner: Runner
    watch: StepWatch
    take: Callable[[torch.Tensor, torch.Tensor | None], None]  # the operator in the model's graph
    receiver: Receiver
    position: int = 0

    @property
    def client(self) -> TapClient:
        return self.watch.client

    def step(self, **told: Any) -> Any:
        """A step of the one request."""
        first, self.position = self.position, self.position + ROWS
        news = [] if first else [new(ONE, ROWS)]
        return self.runner.step(told.get("told") or scheduled(ROWS, news), {ONE: (ROWS, first)})

    @property
    def seen(self) -> list[int]:
        """The positions that came at every tap point."""
        return sorted(self.receiver.rows(PLACED).get("cmpl-one-0", {}))


def watched(client: TapClient, *, guesses_told: bool = False) -> tuple[StepWatch, Any]:
    shelf = Shelf(64, {PLACED: WIDTH}, torch.device("cpu"), torch.float32)
    watch = StepWatch(client, shelf, guesses_told=guesses_told, ahead=False)
    watch.points, watch.auxiliary = (*HANDED, PLACED), HANDED
    return watch, shelf.place(PLACED)


@pytest.fixture(params=["V1", "V2"])
def tapped(request: pytest.FixtureRequest, make_receiver: MakeReceiver, make_client: MakeClient) -> Tapped:
    receiver = make_receiver(control((*HANDED, PLACED)))
    watch, take = watched(connected(make_client(queue_s=60.0)))
    states = [torch.ones(ROWS, WIDTH) for _ in HANDED]
    first = request.param == "V1"
    runner: Runner = FirstRunner(states) if first else SecondRunner(states)
    where = "_model_forward" if first else "prepare_inputs"
    inner = getattr(runner, where)

    def forward(*args: Any) -> Any:  # of the stand-in: what the model's own graph does
        output = inner(*args)
        if first:
            take(states[0], None)
        return output

    setattr(runner, where, forward)
    (v1 if first else v2).wrap(runner, watch)
    if not first:  # behind ``prepare_inputs``, in the pass itself
        wrapped = runner.sample_tokens

        def sample_tokens(grammar: Any) -> Any:
            take(states[0], None)
            return wrapped(grammar)

        runner.sample_tokens = sample_tokens  # type: ignore[method-assign, assignment]
    return Tapped(runner, watch, take, receiver)


def _one_state_too_few(tapped: Tapped, _patch: pytest.MonkeyPatch) -> None:
    tapped.runner.states = tapped.runner.states[:1]


def _no_such_field(tapped: Tapped, _patch: pytest.MonkeyPatch) -> None:
    class Other:
        def __setattr__(self, name: str, value: object) -> None:
            """Whatever the runner says of its batch is under other names here."""

    tapped.runner.input_batch = Other()


def _raises(*names: str) -> Callable[[Tapped, pytest.MonkeyPatch], None]:
    def explode(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("a bug of the tap")

    def sabotage(tapped: Tapped, patch: pytest.MonkeyPatch) -> None:
        for name in names:
            owner, _, method = name.rpartition(".")
            patch.setattr(tapped.watch.shelf if owner == "shelf" else tapped.watch.recorder, method, explode)

    return sabotage


SABOTAGES = {
    "one auxiliary state too few": _one_state_too_few,
    "a batch with other names": _no_such_field,
    "a buffer that cannot be marked": _raises("shelf.clear"),
    "a buffer that cannot be read": _raises("shelf.read"),
    "a step that cannot begin": _raises("recorder.begin"),
    "a step that cannot end": _raises("recorder.end"),
}


def test_without_a_fault_every_row_comes(tapped: Tapped) -> None:
    assert [tapped.step() for _ in range(2)] == [SAMPLED, SAMPLED]
    tapped.receiver.wait(lambda _: tapped.seen == list(range(2 * ROWS)))
    assert tapped.watch.faults.counts() == {}
    assert dict(tapped.client.traffic.counts().unseen).get(UnseenReason.UNSUPPORTED, 0) == 0


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_an_exception_inside_the_tap_never_reaches_the_engine_and_costs_its_own_step_only(
    tapped: Tapped, sabotage: str
) -> None:
    assert tapped.step() == SAMPLED
    batch, states = tapped.runner.input_batch, tapped.runner.states
    with pytest.MonkeyPatch.context() as patch:
        SABOTAGES[sabotage](tapped, patch)
        assert tapped.step() == SAMPLED
    assert sum(tapped.watch.faults.counts().values()) > 0
    tapped.runner.input_batch, tapped.runner.states = batch, states
    assert tapped.step() == SAMPLED
    tapped.receiver.wait(lambda _: set(tapped.seen) >= {*range(ROWS), *range(2 * ROWS, 3 * ROWS)})
    assert not set(tapped.seen) & set(range(ROWS, 2 * ROWS))
    counts = tapped.client.traffic.counts()
    assert counts.tokens_computed == 3 * ROWS
    assert dict(counts.unseen)[UnseenReason.UNSUPPORTED] == ROWS


def test_even_where_nothing_can_be_counted_any_more_the_engine_goes_on(tapped: Tapped) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _raises("recorder.begin", "recorder.give_up", "recorder.request", "recorder.finish", "shelf.clear")(
            tapped, patch
        )
        assert [tapped.step() for _ in range(3)] == [SAMPLED] * 3
        assert tapped.step(told=scheduled(ROWS, finished=[ONE])) == SAMPLED
    assert tapped.watch.faults.counts()["give_up"] >= 3


def test_a_schedule_with_other_names_never_reaches_the_engine(tapped: Tapped) -> None:
    assert tapped.step(told=object()) == SAMPLED
    assert tapped.watch.faults.counts()["schedule"] == 1
    assert tapped.client.traffic.counts().tokens_computed == ROWS


def test_states_that_an_operator_cannot_keep_never_reach_the_model_and_its_tap_point_stays_out(tapped: Tapped) -> None:
    shelf = tapped.watch.shelf
    shelf.clear(ROWS)
    tapped.take(torch.ones(ROWS, WIDTH + 1), None)  # another width than was thought
    tapped.take(torch.ones(65, WIDTH), None)  # more rows than any step has
    assert shelf.faults.counts() == {"inside_forward": 2}
    assert shelf.read(ROWS) == {}


def test_what_a_step_that_never_ends_computed_is_counted(tapped: Tapped) -> None:
    tapped.step()
    tapped.watch.follow(scheduled(ROWS))
    tapped.watch.before(lambda: Rows([ONE], [0, ROWS], [ROWS], {}))
    tapped.watch.follow(scheduled(0))
    counts = tapped.client.traffic.counts()
    assert counts.tokens_computed == 2 * ROWS
    assert dict(counts.unseen)[UnseenReason.UNSUPPORTED] == ROWS


def burn(seconds: float) -> None:
    """CPU time of this thread, whatever else runs."""
    ends_s = time.thread_time() + seconds
    while time.thread_time() < ends_s:
        pass


class Slow:
    """Whoever asks it for anything works for so long."""

    def __init__(self, seconds: float, **fields: Any) -> None:
        self._seconds, self._fields = seconds, fields

    def __getattr__(self, name: str) -> Any:
        burn(self._seconds)
        return self._fields[name]


TAP_S, ENGINE_S, STEPS = 0.004, 0.003, 5


class SlowFirstRunner(FirstRunner):
    """Its own methods take time too, and so does looking at what it writes down."""

    def fill(self, where: Where) -> None:
        self.query_start_loc = SimpleNamespace()
        super().fill(where)
        self.query_start_loc = Slow(TAP_S, np=self.query_start_loc.np)

    def _update_states(self, told: Any) -> None:
        burn(ENGINE_S)
        super()._update_states(told)

    def _model_forward(self) -> Any:
        burn(ENGINE_S)
        return super()._model_forward()

    def sample_tokens(self, grammar: Any) -> Any:
        burn(ENGINE_S)
        return super().sample_tokens(grammar)


def test_the_cost_that_is_told_is_all_of_the_taps_work_and_nothing_of_the_engines(
    monkeypatch: pytest.MonkeyPatch, make_receiver: MakeReceiver, make_client: MakeClient
) -> None:
    make_receiver(control(HANDED))
    monkeypatch.setenv(COST_VARIABLE, "1")
    watch, _ = watched(connected(make_client(queue_s=60.0)), guesses_told=True)
    assert watch.cost is not None

    class States(list[torch.Tensor]):
        def __iter__(self) -> Iterator[torch.Tensor]:
            burn(TAP_S)
            return super().__iter__()

    runner = SlowFirstRunner(States([torch.ones(2, WIDTH) for _ in HANDED]), speculates=True)
    runner.output = Slow(TAP_S / 2, req_ids=[ONE], sampled_token_ids=[[5, 6]])  # asked for both
    v1.wrap(runner, watch)

    def step(first: int) -> None:
        fields = vars(scheduled(2, [] if first else [new(ONE, 1)], drafts={ONE: [5]}))
        runner.step(Slow(TAP_S / len(fields), **fields), {ONE: (2, first)})  # asked for each of them once

    step(0)
    before = watch.cost.read()
    for number in range(1, STEPS + 1):
        step(2 * number)
    spent = watch.cost.read()
    tap_s = (spent.tap_cpu_ns - before.tap_cpu_ns) / 1e9 / STEPS
    forward_s = (spent.forward_cpu_ns - before.forward_cpu_ns) / 1e9 / STEPS
    assert watch.faults.counts() == {}
    assert spent.steps - before.steps == STEPS
    # follow, before, after and sampled; the engine's own three calls are 9 ms more
    assert 4 * TAP_S <= tap_s < 4 * TAP_S + ENGINE_S
    assert ENGINE_S <= forward_s < 2 * ENGINE_S
