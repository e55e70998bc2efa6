"""Weights and manifests that lie are refused, each with its own reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from probes.artifact import MANIFEST, WEIGHTS, load_artifact, save_artifact
from sidecar.errors import ArtifactError, ArtifactReason
from tests.probes.broken import BODY, Breaker, entry, header, refusal, seal, weights_file
from tests.probes.builders import WIDTH, direction, manifest_fields

DUPLICATE_IN_HEADER = (
    '{"directions":{"dtype":"F32","shape":[8,1],"data_offsets":[0,32]},'
    '"directions":{"dtype":"F32","shape":[8,1],"data_offsets":[0,32]},'
    '"offsets":{"dtype":"F32","shape":[1],"data_offsets":[32,36]}}'
)
DUPLICATE_IN_ENTRY = DUPLICATE_IN_HEADER.replace('"directions"', '"gone"', 1).replace(
    '"shape":[1]', '"shape":[2],"shape":[1]'
)


def packed(changes: dict[str, Any], body: bytes = BODY) -> bytes:
    return weights_file(json.dumps(header(**changes)), body)


BAD_WEIGHTS_FILES = [
    pytest.param(b"", ArtifactReason.NOT_SAFETENSORS, id="empty"),
    pytest.param(b"\0" * 7, ArtifactReason.NOT_SAFETENSORS, id="shorter than a length"),
    pytest.param(weights_file("{}", BODY, length=1 << 63), ArtifactReason.BAD_HEADER, id="header of 2^63"),
    pytest.param(weights_file("", length=(1 << 64) - 1), ArtifactReason.BAD_HEADER, id="header of 2^64 - 1, no more"),
    pytest.param(weights_file("{}", length=3), ArtifactReason.BAD_HEADER, id="header one byte beyond the file"),
    pytest.param(weights_file("{", BODY), ArtifactReason.BAD_HEADER, id="header cut"),
    pytest.param(weights_file(b'{"\xff":1}', BODY), ArtifactReason.BAD_HEADER, id="header not UTF-8"),
    pytest.param(weights_file('{"a":' + "[" * 30000, BODY), ArtifactReason.BAD_HEADER, id="header nested 30,000 deep"),
    pytest.param(weights_file(DUPLICATE_IN_HEADER, BODY), ArtifactReason.DUPLICATE_KEY, id="tensor twice"),
    pytest.param(weights_file(DUPLICATE_IN_ENTRY, BODY), ArtifactReason.DUPLICATE_KEY, id="shape twice"),
    pytest.param(packed({"../../etc/x": entry([1], 0, 4)}), ArtifactReason.UNKNOWN_TENSOR, id="third tensor, a path"),
    pytest.param(packed({"offsets": None}), ArtifactReason.UNKNOWN_TENSOR, id="tensor missing"),
    pytest.param(packed({"offsets": entry([1], 28, 32)}, BODY[:32]), ArtifactReason.OVERLAP, id="overlap"),
    pytest.param(packed({}, BODY[:-1]), ArtifactReason.OVERLAP, id="last tensor beyond the end"),
    pytest.param(packed({"offsets": entry([1], 36, 40)}, BODY + b"1234"), ArtifactReason.HOLE, id="hole between"),
    pytest.param(packed({}, BODY + b"code"), ArtifactReason.HOLE, id="bytes after the last tensor"),
    pytest.param(
        packed({"directions": entry([9, 1], 0, 32)}), ArtifactReason.BAD_SHAPE, id="shape larger than its bytes"
    ),
    pytest.param(
        packed({"directions": entry([1 << 32, 1 << 32], 0, 32)}), ArtifactReason.BAD_SHAPE, id="2^64 elements"
    ),
    pytest.param(packed({"directions": entry([8], 0, 32)}), ArtifactReason.BAD_SHAPE, id="wrong rank"),
    pytest.param(packed({"directions": entry([4, 2], 0, 32)}), ArtifactReason.BAD_SHAPE, id="columns without offsets"),
    pytest.param(packed({"directions": entry([True, 8], 0, 32)}), ArtifactReason.BAD_HEADER, id="a boolean as a size"),
    pytest.param(packed({"directions": entry([-8, -1], 0, 32)}), ArtifactReason.BAD_HEADER, id="negative sizes"),
    pytest.param(packed({"directions": entry([8, 1], 0, 32, "F64")}), ArtifactReason.BAD_DTYPE, id="wrong dtype"),
    pytest.param(packed({"directions": entry([8, 1], 0, 32, "I32")}), ArtifactReason.BAD_DTYPE, id="integers"),
    pytest.param(packed({"directions": {"dtype": "F32"}}), ArtifactReason.BAD_HEADER, id="entry without a shape"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_WEIGHTS_FILES)
def test_malformed_weights_are_refused_with_their_own_reason(
    folder: Path, root: Path, data: bytes, reason: ArtifactReason
) -> None:
    seal(folder, data)
    assert refusal(folder, root).reason is reason


@pytest.mark.parametrize("tensor", ["directions", "offsets"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_non_finite_weight_is_refused(folder: Path, root: Path, tensor: str, value: float) -> None:
    tensors = load((folder / WEIGHTS).read_bytes())
    tensors[tensor] = tensors[tensor].copy()
    tensors[tensor].flat[0] = value
    seal(folder, save(tensors))
    assert refusal(folder, root).reason is ArtifactReason.NON_FINITE


def test_direction_of_zeros_is_refused(folder: Path, root: Path) -> None:
    seal(folder, save({"directions": np.zeros((WIDTH, 1), np.float32), "offsets": np.ones(1, np.float32)}))
    assert refusal(folder, root).reason is ArtifactReason.BAD_WEIGHTS


@pytest.mark.parametrize("shape", [(WIDTH - 1, 1), (WIDTH + 1, 1), (WIDTH, 2)])
def test_weights_of_another_shape_than_the_manifest_says_are_refused(
    folder: Path, root: Path, shape: tuple[int, int]
) -> None:
    seal(folder, save({"directions": np.ones(shape, np.float32), "offsets": np.ones(shape[1], np.float32)}))
    assert refusal(folder, root).reason is ArtifactReason.BAD_SHAPE


def test_one_flipped_bit_in_the_weights_is_refused(folder: Path, root: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-2] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    assert refusal(folder, root).reason is ArtifactReason.BAD_DIGEST


def test_threshold_moved_by_hand_is_refused(folder: Path, root: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"probability": 0.7', '"probability": 0.1'))
    assert refusal(folder, root).reason is ArtifactReason.BAD_DIGEST


def test_signature_is_outside_the_digest_so_that_it_can_be_added_later(folder: Path, root: Path) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(fields | {"signature": "c2lnbmVk"}))
    assert load_artifact(folder, root=root).manifest.signature == "c2lnbmVk"


def replaced(before: str, after: str) -> Breaker:
    def break_it(folder: Path) -> None:
        text = (folder / MANIFEST).read_text()
        assert before in text
        (folder / MANIFEST).write_text(text.replace(before, after, 1))

    return break_it


BAD_MANIFESTS = [
    pytest.param(replaced("{", '{"name": "probe_one",'), ArtifactReason.DUPLICATE_KEY, id="key twice"),
    pytest.param(
        replaced('"width": 8', '"width": 8, "width": 9'), ArtifactReason.DUPLICATE_KEY, id="key twice, deeper"
    ),
    pytest.param(replaced('"probability": 0.7', '"probability": NaN'), ArtifactReason.BAD_MANIFEST, id="NaN"),
    pytest.param(replaced('"probability": 0.7', '"probability": 1e999'), ArtifactReason.BAD_MANIFEST, id="infinite"),
    pytest.param(replaced('"probability": 0.7', '"probability": "0.7"'), ArtifactReason.BAD_MANIFEST, id="text number"),
    pytest.param(
        replaced("stethoscope.artifact/1", "stethoscope.artifact/2"), ArtifactReason.BAD_MANIFEST, id="schema"
    ),
    pytest.param(replaced("{", '{"surprise": 1,'), ArtifactReason.BAD_MANIFEST, id="unknown key"),
    pytest.param(replaced("blocks.3.", "blocks.6."), ArtifactReason.BAD_MANIFEST, id="layer beyond the model"),
    pytest.param(replaced('"decodable"', '"stale"'), ArtifactReason.BAD_MANIFEST, id="stale written down"),
    pytest.param(replaced("A direction", r"A \u001b[31m direction"), ArtifactReason.BAD_MANIFEST, id="terminal escape"),
    pytest.param(replaced("A direction", r"A \ud800 direction"), ArtifactReason.BAD_MANIFEST, id="half a surrogate"),
    pytest.param(
        lambda folder: (folder / MANIFEST).write_bytes(b"[" * 200_000), ArtifactReason.BAD_MANIFEST, id="nested"
    ),
    pytest.param(lambda folder: (folder / MANIFEST).write_bytes(b"[]"), ArtifactReason.BAD_MANIFEST, id="a list"),
    pytest.param(
        lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"), ArtifactReason.BAD_MANIFEST, id="not UTF-8"
    ),
    pytest.param(
        lambda folder: (folder / MANIFEST).write_text('{"a":' + "9" * 5000 + "}"),
        ArtifactReason.BAD_MANIFEST,
        id="number of 5,000 digits",
    ),
]


@pytest.mark.parametrize(("break_it", "reason"), BAD_MANIFESTS)
def test_malformed_manifest_is_refused(folder: Path, root: Path, break_it: Breaker, reason: ArtifactReason) -> None:
    break_it(folder)
    assert refusal(folder, root).reason is reason


def test_saving_refuses_what_loading_would(tmp_path: Path) -> None:
    offsets = np.zeros(1, np.float32)
    with pytest.raises(ArtifactError) as caught:
        save_artifact(tmp_path / "a", manifest_fields(), direction() * np.float32(np.nan), offsets)
    assert caught.value.reason is ArtifactReason.NON_FINITE
    with pytest.raises(ArtifactError) as caught:
        save_artifact(tmp_path / "a", manifest_fields(calibration=None), direction(), offsets)
    assert caught.value.reason is ArtifactReason.BAD_MANIFEST
    with pytest.raises(ArtifactError) as caught:
        save_artifact(tmp_path / "a", manifest_fields(), direction()[1:], offsets)
    assert caught.value.reason is ArtifactReason.BAD_SHAPE
    assert not (tmp_path / "a").exists()
