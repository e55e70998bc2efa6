"""A file from elsewhere is data, never code: what is damaged or of another kind is refused by its name, and is never run."""

from __future__ import annotations

import contextlib
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes.errors import LabError
from probes.release.transfer import FORMATS, export_probe
from tests.lab.planted import planted_store
from tests.lab.transfers import packed, save_npz
from tests.probes.broken import Bomb

BAD_NPZ = {
    "no std": ({"std": None}, "lacks std"),
    "a std of 0": ({"std": np.array([1, 1, 0, 1.0])}, "std is not above 0"),
    "a NaN": ({"weights": np.array([1, np.nan, 0, 1])}, "NaN"),
    "lengths that differ": ({"mean": np.zeros(3)}, "differ in length"),
    "texts": ({"weights": np.array(list("abcd"))}, "not a row of numbers"),
    "another version": ({"metadata": np.array('{"format_version": 2}')}, "format_version 1"),
    "metadata that is no JSON": ({"metadata": np.array("{")}, "not sound JSON"),
    "all zeros": ({"weights": np.zeros(4)}, "all zeros"),
}


@pytest.mark.parametrize(("changes", "text"), BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_an_unsound_npz_is_refused_by_name(tmp_path, changes, text):
    save_npz(tmp_path / "odd", **changes)
    with pytest.raises(LabError, match=f"odd.*{text}"):
        FORMATS["npz"].read(tmp_path / "odd")


def test_a_pickle_inside_an_npz_is_never_run(tmp_path):
    save_npz(tmp_path / "odd", weights=np.array([Bomb(tmp_path / "exploded")], dtype=object))
    with pytest.raises(LabError, match=r"odd: not an \.npz of plain arrays"):
        FORMATS["npz"].read(tmp_path / "odd")
    assert not (tmp_path / "exploded").exists()


def test_a_pickled_model_is_never_run(tmp_path):
    (tmp_path / "odd").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    for form in FORMATS.values():
        with pytest.raises(LabError, match="odd"):
            form.read(tmp_path / "odd")
    assert not (tmp_path / "exploded").exists()


def test_a_model_with_a_type_that_nobody_allowed_is_refused(tmp_path):
    import skops.io
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    model.extra_ = Stranger()
    skops.io.dump(model, tmp_path / "odd")
    with pytest.raises(LabError, match=r"not trusted.*Stranger"):
        FORMATS["sklearn"].read(tmp_path / "odd")


class Stranger:
    """A type that skops does not know."""


def test_a_model_that_is_not_linear_or_tells_three_classes_apart_is_refused(tmp_path):
    import skops.io
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    skops.io.dump(LogisticRegression().fit([[0.0], [1.0], [2.0]], [0, 1, 2]), tmp_path / "three")
    skops.io.dump(StandardScaler().fit([[0.0], [1.0]]), tmp_path / "scaler")
    skops.io.dump(LogisticRegression(), tmp_path / "unfitted")
    for name in ("three", "scaler", "unfitted"):
        with pytest.raises(LabError, match=name):
            FORMATS["sklearn"].read(tmp_path / name)


def test_an_archive_that_unpacks_to_more_than_any_probe_is_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as packed_up,
        packed_up.open("weights.npy", "w") as file,
    ):
        for _ in range(70):
            file.write(bytes(1 << 20))
    for form in ("npz", "sklearn"):
        with pytest.raises(LabError, match="larger than any probe"):
            FORMATS[form].read(tmp_path / "bomb")


def test_tensors_of_other_names_are_refused_with_theirs(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(3, np.float32), "c": np.ones(1, np.float32)}, tmp_path / "file")
    with pytest.raises(LabError, match="it has c, w"):
        FORMATS["safetensors"].read(tmp_path / "file")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of every format."""
    folder = tmp_path_factory.mktemp("sound")
    artifact = packed(folder, planted_store(folder / "acts", n=120))
    for form in FORMATS:
        export_probe(artifact, form, folder / form)
    return {form: (folder / form).read_bytes() for form in FORMATS}


@given(data=st.data(), form=st.sampled_from(sorted(FORMATS)))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_are_read_or_refused_and_nothing_else(tmp_path, sound, data, form):
    content = bytearray(sound[form])
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "odd").write_bytes(content)
    with contextlib.suppress(LabError):
        assert np.isfinite(FORMATS[form].read(tmp_path / "odd").directions).all()


def test_a_text_that_is_no_utf8_in_a_steering_vector_is_refused(tmp_path, sound):
    (tmp_path / "odd").write_bytes(sound["steering"].replace(b'"mean"', b'"me\xffn"'))
    with pytest.raises(LabError, match="odd"):
        FORMATS["steering"].read(tmp_path / "odd")


@pytest.mark.parametrize("form", ["npz", "sklearn"])
@pytest.mark.parametrize(
    "offset", [8, 10]
)  # in the archive's directory: encrypted, and compressed in a way that nobody knows
def test_an_archive_that_python_cannot_unpack_is_refused(tmp_path, sound, form, offset):
    content = bytearray(sound[form])
    content[content.index(b"PK\x01\x02") + offset] = 0x61
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(LabError, match="odd"):
        FORMATS[form].read(tmp_path / "odd")


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_file_and_a_folder_are_named(tmp_path, form):
    with pytest.raises(LabError, match="missing"):
        FORMATS[form].read(tmp_path / "missing")
    with pytest.raises(LabError, match="not a file"):
        FORMATS[form].read(tmp_path)
