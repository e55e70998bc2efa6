"""States collected from a serving engine make the same store as the model's own, bound to that engine, and so a gate admits it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.activations.model import open_model
from probes.activations.store import ActivationStore
from probes.artifact import fit, load_artifact
from probes.cli import main
from probes.release.pack import pack
from sidecar.cli import main as sidecar
from sidecar.types import Evidence, ModelIdentity, TapPoint
from tests.lab.drafts import make_draft
from tests.served import ServedModel
from tests.service_fixtures import private_folder
from tests.tap.models import save_tiny

pytestmark = pytest.mark.process
LAYERS = (1, 2)
COUNT = 160


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def identity(model: Path) -> ModelIdentity:
    """The same model in an engine that fuses weights."""
    return replace(open_model(model).identity, engine="vllm", engine_version="1", weights_digest="e" * 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draws = np.random.default_rng(0)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    path = tmp_path_factory.mktemp("data") / "data.csv"
    texts = [" ".join(draws.choice(words, size=int(draws.integers(3, 9)))) for _ in range(COUNT)]
    path.write_text("text,label\n" + "".join(f"{text} {n},{n % 2}\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture(scope="module")
def here(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("stores") / "here"
    assert main([*_collect(model, data), "--into", str(into), "--processes", "1"]) == 0
    return into


@pytest.fixture
def home() -> Iterator[Path]:
    with private_folder() as folder:
        yield folder


@pytest.fixture
def engine(model: Path, identity: ModelIdentity, home: Path) -> Iterator[ServedModel]:
    with ServedModel(open_model(model).model, identity, _address(home)) as served:
        yield served


def _address(home: Path) -> str:
    return f"unix:{home}/run/s"


def _collect(model: Path, data: Path) -> list[str]:
    return ["collect", "--model", str(model), "--data", str(data), "--layers", ",".join(map(str, LAYERS))]


def _from(engine: ServedModel, home: Path) -> list[str]:
    return ["--engine", engine.url, "--listen", _address(home)]


@pytest.mark.shows("transformers", "collecting for the lab")
def test_the_store_is_the_same_but_for_whose_states_they_are(
    model: Path, data: Path, here: Path, engine: ServedModel, identity: ModelIdentity, home: Path, capsys: Any
) -> None:
    there = home / "there"
    assert main([*_collect(model, data), "--into", str(there), *_from(engine, home)]) == 0
    assert "tokens in" in capsys.readouterr().out
    ours, theirs = ActivationStore.open(here), ActivationStore.open(there)
    assert len(ours) == len(engine.calls) == COUNT
    assert ours.texts == theirs.texts
    for layer in LAYERS:
        for text in range(len(ours)):
            assert ours.tokens(text) == theirs.tokens(text)
            np.testing.assert_allclose(ours.at(TapPoint(layer))[text], theirs.at(TapPoint(layer))[text], atol=1e-5)
    apart = {"model", "hook_points"}
    assert ours.facts.model_dump(exclude=apart) == theirs.facts.model_dump(exclude=apart)
    told = theirs.facts.model
    assert (told.engine, told.weights_digest, told.dtype) == ("vllm", identity.weights_digest, identity.dtype)
    assert told.tokenizer_digest == ours.facts.model.tokenizer_digest
    assert not there.with_name("there.recorded").exists(), "a whole store needs no recordings"


def test_a_gate_that_passes_on_it_admits_the_probe_where_that_engine_serves(
    model: Path, data: Path, here: Path, engine: ServedModel, identity: ModelIdentity, home: Path
) -> None:
    assert main([*_collect(model, data), "--into", str(home / "there"), *_from(engine, home)]) == 0
    store = ActivationStore.open(here)
    make_draft(
        home / "draft", store, evaluated={"auroc": 0.51, "auroc_interval": (0.42, 0.6)}
    )  # its texts mean nothing
    pack(home / "draft", home / "probe")
    before = load_artifact(home / "probe", root=home).manifest
    assert fit(before, identity).evidence is Evidence.STALE
    gate = ["gate", "--artifact", str(home / "probe"), "--reference", str(here), "--candidate", str(home / "there")]
    assert main([*gate, "--fpr-margin", "0.1", "--recall-margin", "0.1", "--admit", str(home / "admitted")]) == 0
    after = load_artifact(home / "admitted", root=home).manifest
    assert fit(after, identity).evidence is before.evidence is not Evidence.STALE
    assert fit(after, replace(identity, weights_digest="d" * 64)).evidence is Evidence.STALE


def test_what_was_done_is_not_asked_again_and_a_whole_store_needs_no_engine(
    model: Path, data: Path, engine: ServedModel, home: Path, capsys: Any
) -> None:
    refused = {12}
    engine.refuse = lambda call: 400 if len(call.tokens) in refused else 0
    command = [*_collect(model, data), "--into", str(home / "there"), *_from(engine, home)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "not every text was recorded" in said
    assert "data.csv row" in said
    assert "this one is not taken" in said
    assert not (home / "there").exists()
    refused.clear()
    asked = len(engine.calls)
    assert main(command) == 0
    assert asked < len(engine.calls) < asked + COUNT, "only those that were refused"
    asked = len(engine.calls)
    assert main(command) == 0
    assert len(engine.calls) == asked
    assert "nothing was left to do" in capsys.readouterr().out
    assert main([*command, "--skip-positions", "2"]) == 1
    assert "holds activations of something else (other: skip_positions)" in capsys.readouterr().err


def test_prompts_that_were_recorded_elsewhere_make_the_same_store(
    model: Path, data: Path, here: Path, engine: ServedModel, home: Path, capsys: Any
) -> None:
    prompts, kept = home / "prompts.jsonl", home / "kept"
    assert main([*_collect(model, data), "--prompts", str(prompts)]) == 0
    assert len(prompts.read_text().splitlines()) == COUNT
    record = [
        "record",
        "--into",
        str(kept),
        "--tap-points",
        "1,2,3",
        "--address",
        _address(home),
        "--ask",
        str(prompts),
    ]
    assert sidecar([*record, "--server", engine.url]) == 0
    read = [*_collect(model, data), "--recorded", str(kept)]
    assert main([*read, "--into", str(home / "there")]) == 0
    ours, theirs = ActivationStore.open(here), ActivationStore.open(home / "there")
    assert theirs.facts.tap_points == ours.facts.tap_points, "of three that were recorded"
    np.testing.assert_allclose(ours.at(TapPoint(2))[7], theirs.at(TapPoint(2))[7], atol=1e-5)
    lost = min(kept.glob("*.safetensors"))
    lost.unlink()
    assert main([*read, "--into", str(home / "again")]) == 1
    assert f"lacks 1 of {COUNT} texts, " in capsys.readouterr().err
    assert main([*read, "--layers", "0", "--into", str(home / "again")]) == 1
    assert "has no blocks.0.resid_post; it has blocks.1.resid_post" in capsys.readouterr().err


def test_recordings_of_another_model_or_tokenizer_are_refused(
    model: Path, data: Path, home: Path, identity: ModelIdentity, capsys: Any
) -> None:
    from sidecar.recorded import Origin, write_origin

    for number, (other, words) in enumerate(
        (
            (replace(identity, tokenizer_digest="f" * 64), "tokenizer: "),
            (replace(identity, tokenizer_digest=""), "(not known) in vllm"),
            (replace(identity, layers=40), "blocks: 4 here, 40 in vllm"),
            (replace(identity, weights_digest=""), "did not say its weights digest"),
        )
    ):
        folder = home / str(number)
        folder.mkdir()
        write_origin(folder, Origin(other, (TapPoint(1), TapPoint(2))))
        assert main([*_collect(model, data), "--recorded", str(folder), "--into", str(home / "into")]) == 1
        assert words in capsys.readouterr().err
    for text in ("{}", '{"schema": "stethoscope.recorded/1", "model": {"name": 3}, "tap_points": []}', "no"):
        (folder / "engine.json").write_text(text)
        assert main([*_collect(model, data), "--recorded", str(folder), "--into", str(home / "into")]) == 1
        assert "engine.json" in capsys.readouterr().err
    assert not (home / "into").exists()


def test_a_store_is_never_of_two_engines(model: Path, data: Path, engine: ServedModel, home: Path, capsys: Any) -> None:
    kept, command = home / "kept", [*_collect(model, data), "--into", str(home / "there")]
    assert main([*command, "--recorded", str(kept), *_from(engine, home)]) == 0
    shard = next((home / "there").glob("states-*"))
    shard.unlink()
    told = json.loads((kept / "engine.json").read_text())
    told["model"]["dtype"] = "bfloat16"
    (kept / "engine.json").write_text(json.dumps(told))
    assert main([*command, "--recorded", str(kept)]) == 1
    assert "holds activations of something else (other: model)" in capsys.readouterr().err


def test_what_is_only_for_a_model_that_is_run_here_is_refused_beside_an_engine(
    model: Path, data: Path, home: Path, capsys: Any
) -> None:
    command = [*_collect(model, data), "--into", str(home / "there")]
    for flags, words in (
        (("--engine", "http://127.0.0.1:9", "--model-dtype", "bfloat16"), "the engine has its own"),
        (("--engine", "127.0.0.1:9"), "want a URL"),
        (("--listen", "unix:/x"), "only with --engine"),
    ):
        assert main([*command, *flags]) == 1
        assert words in capsys.readouterr().err
