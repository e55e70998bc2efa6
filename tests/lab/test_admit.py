"""A gate that passed is written into the artifact, and counts for that serving config alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from probes.activations.store import ActivationStore
from probes.artifact import fit, load_artifact
from probes.cli import main
from probes.release.pack import pack
from sidecar.types import Evidence, ModelIdentity
from tests.lab.drafts import make_draft
from tests.lab.planted import planted_store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts in float32, in float16, served as bfloat16, and moved; an artifact of the first."""
    root = tmp_path_factory.mktemp("admit")
    planted_store(root / "float32", n=640, layers=2)
    planted_store(root / "float16", n=640, layers=2, dtype="float16", served_dtype="float16")
    planted_store(root / "bfloat16", n=640, layers=2, dtype="float16", served_dtype="bfloat16")
    planted_store(root / "moved", n=640, layers=2, shift=1.0)
    make_draft(root / "draft", ActivationStore.open(root / "float32"))
    pack(root / "draft", root / "artifact")
    return root


def gated(root: Path, artifact: Path, candidate: str, into: Path, *, reference: str = "float32") -> int:
    given = ["--artifact", str(artifact), "--reference", str(root / reference), "--candidate", str(root / candidate)]
    return main(["gate", *given, "--admit", str(into)])


def served(root: Path, store: str) -> ModelIdentity:
    facts = ActivationStore.open(root / store).facts
    told = facts.model.model_dump(exclude={"encoder_layers"})
    return ModelIdentity(**told, width=facts.width)


def test_what_passed_is_no_longer_stale_there_and_still_is_elsewhere(root, tmp_path):
    home, half = served(root, "float32"), replace(served(root, "float32"), dtype="float16")
    before = load_artifact(root / "artifact", root=root).manifest
    assert fit(before, half).evidence is Evidence.STALE
    assert gated(root, root / "artifact", "float16", tmp_path / "admitted") == 0
    after = load_artifact(tmp_path / "admitted", root=tmp_path).manifest
    assert [fit(after, one).evidence for one in (home, half)] == [before.evidence] * 2
    for other in ({"dtype": "bfloat16"}, {"engine": "vllm"}, {"weights_digest": "e" * 64}, {"quantisation": "int8"}):
        assert fit(after, replace(half, **other)).evidence is Evidence.STALE
    assert fit(after, replace(half, tokenizer_digest="")).evidence is Evidence.STALE
    assert (before.version, after.version) == ("1.0.0", "1.0.1")
    assert after.signature is None
    (admission,) = after.admitted
    assert (admission.dtype, admission.rows) == ("float16", 640)


def test_a_second_gate_of_the_same_config_takes_the_place_of_the_first(root, tmp_path):
    assert gated(root, root / "artifact", "float16", tmp_path / "once") == 0
    assert gated(root, tmp_path / "once", "float16", tmp_path / "twice") == 0
    twice = load_artifact(tmp_path / "twice", root=tmp_path).manifest
    assert (len(twice.admitted), twice.version) == (1, "1.0.2")


def test_what_did_not_pass_is_not_admitted(root, tmp_path, capsys):
    assert gated(root, root / "artifact", "moved", tmp_path / "none") == 1
    assert "is not admitted: the gate says THRESHOLD_STALE" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("candidate", ["float16", "bfloat16"], ids=["the same states twice", "another foreign config"])
def test_a_comparison_with_a_config_where_it_is_not_at_home_admits_nothing(root, tmp_path, capsys, candidate):
    assert gated(root, root / "artifact", candidate, tmp_path / "none", reference="float16") == 1
    said = capsys.readouterr()
    assert "PASS" in said.out, "what is compared there is alike"
    assert "is not at home where the reference was collected (weights aaaaaaaaaaaa, float16, " in said.err
    assert (
        "collect the reference where it is: weights aaaaaaaaaaaa, float32, quantisation none, transformers" in said.err
    )
    assert not (tmp_path / "none").exists()


def test_what_was_admitted_may_be_the_reference_of_the_next(root, tmp_path):
    assert gated(root, root / "artifact", "float16", tmp_path / "once") == 0
    assert gated(root, tmp_path / "once", "bfloat16", tmp_path / "twice", reference="float16") == 0
    twice = load_artifact(tmp_path / "twice", root=tmp_path).manifest
    assert [one.dtype for one in twice.admitted] == ["float16", "bfloat16"]


def test_texts_that_it_cannot_tell_apart_at_home_admit_nothing(root, tmp_path, capsys):
    for name, dtype in (("weak", "float32"), ("weak16", "float16")):
        planted_store(tmp_path / name, n=640, layers=2, strength=0.5, dtype=dtype, served_dtype=dtype)
    assert gated(tmp_path, root / "artifact", "weak16", tmp_path / "none", reference="weak") == 1
    said = capsys.readouterr()
    assert "PASS" in said.out
    assert "is not admitted: where it is at home its AUROC on these texts is 0." in said.err
    assert "compare it on texts of the kind that it is for" in said.err
    assert not (tmp_path / "none").exists()
