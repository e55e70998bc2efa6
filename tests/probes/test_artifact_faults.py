"""Artifacts that somebody broke, by accident or on purpose: each is refused, with its own reason, and nothing in it runs."""

from __future__ import annotations

import json
import os
import pickle
import socket
import stat
import struct
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from probes.artifact import MANIFEST, WEIGHTS, Artifact, content_digest, fit, load_artifact, save_artifact
from probes.registry import FolderWatch, load_folder
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import Evidence, ModelIdentity
from tests.probes.builders import MODEL, WIDTH, direction, manifest_fields, write_artifact

Breaker = Callable[[Path], object]


def refusal(folder: Path, root: Path) -> ArtifactError:
    """Load within a second or fail: a refusal that waits for a writer is no refusal."""
    caught: list[ArtifactError] = []

    def attempt() -> None:
        try:
            load_artifact(folder, root=root)
        except ArtifactError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=1.0)
    assert not thread.is_alive(), "still waiting after 1 s"
    assert caught, "the artifact was accepted"
    return caught[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "artifacts"
    write_artifact(root, "probe_one")
    return root


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "probe_one"


def weights_file(header: str | bytes, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


BODY = np.ones(WIDTH + 1, "<f4").tobytes()


def header(**changes: Any) -> dict[str, Any]:
    """A sound header for `BODY`; a change of None takes the entry out."""
    sound = {
        "directions": {"dtype": "F32", "shape": [WIDTH, 1], "data_offsets": [0, 4 * WIDTH]},
        "offsets": {"dtype": "F32", "shape": [1], "data_offsets": [4 * WIDTH, 4 * WIDTH + 4]},
    }
    return {key: value for key, value in (sound | changes).items() if value is not None}


def entry(shape: list[Any], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def seal(folder: Path, weights: bytes | None = None, **changes: Any) -> None:
    """Change an artifact and make its digest right again: only the change itself is left to be found."""
    if weights is not None:
        (folder / WEIGHTS).write_bytes(weights)
    fields = json.loads((folder / MANIFEST).read_text()) | changes
    fields["content_digest"] = content_digest(fields, (folder / WEIGHTS).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(fields))


class Bomb:
    """Unpickling it makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


# 26: pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_named_safetensors_is_refused_and_its_payload_does_not_run(
    folder: Path, root: Path, tmp_path: Path, protocol: int
) -> None:
    marker = tmp_path / "it_ran"
    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb(marker), protocol=protocol))
    assert refusal(folder, root).reason is ArtifactReason.NOT_SAFETENSORS
    assert not marker.exists()
    pickle.loads((folder / WEIGHTS).read_bytes())
    assert marker.exists(), "the bomb was a dud, and this test would prove nothing"


def test_zipped_checkpoint_named_safetensors_is_refused(folder: Path, root: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS, "w") as packed:
        packed.writestr("archive/data.pkl", pickle.dumps([1, 2, 3]))
    assert refusal(folder, root).reason is ArtifactReason.NOT_SAFETENSORS


@pytest.mark.parametrize("name", ["probe.pkl", "probe.pt", "model.joblib", "WEIGHTS.PKL", ".hidden.pickle", "a.bin"])
def test_folder_with_a_pickle_beside_sound_files_is_refused(
    folder: Path, root: Path, tmp_path: Path, name: str
) -> None:
    marker = tmp_path / "it_ran"
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    assert refusal(folder, root).reason is ArtifactReason.PICKLE
    assert not marker.exists()


def test_pickle_in_the_root_refuses_the_whole_folder(root: Path) -> None:
    (root / "probe.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(ArtifactError) as caught:
        load_folder(root, limit=10)
    assert caught.value.reason is ArtifactReason.PICKLE


# 27: paths and things that are not files


@pytest.mark.parametrize("written", ["../outside", "probe_one/../../outside", "../artifacts/probe_one"])
def test_traversal_is_refused_even_where_it_comes_back(root: Path, written: str) -> None:
    write_artifact(root.parent, "outside")
    assert refusal(root / written, root).reason is ArtifactReason.UNSAFE_PATH


def test_absolute_path_elsewhere_is_refused(root: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path, "outside")
    assert refusal(tmp_path / "outside", root).reason is ArtifactReason.UNSAFE_PATH
    assert refusal(root / "/etc", root).reason is ArtifactReason.UNSAFE_PATH


def test_root_that_is_a_prefix_of_another_name_is_not_its_root(root: Path) -> None:
    write_artifact(root.with_name("artifacts_of_others"), "probe_one")
    assert refusal(root.with_name("artifacts_of_others") / "probe_one", root).reason is ArtifactReason.UNSAFE_PATH


def test_nul_in_the_path_is_refused(root: Path) -> None:
    assert refusal(root / "probe\0one", root).reason is ArtifactReason.UNSAFE_PATH


def test_folder_that_is_a_link_out_of_the_root_is_refused(root: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path, "outside")
    (root / "linked").symlink_to(tmp_path / "outside")
    assert refusal(root / "linked", root).reason is ArtifactReason.UNSAFE_PATH


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_file_that_is_a_link_out_of_the_root_is_refused(folder: Path, root: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert refusal(folder, root).reason is ArtifactReason.UNSAFE_PATH


def test_link_that_leads_to_itself_is_refused(folder: Path, root: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / WEIGHTS)
    assert refusal(folder, root).reason is ArtifactReason.UNSAFE_PATH


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_fifo_is_refused_without_waiting_for_a_writer(folder: Path, root: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder, root).reason is ArtifactReason.NOT_REGULAR


def test_socket_is_refused(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / WEIGHTS).unlink()
    monkeypatch.chdir(folder)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(WEIGHTS)
        assert refusal(folder, root).reason is ArtifactReason.NOT_REGULAR


def test_device_is_refused(folder: Path, root: Path) -> None:
    (folder / WEIGHTS).unlink()
    try:
        os.mknod(folder / WEIGHTS, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: reading it never ends
    except PermissionError:
        # Without the right to make a device: the real one, with its folder as the root.
        assert refusal_of_device() is ArtifactReason.NOT_REGULAR
    else:
        assert refusal(folder, root).reason is ArtifactReason.NOT_REGULAR


def refusal_of_device() -> ArtifactReason:
    from probes.safefile import read_regular

    with pytest.raises(ArtifactError) as caught:
        read_regular(Path("/dev/zero"), root=Path("/dev"), limit_bytes=10)
    return caught.value.reason


def test_folder_in_place_of_a_file_is_refused(folder: Path, root: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert refusal(folder, root).reason is ArtifactReason.NOT_REGULAR


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_missing_file_is_refused(folder: Path, root: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder, root).reason is ArtifactReason.MISSING_FILE


@pytest.mark.parametrize(("name", "size"), [(MANIFEST, (256 << 10) + 1), (WEIGHTS, (64 << 20) + 1)])
def test_file_over_its_bound_is_refused(folder: Path, root: Path, name: str, size: int) -> None:
    with (folder / name).open("r+b") as file:
        file.truncate(size)
    assert refusal(folder, root).reason is ArtifactReason.TOO_LARGE


def test_refusal_names_the_entry_and_no_path_before_it(root: Path) -> None:
    error = refusal(root / "absent", root)
    assert error.reason is ArtifactReason.MISSING_FILE
    assert str(root) not in str(error)


def test_kubernetes_layout_of_links_loads_and_follows_a_swap(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    write_artifact(mount / "..2026_01_01", "probe_one", version="1.0.0")
    write_artifact(mount / "..2026_01_02", "probe_one", version="1.0.1")
    (mount / "..data").symlink_to("..2026_01_01")
    (mount / "probe_one").symlink_to("..data/probe_one")
    assert [artifact.manifest.version for artifact in load_folder(mount, limit=4)] == ["1.0.0"]
    watch = FolderWatch(mount)
    (mount / "..data_tmp").symlink_to("..2026_01_02")
    (mount / "..data_tmp").rename(mount / "..data")
    assert watch.changed()
    assert [artifact.manifest.version for artifact in load_folder(mount, limit=4)] == ["1.0.1"]


def test_kubernetes_layout_with_linked_files_loads(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    write_artifact(mount / "probe_one", "..2026_01_01", name="probe_one")
    (mount / "probe_one" / "..data").symlink_to("..2026_01_01")
    for name in (MANIFEST, WEIGHTS):
        (mount / "probe_one" / name).symlink_to(f"..data/{name}")
    assert load_artifact(mount / "probe_one", root=mount).manifest.name == "probe_one"


# 28: weights and manifests that lie

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


# 29: another model


@pytest.fixture
def sound(folder: Path, root: Path) -> Artifact:
    return load_artifact(folder, root=root)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"architecture": "GPT2LMHeadModel"}, ("LlamaForCausalLM", "GPT2LMHeadModel")),
        ({"layers": 12}, ("6", "12")),
        ({"width": 16}, ("8", "16")),
        ({"tokenizer_digest": "d" * 64}, ("b" * 12, "d" * 12)),
    ],
)
def test_artifact_for_another_model_is_refused_naming_both_sides(
    sound: Artifact, change: dict[str, Any], both_sides: tuple[str, str]
) -> None:
    with pytest.raises(ArtifactError) as caught:
        fit(sound.manifest, replace(MODEL, **change))
    assert caught.value.reason is ArtifactReason.OTHER_MODEL
    assert all(side in caught.value.text for side in both_sides)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"weights_digest": "e" * 64}, ("a" * 12, "e" * 12)),
        ({"weights_digest": ""}, ("a" * 12, "(not known)")),
        ({"tokenizer_digest": ""}, ("b" * 12, "(not known)")),
        ({"dtype": "bfloat16"}, ("float32", "bfloat16")),
        ({"quantisation": "awq"}, ("none", "awq")),
        ({"engine": "vllm"}, ("transformers", "vllm")),
        ({"engine": ""}, ("transformers", "(not known)")),
    ],
)
def test_another_serving_configuration_makes_an_artifact_stale_naming_both_sides(
    sound: Artifact, change: dict[str, Any], both_sides: tuple[str, str]
) -> None:
    verdict = fit(sound.manifest, replace(MODEL, **change))
    assert verdict.evidence is Evidence.STALE
    assert all(side in verdict.reason for side in both_sides)
    assert "a" * 13 not in verdict.reason


def test_refusal_comes_before_staleness(sound: Artifact) -> None:
    with pytest.raises(ArtifactError):
        fit(sound.manifest, replace(MODEL, width=16, dtype="bfloat16"))


@pytest.mark.parametrize("evidence", ["unverified", "decodable", "used"])
def test_the_same_model_keeps_the_manifests_own_evidence(root: Path, evidence: str) -> None:
    manifest = write_artifact(root, "another", evidence=evidence)
    other_engine_version: ModelIdentity = replace(MODEL, name="renamed", engine_version="9.9")
    assert fit(manifest, other_engine_version).evidence is Evidence(evidence)
