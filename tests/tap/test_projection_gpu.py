"""What only a GPU can show: rows and readings queued on the engine's stream, and an engine's thread that waits for neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sidecar.tap.recorder import OpenStep, Recorder
from sidecar.tap.step import CapturedStep
from sidecar.tap.tensors import device
from sidecar.tap.tensors.device import DeviceSteps
from sidecar.tap.tensors.workshop import Bench, Kept, Results, Workshop, event
from sidecar.tap.traffic import StepTally
from sidecar.types import Mode, SamplingPolicy, TapPoint
from tests.tap.models import PAD, WIDTH, library, tiny
from tests.tap.projecting import COLUMNS, POINTS, Planned, bound, kept, plan, written

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: no part of this repository brings one"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),  # said by ``unwaiting``
]
IDS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18]]


@pytest.fixture
def model() -> Any:
    return tiny().to("cuda")


def forward(model: Any, columns: int = 7, shift: int = 0) -> Any:
    """One plain call; its own hidden_states are the reference for whatever was captured in it."""
    ids = torch.tensor([row[:columns] for row in IDS], device="cuda") + shift
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states


def states_of(hidden: Any, point: TapPoint) -> Any:
    states = hidden[point.layer + 1]
    return states.reshape(-1, states.shape[-1]).float().cpu().numpy()


def check(step: CapturedStep, hidden: Any, used: Any) -> None:
    assert [point for point, _ in step.tensors] == list(POINTS)
    for point, readings in step.tensors:
        states, directions = states_of(hidden, point), used.points[point].directions
        exact = states.astype(np.float64) @ directions.astype(np.float64)
        made = written(readings)
        assert (np.abs(made[:, :-1] - exact) <= bound(states, directions)).all()
        squares = (states.astype(np.float64) ** 2).sum(axis=1)
        assert made[:, -1] == pytest.approx(squares, rel=states.shape[1] * 2.0**-24)


def check_sample(readings: Any, directions: Any) -> None:
    states = written(readings.sample.states)
    exact = states.astype(np.float64) @ directions.astype(np.float64)
    claimed = written(readings)[list(readings.sample.rows), :-1]
    assert (np.abs(claimed - exact) <= bound(states, directions)).all()


def test_raw_rows_are_the_models_own_hidden_states(model: Any) -> None:
    client = Planned(plan(), Mode.RAW)
    with kept(model, client) as tap:
        hidden = [forward(model), forward(model, 3)]
        assert tap.errors() == {}
    for step, states in zip(client.steps, hidden, strict=True):
        for point, rows in step.tensors:
            assert (written(rows) == states_of(states, point)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_readings_are_those_rows_times_the_plan_within_the_bound(dtype: torch.dtype, model: Any) -> None:
    client = Planned(plan(), sampled_steps=1.0)
    with kept(model.to(dtype), client) as tap:
        hidden = forward(model)
        assert tap.errors() == {}
    (step,) = client.steps
    check(step, hidden, plan())
    for point, readings in step.tensors:
        assert readings.sample is not None
        payload = bytearray(readings.sample.states.shape[0] * readings.sample.states.shape[1] * dtype.itemsize)
        readings.sample.states.write(memoryview(payload))
        sent = torch.frombuffer(payload, dtype=dtype).reshape(readings.sample.states.shape).float().numpy()
        assert (sent == states_of(hidden, point)[list(readings.sample.rows)]).all()


def test_tf32_of_the_engine_does_not_reach_the_readings(model: Any) -> None:
    client = Planned(plan())
    torch.set_float32_matmul_precision("high")
    try:
        with kept(model, client):
            hidden = forward(model)
    finally:
        torch.set_float32_matmul_precision("highest")
    check(client.steps[0], hidden, plan())


def bench(tap: Any) -> Bench:
    """Where this thread, as the sender, has made readings."""
    (only,) = tap._hooks._keeper.workshop.benches.values()
    assert isinstance(only, Bench)
    return only


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_plan_is_swapped_between_steps_in_the_memory_where_the_old_one_was(mode: Any, model: Any) -> None:
    client = Planned(plan(1))
    used = [plan(1), plan(2, columns=COLUMNS + 2), plan(3)]
    with kept(model, client) as tap:
        hidden, places = [], []
        for one in used:
            client.swap(one)
            with mode():
                hidden.append(forward(model))
            check(client.steps[-1], hidden[-1], one)
            places.append(bench(tap).resident.memory.data_ptr())
        assert tap.errors() == {}
    assert places[0] == places[1] == places[2]
    assert [step.plan_generation for step in client.steps] == [1, 2, 3]
    for step, states, one in zip(client.steps, hidden, used, strict=True):
        check(step, states, one)


@pytest.mark.parametrize("mode", [Mode.RAW, Mode.PROJECTED])
def test_steps_of_any_length_in_any_mode_of_torch_keep_their_own_rows(mode: Mode, model: Any) -> None:
    """Written out when all have passed. Every other one is dropped before."""
    client = Planned(plan(), mode)
    hidden: list[Any] = []
    with kept(model, client) as tap:
        for number in range(30):
            with (torch.no_grad, torch.inference_mode, torch.enable_grad)[number % 3]():
                ids = torch.tensor([row[: 1 + number % 5] for row in IDS], device="cuda") + number
                states = model(ids, output_hidden_states=True).hidden_states
            if number % 2:
                client.steps.pop()
            else:
                hidden.append([one.detach() for one in states])
        assert tap.errors() == {}
    for step, states in zip(client.steps, hidden, strict=True):
        if mode is Mode.PROJECTED:
            check(step, states, plan())
        else:
            for point, rows in step.tensors:
                assert (written(rows) == states_of(states, point)).all()


def test_an_engine_that_writes_over_its_states_while_the_device_is_behind_changes_no_row() -> None:
    steps, kept_states = DeviceSteps(Workshop()), []
    for number in range(3):
        occupy(25)
        states = torch.full((1, 4, WIDTH), float(number), device="cuda")
        steps.take(OpenStep(number, StepTally(), rows=[0, 1, 2]), POINTS[0], states)
        kept_states += [states for _, states in steps.finish()]
        states.fill_(-1)
    assert not torch.cuda.current_stream().query()
    for number, rows in enumerate(kept_states):
        assert (written(rows) == number).all()


def test_a_graph_that_is_being_captured_is_left_alone(model: Any) -> None:
    """Its tokens are explained, and it replays."""
    client = Planned(plan(), Mode.RAW)
    with kept(model, client) as tap:
        forward(model)
        step = OpenStep(1, StepTally(), rows=[0, 1])
        states, graph = torch.ones((1, 2, WIDTH), device="cuda"), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = states * 2
            with pytest.raises(NotImplementedError, match="captured as a graph"):
                tap._hooks._keeper._steps.take(step, POINTS[0], doubled)
        states.fill_(3)
        graph.replay()
        assert (doubled == 6).all()
        hidden = forward(model)
        assert tap.errors() == {}
    for point, rows in client.steps[-1].tensors:
        assert (written(rows) == states_of(hidden, point)).all()


def test_who_waits_for_a_device_sleeps() -> None:
    place = Bench(torch.device("cuda", 0))
    rows = torch.ones((3, WIDTH), device="cuda")
    work = Kept((POINTS[0],), [rows], event(), None, None, range(0))
    place.make(work)  # with nothing to wait for
    occupy(100)
    work.ready.record()
    wall, cpu = time.perf_counter(), time.thread_time()
    made = place.make(work)
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    assert isinstance(made, Results)
    assert (made.values[0] == 1).all()
    assert cpu < 0.5 * wall


@pytest.mark.parametrize("span_bytes", [0, 1 << 20], ids=["chosen at once", "chosen later"])
def test_the_choice_of_rows_is_made_without_waiting_and_right(
    span_bytes: int, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other position, in all the modes: by an index on the engine's thread, or later by the sender."""
    monkeypatch.setattr(device, "_SPAN_BYTES", span_bytes)
    monkeypatch.setattr(DeviceSteps, "take", unwaiting(DeviceSteps.take))
    rows = [row * 7 + place for row in range(2) for place in (0, 2, 4, 6)]
    for mode in (Mode.RAW, Mode.PROJECTED):
        client = Planned(plan(), mode, sampled_steps=1.0)
        with kept(model, client, sampling=SamplingPolicy(1.0, token_stride=2)) as tap:
            hidden = forward(model)
            assert tap.errors() == {}
        (step,) = client.steps
        kept_rows = len(rows) if not span_bytes else 14
        assert step.held_bytes == len(POINTS) * kept_rows * WIDTH * 4
        for point, found in step.tensors:
            states, directions = states_of(hidden, point)[rows], plan().points[point].directions
            if mode is Mode.RAW:
                assert (written(found) == states).all()
                assert (written(found.part(2, 5)) == states[2:5]).all()
            else:
                exact = states.astype(np.float64) @ directions.astype(np.float64)
                assert (np.abs(written(found)[:, :-1] - exact) <= bound(states, directions)).all()
                check_sample(found, directions)


def occupy(milliseconds: int) -> None:
    """Queue so much work, by a clock of some 2 GHz, on the current stream."""
    torch.cuda._sleep(milliseconds * 2_000_000)  # type: ignore[no-untyped-call]  # torch leaves it so


def unwaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Raises where the function makes this thread wait for the device."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched


@pytest.mark.parametrize("mode", [Mode.RAW, Mode.PROJECTED])
def test_the_engines_thread_never_waits_for_the_device(mode: Mode, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows of some requests only, a plan that changes, and continuous batching, whose steps are the server's."""
    client = Planned(plan(1), mode, sampled_steps=0.5)
    monkeypatch.setattr(DeviceSteps, "take", unwaiting(DeviceSteps.take))
    monkeypatch.setattr(Recorder, "begin", unwaiting(Recorder.begin))
    monkeypatch.setattr(Recorder, "end", unwaiting(Recorder.end))
    config = library().GenerationConfig(max_new_tokens=12, eos_token_id=-1, pad_token_id=PAD, do_sample=False)
    batching = library().ContinuousBatchingConfig(
        page_size=16, num_blocks=64, max_batch_tokens=64, use_cuda_graph=False, seed=0
    )
    with kept(model, client) as tap:
        model.generate_batch(IDS, generation_config=config, continuous_batching_config=batching)
        if mode is Mode.PROJECTED:
            client.swap(plan(2))
            model.generate_batch(IDS, generation_config=config, continuous_batching_config=batching)
        assert tap.errors() == {}
    assert len(client.steps) >= 12
    used = {1: plan(1), 2: plan(2)}
    for step in client.steps:
        for point, states in step.tensors:
            assert np.isfinite(written(states)).all()
            if states.sample is not None:
                check_sample(states, used[step.plan_generation].points[point].directions)
    sampled = [states.sample for step in client.steps for _, states in step.tensors if states.sample is not None]
    assert bool(sampled) is (mode is Mode.PROJECTED)


def test_the_watch_of_the_test_above_sees_a_thread_that_waits() -> None:
    with pytest.raises(RuntimeError, match="synchroniz"):
        unwaiting(lambda: torch.ones(1, device="cuda").item())()
