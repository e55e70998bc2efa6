"""What only a GPU can show: rows and readings queued on the engine's stream, and an engine's thread that waits for neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sidecar.tap.plan import Mode
from sidecar.tap.recorder import OpenStep, Recorder
from sidecar.tap.step import CapturedStep
from sidecar.tap.traffic import StepTally
from sidecar.tap.transformers.landing import Landed, Landing, Landings
from sidecar.tap.transformers.staging import Stagings
from sidecar.types import TapPoint
from tests.tap.models import PAD, WIDTH, library, tiny
from tests.tap.test_projection import COLUMNS, POINTS, Planned, bound, kept, plan, written

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
            (staging,) = tap._hooks._stagings._known.values()
            places.append(staging.resident.memory.data_ptr())
        assert tap.errors() == {}
    assert places[0] == places[1] == places[2]
    assert [step.plan_generation for step in client.steps] == [1, 2, 3]
    for step, states, one in zip(client.steps, hidden, used, strict=True):
        check(step, states, one)


@pytest.mark.parametrize("mode", [Mode.RAW, Mode.PROJECTED])
def test_steps_of_any_length_in_any_mode_of_torch_share_the_memory_and_not_the_rows(mode: Mode, model: Any) -> None:
    """Read when all have passed: what is still waited for is not written over. Every other one is dropped unread."""
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


@pytest.mark.parametrize("late", ["_engine", "_own"])
def test_a_device_that_is_behind_mixes_no_two_steps(late: str, model: Any) -> None:
    """Whichever of the two streams is held up, the other waits: on the device, and not here."""
    client = Planned(plan(), Mode.RAW)
    hidden: list[Any] = []
    with kept(model, client) as tap:
        forward(model)
        (staging,) = tap._hooks._stagings._known.values()
        torch.cuda.synchronize()
        client.steps.clear()
        for _ in range(3):
            with torch.cuda.stream(getattr(staging, late)):
                occupy(25)
            hidden += [forward(model), forward(model, shift=len(hidden) + 1)]
        assert not getattr(staging, late).query()
    for step, states in zip(client.steps, hidden, strict=True):
        for point, rows in step.tensors:
            assert (written(rows) == states_of(states, point)).all()


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
                tap._hooks._stagings.take(step, POINTS[0], doubled, 1)
        states.fill_(3)
        graph.replay()
        assert (doubled == 6).all()
        hidden = forward(model)
        assert tap.errors() == {}
    for point, rows in client.steps[-1].tensors:
        assert (written(rows) == states_of(hidden, point)).all()


def test_pinned_memory_is_used_again_when_the_device_and_its_readers_are_done_with_it() -> None:
    pool = Landings()
    first = pool.take(5000)
    assert first.nbytes == 8192
    pool.give(first)
    assert pool.take(8192) is first
    occupy(25)
    first.done.record()
    pool.give(first)
    assert pool.take(8192) is not first  # the device is still at it
    second = Landing(8192)
    landed = Landed(second, pool)
    second.done.record()
    landed.wait()
    del landed
    assert pool.take(8000) is second


def test_who_waits_for_a_copy_sleeps() -> None:
    landing = Landing(4096)
    torch.cuda.synchronize()
    occupy(50)
    landing.done.record()
    wall, cpu = time.perf_counter(), time.thread_time()
    Landed(landing, Landings()).wait()
    assert time.thread_time() - cpu < 0.5 * (time.perf_counter() - wall)


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
    monkeypatch.setattr(Stagings, "take", unwaiting(Stagings.take))
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


def test_the_choice_of_rows_is_made_without_waiting_and_right(model: Any) -> None:
    """Every other position: an index that is put on the device beside the rows."""
    from sidecar.types import SamplingPolicy

    client = Planned(plan())
    with kept(model, client, sampling=SamplingPolicy(1.0, token_stride=2)) as tap:
        hidden = forward(model)
        assert tap.errors() == {}
    (step,) = client.steps
    rows = [row * 7 + place for row in range(2) for place in (0, 2, 4, 6)]
    for point, readings in step.tensors:
        states, directions = states_of(hidden, point)[rows], plan().points[point].directions
        exact = states.astype(np.float64) @ directions.astype(np.float64)
        assert (np.abs(written(readings)[:, :-1] - exact) <= bound(states, directions)).all()
