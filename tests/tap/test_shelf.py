"""The operator that takes states out of a compiled model, and out of a CUDA graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sidecar.tap.vllm import shelf as shelf_module
from sidecar.tap.vllm.shelf import Shelf
from sidecar.tap.vllm.sites import Socket, hook_socket
from sidecar.types import Site, TapPoint

HERE = pytest.param(torch.device("cpu"), id="cpu")
GPU = pytest.param(
    torch.device("cuda"),
    id="gpu",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)
WIDTH, ROWS = 16, 32
POINT, HEADS = TapPoint(0), TapPoint(0, Site.ATTN_HEADS)


class Block(nn.Module):
    """Returns a pair to be added, as vLLM's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner(torch.tanh(states)), residual + states


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out, residual = self.block(states, states)
        return torch.relu(out + residual)


def plugged(device: torch.device) -> tuple[Model, Shelf]:
    torch.manual_seed(0)
    model, shelf = Model().to(device), Shelf(ROWS, {POINT: WIDTH, HEADS: WIDTH}, device, torch.float32)
    hook_socket(Socket(model.block, reads_input=False, path="block"), shelf.place(POINT))
    hook_socket(Socket(model.block.inner, reads_input=True, path="block.inner"), shelf.place(HEADS))
    return model, shelf


def wanted(model: Model, states: torch.Tensor) -> dict[TapPoint, torch.Tensor]:
    inner = torch.tanh(states)
    weights = model.block.inner
    return {POINT: nn.functional.linear(inner, weights.weight, weights.bias) + 2 * states, HEADS: inner}


def check(shelf: Shelf, model: Model, states: torch.Tensor) -> None:
    got = shelf.read(len(states))
    want = wanted(model, states)
    assert got.keys() == want.keys()
    for point, kept in got.items():
        torch.testing.assert_close(kept, want[point], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", [HERE, GPU])
@torch.no_grad()
def test_a_compiled_model_writes_what_it_computes_at_every_step(device: torch.device) -> None:
    model, shelf = plugged(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 7, 5, ROWS):
        states = torch.randn(rows, WIDTH, device=device)
        shelf.clear(rows)
        compiled(states)
        check(shelf, model, states)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_a_replayed_cuda_graph_writes_the_states_of_the_step_that_it_replays() -> None:
    device = torch.device("cuda")
    model, shelf = plugged(device)
    static = torch.zeros(ROWS, WIDTH, device=device)
    model(static)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(static)
    for _ in range(3):
        states = torch.randn(ROWS, WIDTH, device=device)
        static.copy_(states)
        shelf.clear(ROWS)
        graph.replay()
        check(shelf, model, states)
        assert shelf.written(ROWS) == {POINT, HEADS}


@torch.no_grad()
def test_what_no_step_wrote_is_not_read() -> None:
    model, shelf = plugged(torch.device("cpu"))
    model(torch.randn(4, WIDTH))
    assert set(shelf.read(4)) == {POINT, HEADS}
    shelf.clear(4)
    assert shelf.read(4) == {}


@pytest.mark.parametrize("device", [HERE, GPU])
@torch.no_grad()
def test_where_only_some_graphs_have_the_operator_no_step_of_the_others_shows_states_of_another_step(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "_unwritten", lambda _states: False)  # as on a GPU: nothing is waited for
    wide, narrow = TapPoint(1), TapPoint(1, Site.ATTN_HEADS)
    shelf = Shelf(ROWS, {wide: WIDTH, narrow: WIDTH - 3}, device, torch.float32)
    takes = {wide: shelf.place(wide), narrow: shelf.place(narrow)}
    graphs: tuple[set[TapPoint], ...] = ({wide, narrow}, {wide}, {narrow}, set())
    for step in range(130):
        fired, rows = graphs[step % 4 if step % 9 else 0], 1 + step * 7 % ROWS
        shelf.clear(rows)
        made = {point: torch.full((rows, WIDTH if point is wide else WIDTH - 3), float(step)) for point in fired}
        for point, states in made.items():
            takes[point](states.to(device), None)
        for point, states in shelf.read(rows).items():
            if point in fired:
                torch.testing.assert_close(states.cpu(), made[point])
            else:
                assert bool(states[:, 0].isnan().all()), f"{point.name} at step {step}: states of another"


@torch.no_grad()
def test_a_deaf_shelf_keeps_nothing_and_its_graph_is_the_same() -> None:
    graphs: list[list[str]] = []

    def record(graph: Any, _inputs: Any) -> Any:
        graphs.append([f"{node.op} {node.target}" for node in graph.graph.nodes])
        return graph.forward

    for deaf in (False, True):
        model, shelf = Model(), Shelf(ROWS, {POINT: WIDTH}, torch.device("cpu"), torch.float32, deaf=deaf)
        hook_socket(Socket(model.block, reads_input=False, path="block"), shelf.place(POINT))
        torch.compile(model, fullgraph=True, backend=record)(torch.randn(4, WIDTH))
        assert set(shelf.read(4)) == (set() if deaf else {POINT})
    assert shelf.nbytes == 0
    assert graphs[0] == graphs[1]
    assert any("stethoscope" in node for node in graphs[0])


@torch.no_grad()
def test_a_trial_tells_the_points_that_were_written_to_whatever_was_written() -> None:
    model, shelf = plugged(torch.device("cpu"))
    shelf.mark(4)
    assert shelf.written(4) == set()
    model(torch.full((4, WIDTH), float("nan")))
    assert shelf.written(4) == {POINT, HEADS}


@torch.no_grad()
def test_a_plain_hook_keeps_states_without_a_buffer_until_the_next_step() -> None:
    model, shelf = Model(), Shelf(ROWS, {}, torch.device("cpu"), torch.float32)
    hook_socket(Socket(model.block, reads_input=False, path="block"), shelf.lay(POINT))
    states = torch.randn(4, WIDTH)
    model(states)
    torch.testing.assert_close(shelf.read(4)[POINT], wanted(model, states)[POINT])
    assert shelf.nbytes == 0
    shelf.clear(4)
    assert shelf.read(4) == {}


def test_buffers_hold_the_most_rows_of_a_step_and_say_how_many_bytes_that_is() -> None:
    assert plugged(torch.device("cpu"))[1].nbytes == 2 * ROWS * WIDTH * 4
