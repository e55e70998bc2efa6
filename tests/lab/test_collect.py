"""Collected activations are the model's own on every text, whole after any interruption, and made once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress

from probes.activations.collect import Collected, Options, collect
from probes.activations.computing import _check
from probes.activations.feeding import Feeding
from probes.activations.model import open_model, prepared
from probes.activations.shared import Shared, start_helper
from probes.activations.store import ActivationStore
from probes.activations.writer import ShardWriter
from probes.cli import main
from probes.data.reading import Loaded, Sources, load_texts
from probes.errors import LabError
from sidecar.types import FloatArray, Site, TapPoint
from tests.lab.planted import _VOCABULARY
from tests.tap.models import WIDTH, save_tiny

SITES = tuple(Site)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16384}))
    return folder


def write_data(folder: Path, count: int = 60, words: int = 12, name: str = "data.csv") -> str:
    random = np.random.default_rng(3)
    lines = [
        f"{' '.join(random.choice(_VOCABULARY, size=random.integers(2, words)))} {number},{number % 2}"
        for number in range(count)
    ]
    path = folder / name
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(tmp_path)


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    return tmp_path / "acts"


def loaded(data: str) -> Loaded:
    return load_texts(Sources(data=(data,)))


def run(model: Path, data: str, into: Path, bars: Progress | None = None, **how: Any) -> Collected:
    return collect(model, loaded(data), into, Options(**{"processes": 1, **how}), bars or Progress(disable=True))


def alone(model: Path, ids: list[int]) -> list[FloatArray]:
    lab = open_model(model)
    with torch.inference_mode():
        states = lab.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in states]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Interrupted(Progress):
    """A bar during whose n-th step of reading somebody presses Ctrl-C."""

    def __init__(self, after: int) -> None:
        super().__init__(disable=True)
        self._left = after

    def update(self, *args: Any, **fields: Any) -> None:
        if str(fields.get("description", "")).startswith("reading"):
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        super().update(*args, **fields)


def test_states_are_those_of_a_forward_of_each_text_alone(model: Path, data: str, acts: Path) -> None:
    store = run(model, data, acts, layers="0,2").store
    assert store.facts.tap_points == ("blocks.0.resid_post", "blocks.2.resid_post")
    for text in range(0, len(store), 7):
        wanted = alone(model, store.tokens(text))
        for layer in (0, 2):
            np.testing.assert_allclose(store.at(TapPoint(layer))[text], wanted[layer + 1][1:], atol=1e-5)


def test_the_feature_contract_is_recorded(model: Path, data: str, acts: Path) -> None:
    facts = run(model, data, acts, layers="1", sites=SITES, skip_positions=2, licence="CC0").store.facts
    identity = open_model(model).identity
    assert facts.model.model_dump() == {
        name: getattr(identity, name)
        for name in (
            "name", "architecture", "layers", "weights_digest", "tokenizer_digest", "dtype", "quantisation", "engine",
        )
    } | {"encoder_layers": None}  # fmt: skip
    assert facts.width == WIDTH
    assert facts.hook_points == {
        "blocks.1.resid_post": "output of decoder block 1: the residual stream before any norm",
        "blocks.1.attn_heads": "input of self_attn.o_proj of decoder block 1: the outputs of its heads, side by side",
        "blocks.1.mlp_out": "output of mlp of decoder block 1, before it is added to the residual stream",
    }
    assert (facts.skip_positions, facts.norm, facts.token_span, facts.chat) == (2, "none", "prompt", True)
    assert facts.chat_template_digest == open_model(model).template_digest
    assert (facts.data_name, facts.data_digest, facts.data_licence) == ("data", loaded(data).digest, "CC0")
    assert (facts.positive_label, facts.negative_label, facts.max_tokens) == ("1", "0", 16384)


def test_a_text_of_ten_thousand_tokens_is_read_or_cut_as_asked(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    long = {"text": " ".join(_VOCABULARY) + " ", "label": 1}
    file.write_text(json.dumps(long) + "\n" + json.dumps({"text": "short", "label": 0}) + "\n")
    store = run(model, str(file), tmp_path / "whole", layers="1").store
    assert store.lengths[0] >= 5_000
    assert store.at(TapPoint(1))[0].shape == (store.lengths[0], WIDTH)
    with pytest.raises(LabError, match=r"long\.jsonl line 1: the text has .* tokens and 100 are read"):
        run(model, str(file), tmp_path / "refused", layers="1", feeding=Feeding(max_tokens=100))
    assert not (tmp_path / "refused").exists()
    cut = run(model, str(file), tmp_path / "cut", layers="1", feeding=Feeding(max_tokens=100, truncate=True)).store
    assert cut.lengths[0] == 99
    assert cut.facts.truncated == 1
    np.testing.assert_allclose(cut.at(TapPoint(1))[0][:80], store.at(TapPoint(1))[0][:80], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_states_are_the_rounded_ones(model: Path, data: str, tmp_path: Path, dtype: Any) -> None:
    wide = run(model, data, tmp_path / "wide", layers="1").store.at(TapPoint(1))
    narrow = run(model, data, tmp_path / "narrow", layers="1", dtype=dtype).store.at(TapPoint(1))
    step = 2**-10 if dtype == "float16" else 2**-7
    for one, other in zip(wide, narrow, strict=True):
        np.testing.assert_allclose(other, one, rtol=step, atol=1e-6)
    size = sum(path.stat().st_size for path in (tmp_path / "narrow").glob("states*"))
    assert size < 0.6 * sum(path.stat().st_size for path in (tmp_path / "wide").glob("states*"))


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_run_goes_on_where_it_was_and_gives_the_same_bytes(
    model: Path, data: str, tmp_path: Path
) -> None:
    whole = run(model, data, tmp_path / "whole", layers="1")
    with pytest.raises(KeyboardInterrupt):
        run(model, data, tmp_path / "acts", Interrupted(after=3), layers="1")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "acts").glob("states-*")}
    assert 0 < len(kept) < len(list((tmp_path / "whole").glob("states-*")))
    rest = run(model, data, tmp_path / "acts", layers="1")
    assert 0 < rest.spent.tokens < whole.spent.tokens
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")
    again = run(model, data, tmp_path / "acts", layers="1")
    assert again.spent.tokens == 0
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")


def test_other_layers_data_or_models_are_never_mixed_into_a_folder(model: Path, data: str, tmp_path: Path) -> None:
    acts = tmp_path / "acts"
    run(model, data, acts, layers="1")
    before = contents(acts)
    other = save_tiny(tmp_path / "other")
    with pytest.raises(LabError, match="other: tap_points, widths, hook_points"):
        run(model, data, acts, layers="2")
    with pytest.raises(LabError, match="other: data_digest"):
        run(model, write_data(tmp_path, 50), acts, layers="1")
    with pytest.raises(LabError, match="other: model, max_tokens"):
        run(other, write_data(tmp_path), acts, layers="1")
    assert contents(acts) == before


def test_two_runs_do_not_write_into_one_folder(model: Path, data: str, acts: Path) -> None:
    import fcntl

    acts.mkdir()
    with (acts / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LabError, match="another process collects into"):
            run(model, data, acts, layers="1")


def test_a_model_that_gives_no_number_names_the_text_and_keeps_what_is_whole(
    model: Path, data: str, tmp_path: Path
) -> None:
    broken = save_tiny(tmp_path / "broken")
    lab = open_model(broken)
    marked = loaded(data).texts[20].text.split()[0]
    with torch.no_grad():
        token = lab.tokenizer(marked)["input_ids"][0]
        lab.model.get_input_embeddings().weight[token] = float("inf")
    lab.model.save_pretrained(broken)
    with pytest.raises(LabError, match=r"data\.csv row \d+: blocks\.1\.resid_post: an activation is NaN or infinite"):
        run(broken, data, tmp_path / "acts", layers="1")


def test_texts_that_count_as_one_are_told_before_they_are_collected(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "form.csv"
    rows = [f"this film of the year {word},{number % 2}" for number, word in enumerate(("pleases", "bores", "is"))]
    data.write_text("text,label\n" + "\n".join([*rows, "another,0"]))
    call = ["collect", "--data", str(data), "--model", str(model), "--into", str(tmp_path / "form"), "--layers", "0"]
    assert main([*call, "--processes", "1"]) == 0
    assert "; 2 are independent (texts that share 5 words in a row, " in capsys.readouterr().out


def test_the_command_reads_collects_and_says_what_it_did(
    model: Path, data: str, acts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["collect", "--data", data, "--model", str(model), "--into", str(acts), "--layers", "0-1"]
    assert main([*call, "--sites", "resid_post,attn_out", "--plain", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    assert "60 texts of 1 data set: 30 '1' (positive), 30 '0'; left out of 60 rows: none" in told
    assert "tokens/s by 1 process" in told
    store = ActivationStore.open(acts)
    assert store.facts.tap_points == (
        "blocks.0.resid_post", "blocks.1.resid_post", "blocks.0.attn_heads", "blocks.1.attn_heads",
    )  # fmt: skip
    assert not store.facts.chat
    assert main([*call, "--sites", "resid_post,attn_out", "--plain"]) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert main(call) == 1
    assert "probes: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--sites", "resid_pre"], "--sites 'resid_pre': there are resid_post, attn_out and mlp_out"),
        (["--layers", "9"], "--layers '9': the model's blocks are 0 to 3"),
        (["--skip-positions", "99"], "--skip-positions 99"),
        (["--processes", "0"], "--processes 0"),
        (["--max-tokens", "99999"], "--max-tokens 99999"),
        (["--model", "/nowhere"], "/nowhere is no folder"),
        (["--model", "/nowhere.gguf"], "/nowhere.gguf is not there"),
    ],
)
def test_a_wrong_option_is_said_in_one_line(
    model: Path, data: str, acts: Path, wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collect", "--data", data, "--model", str(model), "--into", str(acts), *wrong]) == 1
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STETHOSCOPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF, or so it says")
    with pytest.raises(LabError, match=r"a\.gguf cannot be expanded"):
        prepared(tmp_path / "a.gguf", Progress(disable=True))
    assert prepared(tmp_path, Progress(disable=True)) == tmp_path


def check_for(seconds: float, shared: Shared, helper: Any) -> None:
    """What a process tells on its way out may take a moment to arrive."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _check(shared, [helper])


@pytest.mark.process
@pytest.mark.usefixtures("small_shards")
def test_a_helper_that_fails_or_is_killed_is_heard_of(model: Path, data: str, acts: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(model, data, acts, Interrupted(after=1), layers="1")
    shared = Shared(ShardWriter(acts).missing())
    failing = start_helper(tmp_path / "nowhere", "float32", acts, shared)
    killed = start_helper(model, "float32", acts, shared)
    killed.kill()
    killed.join()
    with pytest.raises(LabError, match="ended by signal 9"):
        _check(shared, [killed])
    failing.join()
    with pytest.raises(LabError, match="nowhere is no folder"):
        check_for(30, shared, failing)
    start_helper(model, "float32", acts, shared).join()
    assert shared.done
    assert ActivationStore.open(acts).lengths.sum() > 0
    shared.close()


@pytest.mark.process
def test_two_processes_that_are_killed_leave_a_store_that_the_next_run_finishes(model: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path, 1000, 20)
    acts = tmp_path / "acts"
    call = [sys.executable, "-m", "probes.cli", "collect", "--data", data, "--model", str(model), "--into", str(acts)]
    started = subprocess.Popen([*call, "--layers", "0-3", "--processes", "2"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(acts.glob("states-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    kept = len(list(acts.glob("states-*")))
    assert kept >= 2
    with pytest.raises(LabError, match=r"is missing; the same `probes collect` command makes it"):
        ActivationStore.open(acts)
    rest = run(model, data, acts, layers="0-3", processes=2)
    assert rest.spent.processes == 2
    assert not multiprocessing.active_children()
    assert not list(acts.glob(".*.part"))
    np.testing.assert_allclose(rest.store.at(TapPoint(2))[5], alone(model, rest.store.tokens(5))[3][1:], atol=1e-5)


@pytest.mark.model
def test_smollm2_is_read_as_it_computes(smollm2: Path, tmp_path: Path) -> None:
    texts = load_texts(Sources(data=("sae:92_glue_sst2",), limit=20))
    made = collect(smollm2, texts, tmp_path / "acts", Options(layers="0,3", processes=1), Progress(disable=True))
    assert made.store.facts.model.name == "SmolLM2-135M-Instruct"
    assert len(made.store) == 20
    ids = made.store.tokens(3)
    wanted = alone(smollm2, ids)
    for layer in (0, 3):
        found = made.store.at(TapPoint(layer))[3]
        assert found.shape == (len(ids) - 1, 576)
        np.testing.assert_allclose(found, wanted[layer + 1][1:], rtol=1e-3, atol=1e-3)
