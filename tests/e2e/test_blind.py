"""The commonest failure of this field is capturing nothing without an error: with the real tap it is seen within five seconds."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sidecar.service import Sidecar
from sidecar.tap.transformers import attach
from sidecar.types import SamplingPolicy
from tests.e2e.own import write_artifacts
from tests.service.client import Client
from tests.tap.models import save_tiny, tiny
from tests.waiting import until

LAYER = 1
WITHIN_S = 5.0


@contextmanager
def traffic(model: Any) -> Iterator[None]:
    """Something that generates, one short request after the other, until the block ends."""
    import torch

    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with torch.no_grad():
                model.generate(torch.randint(3, 500, (2, 12)), max_new_tokens=4, do_sample=False)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10.0)


@pytest.fixture
def tapped(serve: Callable[..., Sidecar], home) -> Iterator[tuple[Any, Any, Client]]:
    from transformers import AutoTokenizer

    model, tokenizer = tiny(), AutoTokenizer.from_pretrained(save_tiny(home / "model"))
    write_artifacts(model, LAYER, home / "own", tokenizer)
    running = serve(**{"artifacts.folder": str(home / "own"), "limits.rows": 4096})
    tap = attach(model, tokenizer=tokenizer, address=running.address, sampling=SamplingPolicy(1.0))
    until(lambda: bool(tap.client.settings.tap_points))
    with Client(running) as client:
        yield model, tap, client
    tap.detach()


def blind(client: Client) -> str:
    (tap,) = client.status().coverage
    return tap.reason if tap.blind else ""


def sees(client: Client) -> bool:
    (tap,) = client.status().coverage
    return tap.expected > 100 and not tap.blind


@pytest.mark.shows("transformers", "blind")
def test_a_hook_on_a_block_that_never_runs_is_blind(tapped):
    model, _, client = tapped
    with traffic(model):
        until(lambda: sees(client))
        blocks = model.get_decoder().layers
        blocks[LAYER] = copy.deepcopy(blocks[LAYER])  # as a reload or a compiler does: the hooked module is left behind
        blocks[LAYER]._forward_hooks.clear()
        assert until(lambda: blind(client) == "not_seen", WITHIN_S) < WITHIN_S
        assert client.series()['stethoscope_blind{tap_point="blocks.1.resid_post"}'] == "1"


def test_hooks_that_were_taken_away_under_traffic_are_blind(tapped):
    model, _, client = tapped
    with traffic(model):
        until(lambda: sees(client))
        for module in model.modules():
            if module is not model:
                module._forward_hooks.clear()
        assert until(lambda: blind(client) == "not_seen", WITHIN_S) < WITHIN_S


def test_a_tap_that_is_detached_on_purpose_is_not_blind(tapped):
    model, tap, client = tapped
    with traffic(model):
        until(lambda: sees(client))
        tap.detach()
        until(lambda: client.status().engines == 0)
        assert blind(client) == ""
