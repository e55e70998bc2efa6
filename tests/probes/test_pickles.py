"""A pickle, whatever it is called, is refused, and its payload does not run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from probes.artifact import WEIGHTS
from probes.registry import load_folder
from sidecar.errors import ArtifactError, ArtifactReason
from tests.probes.broken import Bomb, refusal


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
