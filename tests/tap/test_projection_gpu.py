"""What only a GPU can show: rows and readings queued on the engine's stream, and an engine's thread that waits for neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sidecar.tap.plan import Mode
from sidecar.tap.recorder import Recorder
from sidecar.tap.step import CapturedStep
from sidecar.tap.transformers import hooks
from sidecar.tap.transformers.projection import Projection
from sidecar.types import TapPoint
from tests.tap.models import PAD, library, tiny
from tests.tap.test_projection import COLUMNS, POINTS, Planned, bound, kept, plan, written

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: no part of this repository brings one"),
]
IDS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18]]


@pytest.fixture
def model() -> Any:
    return tiny().to("cuda")


def forward(model: Any, columns: int = 7) -> Any:
    """One plain call; its own hidden_states are the reference for whatever was captured in it."""
    ids = torch.tensor([row[:columns] for row in IDS], device="cuda")
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
        projection: Projection = tap._hooks._projection
        hidden, places = [], []
        for one in used:
            client.swap(one)
            with mode():
                hidden.append(forward(model))
            (resident,) = projection._local.resident.values()
            places.append({point: buffer.data_ptr() for point, buffer in resident.buffers.items()})
        assert tap.errors() == {}
    assert places[0] == places[1] == places[2]
    assert [step.plan_generation for step in client.steps] == [1, 2, 3]
    for step, states, one in zip(client.steps, hidden, used, strict=True):
        check(step, states, one)


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
    monkeypatch.setattr(hooks, "copy_rows", unwaiting(hooks.copy_rows))
    monkeypatch.setattr(Projection, "states", unwaiting(Projection.states))
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
    for step in client.steps:
        for _, states in step.tensors:
            assert np.isfinite(written(states)).all()


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
