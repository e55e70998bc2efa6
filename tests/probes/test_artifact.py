"""Artifacts that are sound: written whole, read back exactly, the same bytes for the same numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from probes.artifact import MANIFEST, WEIGHTS, load_artifact, save_artifact
from probes.weights import dump_weights, parse_weights
from sidecar.errors import ArtifactError
from sidecar.types import FloatArray
from tests.probes.builders import WIDTH, direction, manifest_fields, write_artifact


def tensors(seed: int, width: int = WIDTH) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((width, 1)).astype(np.float32), rng.standard_normal(1).astype(np.float32)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    directions, offsets = tensors(1)
    saved = save_artifact(tmp_path / "a", manifest_fields(), directions, offsets)
    artifact = load_artifact(tmp_path / "a", root=tmp_path)
    assert artifact.manifest == saved
    np.testing.assert_array_equal(artifact.directions, directions)
    np.testing.assert_array_equal(artifact.offsets, offsets)
    assert artifact.directions.dtype == artifact.offsets.dtype == np.dtype(np.float32)


def test_the_public_reader_reads_the_same_numbers(tmp_path: Path) -> None:
    write_artifact(tmp_path, "a_probe")
    artifact = load_artifact(tmp_path / "a_probe", root=tmp_path)
    public = load((tmp_path / "a_probe" / WEIGHTS).read_bytes())
    np.testing.assert_array_equal(artifact.directions, public["directions"])
    np.testing.assert_array_equal(artifact.offsets, public["offsets"])


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    for _ in range(2):
        write_artifact(tmp_path / "one", "a_probe")
    write_artifact(tmp_path / "two", "a_probe")
    assert sorted(path.name for path in (tmp_path / "one" / "a_probe").iterdir()) == [MANIFEST, WEIGHTS]
    for name in (MANIFEST, WEIGHTS):
        one, two = (tmp_path / folder / "a_probe" / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_digest_moves_with_either_file_and_content_digest_with_every_field(tmp_path: Path) -> None:
    def digests(folder: str, directions: FloatArray, **changes: str) -> tuple[str, str]:
        save_artifact(tmp_path / folder, manifest_fields(**changes), directions, np.zeros(1, np.float32))
        artifact = load_artifact(tmp_path / folder, root=tmp_path)
        return artifact.digest, artifact.manifest.content_digest

    found = [
        digests("a", direction(0)),
        digests("b", direction(1)),
        digests("c", direction(0), description="other words"),
    ]
    assert len({digest for digest, _ in found}) == 3
    assert len({content for _, content in found}) == 3


def test_loaded_arrays_cannot_be_changed(tmp_path: Path) -> None:
    write_artifact(tmp_path, "a_probe")
    assert not load_artifact(tmp_path / "a_probe", root=tmp_path).directions.flags.writeable


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.data())
def test_a_damaged_weights_file_is_refused_or_reads_finite_numbers(width: int, seed: int, data: st.DataObject) -> None:
    sound = dump_weights(*tensors(seed, width))
    damaged = bytearray(sound)
    at = data.draw(st.integers(0, len(sound) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    for candidate in (bytes(damaged), sound[:at], sound + sound[:at]):
        try:
            weights = parse_weights(candidate)
        except ArtifactError:
            continue
        assert np.isfinite(weights.directions).all()
        assert weights.directions.shape == (width, 1)


def test_what_the_service_imports_stays_light() -> None:
    code = (
        "import sys, probes.artifact, probes.registry; "
        "print([name for name in ('torch', 'sklearn', 'scipy', 'grpc', 'transformers', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
