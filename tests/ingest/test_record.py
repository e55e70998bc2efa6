"""What `sidecar record` writes is what the engine computed, whole and of one engine; what is missing is named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidecar.cli import EX_CONFIG, EX_DATA, EX_UNAVAILABLE, main
from sidecar.recorded import read_origin
from sidecar.states_file import read_states
from sidecar.tap.identity import identify
from sidecar.types import ModelIdentity, TapPoint
from tests.faults.process import plain_environment
from tests.served import Call, ServedModel
from tests.service_fixtures import private_folder
from tests.tap.models import LAYERS, tiny
from tests.waiting import until

PROMPTS = {"one": [5, 6, 7, 8, 9, 10, 11], "two": [5, 6, 7, 8, 12], "three": [20]}
POINTS = (TapPoint(0), TapPoint(2))
Record = Callable[..., int]


@pytest.fixture
def home() -> Iterator[Path]:
    with private_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture(scope="module")
def identity(model: Any) -> ModelIdentity:
    return replace(identify(model, name="tiny"), tokenizer_digest="a" * 64, engine="vllm")


@pytest.fixture
def engine(model: Any, identity: ModelIdentity, home: Path) -> Iterator[ServedModel]:
    with ServedModel(model, identity, _address(home)) as served:
        yield served


@pytest.fixture
def record(home: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    for name in ("STETHOSCOPE_ADDRESS", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*flags: str, server: str = "", prompts: dict[str, list[int]] | None = None, points: str = "0,2") -> int:
        asked = home / "prompts.jsonl"
        lines = [json.dumps({"id": name, "tokens": ids}) for name, ids in (prompts or PROMPTS).items()]
        asked.write_text("".join(f"{line}\n" for line in lines))
        given = ["--into", str(home / "into"), "--tap-points", points, "--address", _address(home), "--wait-s", "20"]
        return main(["record", *given, "--ask", str(asked), "--server", server, *flags])

    return run


def _address(home: Path) -> str:
    return f"unix:{home}/run/s"


def _own(model: Any, ids: list[int]) -> Any:
    """The states of the model's own forward, [T, points, D]."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return np.stack([states[point.layer + 1][0].numpy() for point in POINTS], axis=1)


def test_every_file_has_the_models_own_states_in_order_and_the_folder_says_whose(
    record: Record, engine: ServedModel, model: Any, identity: ModelIdentity, home: Path, capsys: Any
) -> None:
    assert record(server=engine.url) == 0
    assert "3 of 3 prompts recorded" in capsys.readouterr().out
    for name, ids in PROMPTS.items():
        path = home / "into" / f"{name}.safetensors"
        assert path.stat().st_mode & 0o777 == 0o600, "states are the user's words"
        found = read_states(path)
        assert found.token_ids.tolist() == ids
        np.testing.assert_array_equal(found.bits.view("<f4"), _own(model, ids))
    origin = read_origin(home / "into")
    assert origin is not None
    assert (origin.model, origin.tap_points) == (identity, POINTS)


def test_a_request_asks_to_be_captured_and_to_share_no_prefix_and_generates_one_token(
    record: Record, engine: ServedModel
) -> None:
    assert record(server=engine.url) == 0
    assert {len(call.body["cache_salt"]) for call in engine.calls} == {32}
    assert (
        len({call.body["cache_salt"] for call in engine.calls}) == len({call.request_id for call in engine.calls}) == 3
    )
    for call in engine.calls:
        assert call.body["vllm_xargs"] == {"stethoscope": "always"}
        assert (call.body["max_tokens"], call.body["model"]) == (1, "the-model")


def test_the_servers_own_key_is_sent_if_it_is_set(
    record: Record, engine: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record(server=engine.url) == 0
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    assert record(server=engine.url, prompts={"four": [1, 2]}) == 0
    assert [call.authorization for call in engine.calls] == ["", "", "", "Bearer sesame"]


def test_what_is_there_is_not_asked_again_and_what_was_cut_short_is(
    record: Record, engine: ServedModel, home: Path, capsys: Any
) -> None:
    assert record(server=engine.url) == 0
    cut = home / "into" / "one.safetensors"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-4])
    (home / "into" / "two.safetensors").unlink()
    engine.calls.clear()
    assert record(server=engine.url) == 0
    assert sorted(call.tokens for call in engine.calls) == sorted([PROMPTS["one"], PROMPTS["two"]])
    assert cut.read_bytes() == whole
    assert "1 of 3 prompts were recorded before" in capsys.readouterr().out
    assert record(server="http://127.0.0.1:9") == 0, "with everything there, nobody is needed"


def test_tokens_from_a_cache_are_named_and_the_prompt_is_asked_again(
    record: Record, engine: ServedModel, home: Path, capsys: Any
) -> None:
    before: set[int] = set()

    def first_time_only(call: Any) -> int:
        new = len(call.tokens) not in before
        before.add(len(call.tokens))
        return 4 if new and len(call.tokens) > 4 else 0

    engine.cached = first_time_only
    assert record(server=engine.url) == 0
    assert len(engine.calls) == 5
    engine.cached = lambda call: 4 if call.tokens == PROMPTS["one"] else 0
    (home / "into" / "one.safetensors").unlink()
    assert record("--tries", "1", server=engine.url) == EX_DATA
    assert "not recorded: one: 4 of 7 tokens have no rows: 4 prefix_cache" in capsys.readouterr().out
    assert not (home / "into" / "one.safetensors").exists()
    assert len(engine.calls) == 6


def test_a_prompt_that_the_server_refuses_is_named_in_its_words_and_the_others_are_recorded(
    record: Record, engine: ServedModel, home: Path, capsys: Any
) -> None:
    engine.refuse = lambda call: 400 if call.tokens == PROMPTS["two"] else 0
    assert record(server=engine.url) == EX_DATA
    out = capsys.readouterr().out
    assert "2 of 3 prompts recorded" in out
    assert f"not recorded: two: {engine.url}/v1/completions answers 400: this one is not taken" in out
    assert len(engine.calls) == 3, "a refusal is not asked for twice"
    engine.refuse = lambda _: 503 if len(engine.calls) == 4 else 0
    assert record(server=engine.url) == 0
    assert len(engine.calls) == 5, "a server that is short of something is asked again"


def test_so_many_are_asked_at_once_and_no_more(record: Record, engine: ServedModel) -> None:
    prompts = {f"p{n}": [5, 6, n] for n in range(6)}
    engine.meets = threading.Barrier(3)  # breaks, and fails the calls, unless three are there at once
    assert record("--at-once", "3", server=engine.url, prompts=prompts) == 0
    assert len(engine.calls) == 6


def test_states_of_two_engines_are_never_in_one_folder(
    record: Record, engine: ServedModel, identity: ModelIdentity, home: Path, capsys: Any
) -> None:
    assert record(server=engine.url) == 0
    engine.__exit__()
    (home / "into" / "one.safetensors").unlink()
    other = tiny(seed=1)
    with ServedModel(other, replace(identity, weights_digest="b" * 64), _address(home)) as second:
        assert record(server=second.url) == EX_DATA
        assert f"weights digest: {identity.weights_digest[:12]} and bbbbbbbbbbbb" in capsys.readouterr().err
        assert not second.calls
    assert not (home / "into" / "one.safetensors").exists()


def test_a_folder_of_other_tap_points_or_of_other_tokens_under_a_name_is_refused(
    record: Record, engine: ServedModel, capsys: Any
) -> None:
    assert record(server=engine.url) == 0
    assert record(server=engine.url, points="0,3") == EX_DATA
    assert "holds states at blocks.0.resid_post,blocks.2.resid_post, not at" in capsys.readouterr().err
    assert record(server=engine.url, prompts={"one": [1, 2, 3]}) == EX_DATA
    assert "is of other tokens than the prompt of that name" in capsys.readouterr().err
    assert len(engine.calls) == 3


def test_a_tap_point_that_the_engine_does_not_capture_ends_it_at_once(
    record: Record, model: Any, identity: ModelIdentity, home: Path, capsys: Any
) -> None:
    with ServedModel(model, identity, _address(home), layers=(0,)) as engine:
        assert record("--at-once", "1", server=engine.url) == EX_DATA
        assert len(engine.calls) == 1
    said = capsys.readouterr().err
    assert "the engine does not capture blocks.2.resid_post" in said
    assert "STETHOSCOPE_TAP=blocks.0.resid_post,blocks.2.resid_post" in said


def test_a_server_that_is_not_the_engine_which_is_connected_is_told(
    record: Record,
    engine: ServedModel,
    model: Any,
    identity: ModelIdentity,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setattr("sidecar.record.asking._TELLS_S", 0.2)
    monkeypatch.setattr("sidecar.record.asking._PAUSE_S", 0.01)
    with ServedModel(tiny(seed=2), identity, "unix:/nowhere/at/all") as other:
        assert record(server=other.url) == EX_DATA
    assert "its tap has sent nothing of it" in capsys.readouterr().err


def test_where_no_engine_comes_or_no_server_answers_it_says_what_is_missing(
    record: Record, home: Path, model: Any, identity: ModelIdentity, capsys: Any
) -> None:
    assert record("--wait-s", "0.2", server="http://127.0.0.1:9") == EX_UNAVAILABLE
    assert f"no engine came to {_address(home)} within 0.2 s: start it with STETHOSCOPE_TAP=" in capsys.readouterr().err
    with ServedModel(model, identity, _address(home)):
        assert record("--wait-s", "2", server="http://127.0.0.1:9") == EX_UNAVAILABLE
    assert "http://127.0.0.1:9/v1/models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no prompts"),
        ('{"id": "a", "tokens": [1]}\n{"id": "a", "tokens": [2]}\n', "line 2: the id a stands for two prompts"),
        ('{"id": "../a", "tokens": [1]}\n', "want an id"),
        ('{"id": "a", "tokens": []}\n', "want tokens"),
        ('{"id": "a", "tokens": [true]}\n', "want tokens"),
        ('{"id": "a"}\n', "line 1: want"),
        ("no\n", "line 1: no sound JSON"),
    ],
)
def test_prompts_that_make_no_sense_are_named_by_their_line(home: Path, text: str, words: str, capsys: Any) -> None:
    (home / "p").write_text(text)
    given = ["record", "--into", str(home / "into"), "--tap-points", "1", "--ask", str(home / "p")]
    assert main([*given, "--server", "http://127.0.0.1:9", "--address", _address(home)]) == EX_DATA
    assert words in capsys.readouterr().err


def test_a_wrong_call_names_all_that_is_wrong(home: Path, capsys: Any) -> None:
    given = [
        "record",
        "--into",
        str(home),
        "--tap-points",
        "1,x",
        "--server",
        "here",
        "--at-once",
        "0",
        "--wait-s",
        "nan",
    ]
    assert main(given) == EX_CONFIG
    said = capsys.readouterr().err
    for words in ("--tap-points", "--ask and --server", "want a URL", "--at-once", "--wait-s"):
        assert words in said


@pytest.mark.process
def test_without_prompts_whatever_is_asked_is_recorded_until_it_is_told_to_end(
    model: Any, identity: ModelIdentity, home: Path
) -> None:
    command = [sys.executable, "-m", "sidecar.cli", "record", "--into", str(home / "into"), "--tap-points", "0,2"]
    with (
        subprocess.Popen(
            [*command, "--address", _address(home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=plain_environment(),
        ) as process,
        ServedModel(model, identity, _address(home)) as engine,
    ):
        try:
            until(lambda: engine.connected)
            post(engine, "a/b", PROMPTS["one"])
            file = home / "into" / "cmpl-a_b-0.safetensors"
            until(file.is_file)
            engine.cached = lambda _: 3
            post(engine, "gap", PROMPTS["two"])
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
        finally:
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=20)
    assert lines == [
        "cmpl-a/b-0: 7 tokens\n",
        "fills-the-cache: 3 tokens\n",
        "not recorded: cmpl-gap-0: 3 of 5 tokens have no rows: 3 prefix_cache\n",
    ]
    assert "2 requests recorded" in out
    assert process.returncode == EX_DATA
    found = read_states(file)
    assert found.token_ids.tolist() == [-1] * 7
    np.testing.assert_array_equal(found.bits.view("<f4"), _own(model, PROMPTS["one"]))


def post(engine: ServedModel, request_id: str, tokens: list[int]) -> None:
    assert engine.complete(Call(request_id, {"prompt": tokens})) == 200


assert max(point.layer for point in POINTS) < LAYERS - 1  # what transformers gives of the last block is normed
