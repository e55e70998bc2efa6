"""A whole sidecar beside models that are more than a decoder: what is expected, seen, read and told of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes.artifact import save_artifact
from sidecar.service import Sidecar
from sidecar.tap.identity import identify
from sidecar.tap.transformers import attach
from sidecar.types import Stack, TapPoint
from tests.builders import manifest_fields
from tests.tap import kinds
from tests.tap.models import WIDTH
from tests.waiting import until

Serve = Callable[..., Sidecar]
ENCODER, DECODER = TapPoint(0, stack=Stack.ENCODER), TapPoint(1)
TEXT = [5, 6, 7, 8, 9]


def write(root: Path, model: Any, name: str, where: TapPoint, span: str, kind: str = "linear_probe") -> None:
    """A direction that reads the first coordinate, made for this very model."""
    here = identify(model)
    fields = manifest_fields(name, kind, where)
    fields["feature_contract"] |= {"width": WIDTH, "token_span": span}
    fields["model"] |= {name: getattr(here, name) for name in ("name", "architecture", "layers", "weights_digest")}
    fields["model"] |= {"encoder_layers": here.encoder_layers or None}
    direction = np.zeros((WIDTH, 1), np.float32)
    direction[0] = 1.0
    save_artifact(root / name, fields, direction, np.zeros(1, np.float32))


def folder(home: Path, model: Any, *points: tuple[TapPoint, str]) -> Path:
    root = home / "stacks"
    for number, (where, span) in enumerate(points):
        write(root, model, f"probe_{number}", where, span)
        write(root, model, f"control_{number}", where, "all", "positive_control")
    return root


@pytest.mark.parametrize("mode", ["raw", "projected"])
def test_each_stack_sees_what_is_expected_of_it_and_its_probes_read_it(mode: str, home: Path, serve: Serve) -> None:
    model = kinds.t5()
    root = folder(home, model, (ENCODER, "prompt"), (DECODER, "generated"))
    sidecar = serve(**{"artifacts.folder": str(root), "sampling.request_fraction": 1.0, "sampling.mode": mode})
    tap = attach(model, address=sidecar.address, engine_id="speech")
    until(lambda: tap.client.connected and (mode == "raw" or tap.client.plan is not None))
    with tap.requests(["a"]):
        model.generate(torch.tensor([TEXT]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    until(lambda: all(one.expected == one.seen > 0 for one in sidecar.snapshot().coverage))
    now = sidecar.snapshot()
    assert {one.tap_point.name: (one.seen, one.blind) for one in now.coverage} == {
        "encoder.blocks.0.resid_post": (len(TEXT), False),
        "blocks.1.resid_post": (4, False),
    }
    assert {one.name: one.readings for one in now.signals} == {"probe_0": len(TEXT), "probe_1": 3}
    assert tap.errors() == {}
    tap.detach()


def test_an_encoder_whose_hooks_never_fire_is_blind_and_its_decoder_is_not(home: Path, serve: Serve) -> None:
    model = kinds.t5()
    root = folder(home, model, (ENCODER, "all"), (DECODER, "all"))
    sidecar = serve(**{"artifacts.folder": str(root), "sampling.request_fraction": 1.0})
    tap = attach(model, address=sidecar.address, engine_id="speech")
    until(lambda: tap.client.connected)
    for name in ("a", "b", "c"):
        with tap.requests([name]):
            model.generate(torch.tensor([TEXT]), max_new_tokens=4, do_sample=False, eos_token_id=None)
        model.get_encoder().block[0]._forward_hooks.clear()  # what a graph does that is replayed without them
    until(lambda: any(one.blind for one in sidecar.snapshot().coverage))
    assert {one.tap_point.name: one.reason for one in sidecar.snapshot().coverage} == {
        "encoder.blocks.0.resid_post": "not_seen",
        "blocks.1.resid_post": "",
    }
    tap.detach()


def test_an_artifact_for_a_block_that_the_encoder_has_not_is_refused(home: Path) -> None:
    from sidecar.errors import ArtifactError

    model = kinds.whisper()  # two blocks in its encoder, three in its decoder
    write(home / "last", model, "last", TapPoint(1, stack=Stack.ENCODER), "all")
    write(home / "last", model, "other", TapPoint(2), "all")
    with pytest.raises(ArtifactError, match="bad_manifest"):
        write(home / "beyond", model, "beyond", TapPoint(2, stack=Stack.ENCODER), "all")


def test_timesteps_are_expected_one_a_request_and_read(home: Path, serve: Serve) -> None:
    model = kinds.diffusion_transformer()
    root = folder(home, model, (DECODER, "all"))
    sidecar = serve(**{"artifacts.folder": str(root), "sampling.request_fraction": 1.0})
    tap = attach(model, address=sidecar.address, engine_id="image")
    until(lambda: tap.client.connected)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad(), tap.requests(["a", "b"]), tap.timesteps("time_step", scale=1000):
        for time in (1.0, 0.5, 0.25):
            model(
                hidden_states=torch.randn(2, 6, kinds.MEL_BINS, generator=random),
                condition_vector=torch.randn(2, 20, kinds.MEL_BINS, generator=random),
                speaker_embedding=torch.randn(2, 6, 8, generator=random),
                quantized_code=torch.randint(0, 50, (2, 3), generator=random),
                time_step=torch.tensor(time),
                apply_cfg=False,
            )
    until(lambda: all(one.expected == one.seen > 0 for one in sidecar.snapshot().coverage))
    now = sidecar.snapshot()
    assert [(one.seen, one.blind) for one in now.coverage] == [(6, False)]
    assert [one.readings for one in now.signals] == [6]
    assert tap.errors() == {}
    tap.detach()
