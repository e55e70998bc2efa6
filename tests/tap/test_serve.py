"""The launcher, a real server, real HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.types import UnseenReason
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import alone, worst_difference
from tests.tap.models import library, save_tiny
from tests.tap.receiver import Receiver, control
from tests.tap.seeing import LAYER, POINTS, seeing
from tests.tap.test_block import judging, merged

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]
CONTINUOUS = ("--continuous-batching", "--cb-num-blocks", "16")  # by default the cache takes most of the memory
START_S, ANSWER_S, STOP_S = 90, 30, 20
TOLERANCE = 1e-6
_LONG = 300  # tokens that nobody waits for: a verdict is there long before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny model"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _serving(
    folder: Path, address: str, log: Path, *options: str, before: str = "", settings: Mapping[str, str] = {}
) -> Iterator[str]:
    """Base URL of a tapped server. ``before`` is code that runs in its process first; settings: more of its environment."""
    port = _free_port()
    arguments = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), *options]
    start = f"import sys\n{before}\nfrom sidecar.tap.transformers.launcher import main\nsys.exit(main({arguments!r}))"
    environment = os.environ | {
        "STETHOSCOPE_ADDRESS": address,
        "STETHOSCOPE_ENGINE_ID": "served",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path.cwd()),
        **settings,
    }
    command = (
        [sys.executable, "-c", start] if before else [sys.executable, "-m", "sidecar.tap.transformers", *arguments]
    )
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_ready(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)
        finally:
            process.kill()
            process.wait(STOP_S)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)  # another process's port: there is nothing to wait on but the clock
    raise AssertionError(f"not ready within {START_S} s: {log.read_text()}")


def _parent(number: int) -> str:
    return f"00-{number + 1:032x}-{number + 1:016x}-01"


def _ask(url: str, folder: Path, number: int, *, stream: bool) -> tuple[int, int]:
    """Tokens of the prompt and of the answer."""
    usage = _answer(url, folder, number, stream=stream)["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]


def _answer(url: str, folder: Path, number: int, *, stream: bool, tokens: int = 6) -> dict[str, Any]:
    """The answer, or its last piece."""
    body = {
        "model": str(folder),
        "messages": [{"role": "user", "content": "a word " * (3 * number + 1)}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": stream,
    }
    headers = {"Content-Type": "application/json", "X-Request-Id": f"req-{number}", "traceparent": _parent(number)}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
        text = response.read().decode()
    if stream:
        text = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")][-1]
    found: dict[str, Any] = json.loads(text)
    return found


def _ask_all(url: str, folder: Path) -> list[tuple[int, int]]:
    """Six requests at once, every other one streamed."""
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(_ask, url, folder, number, stream=bool(number % 2)) for number in range(6)]
        return [one.result(ANSWER_S) for one in asked]


def _prompts(folder: Path, *numbers: int) -> list[list[int]]:
    tokenizer = library().AutoTokenizer.from_pretrained(folder)
    chats = [[{"role": "user", "content": "a word " * (3 * number + 1)}] for number in numbers]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] for chat in chats
    ]


def _check(receiver: Receiver, lengths: list[tuple[int, int]], folder: Path) -> None:
    """Rows complete, each with its request's trace, and the prompt's rows equal to those computed here."""
    model = library().AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    rows = receiver.rows(1)
    assert sorted(rows) == [f"req-{number}" for number in range(6)]
    for number, (prompt, made) in enumerate(lengths):
        name = f"req-{number}"
        assert sorted(rows[name]) == list(range(prompt + made - 1))
        assert {(s.traceparent, s.route) for s in receiver.segments(name)} == {(_parent(number), "chat")}
        (tokens,) = _prompts(folder, number)
        assert len(tokens) == prompt
        with seeing(model, "llama") as seen:
            assert len(alone(model, tokens, LAYER)[0]) == prompt
        for point in POINTS:
            mine = {position: receiver.rows(point)[name][position] for position in range(prompt)}
            assert worst_difference(mine, seen[point][0]) < TOLERANCE
    assert receiver.reports[-1].tokens_computed == sum(prompt + made - 1 for prompt, made in lengths)
    assert receiver.unseen == {}


@pytest.mark.parametrize("options", [CONTINUOUS, ()], ids=["continuous", "sequential"])
@pytest.mark.shows("transformers", "traces")
def test_every_row_of_every_request_arrives_with_its_trace(
    options: tuple[str, ...], folder: Path, make_receiver: MakeReceiver, tmp_path: Path
) -> None:
    receiver = make_receiver(control(POINTS))
    with _serving(folder, receiver.address, tmp_path / "log", *options) as url:
        lengths = _ask_all(url, folder)
        receiver.wait(lambda r: len(r.finished) == 6)
    receiver.wait(lambda r: r.goodbyes == 1)
    _check(receiver, lengths, folder)
    (registration,) = receiver.registrations
    assert (registration.engine_id, registration.model.name) == ("served", folder.name)
    assert registration.model.tokenizer_digest
    told = (tmp_path / "log").read_text()
    assert all(f"self_test tap_point={point.name}: states come" in told for point in POINTS)


def test_without_a_sidecar_it_serves_all_the_same_and_taps_once_there_is_one(
    folder: Path, address: str, make_receiver: MakeReceiver, tmp_path: Path
) -> None:
    with _serving(folder, address, tmp_path / "log", *CONTINUOUS) as url:
        assert len(_ask_all(url, folder)) == 6
        receiver = make_receiver(control((1,)))
        receiver.wait(lambda r: r.reports)
        _ask(url, folder, 3, stream=False)
        receiver.wait(lambda r: "req-3" in r.finished)
    before = receiver.registrations[-1].traffic
    assert before.requests == 6
    assert before.tokens_computed == sum(one.tokens for one in before.unseen) > 0


@pytest.mark.shows("transformers", "unknown version")
def test_a_version_with_other_names_is_served_untapped_and_says_so(
    folder: Path, make_receiver: MakeReceiver, tmp_path: Path
) -> None:
    receiver = make_receiver(control((1,)))
    rename = (
        "import transformers.cli.serving.utils as utils\n"
        "utils.InferenceThread.enqueue = utils.InferenceThread.submit\n"
        "utils.GenerateManager.submit = lambda self, f, *a, **k: self._thread.enqueue(f, *a, **k)\n"
        "del utils.InferenceThread.submit\n"
    )
    with _serving(folder, receiver.address, tmp_path / "log", before=rename) as url:
        assert _ask(url, folder, 0, stream=True)[1] > 0
    assert "not_tapped" in (tmp_path / "log").read_text()
    assert "InferenceThread.submit" in (tmp_path / "log").read_text()
    assert receiver.registrations == []


@pytest.mark.parametrize("options", [CONTINUOUS, ()], ids=["continuous", "sequential"])
def test_a_blocked_request_ends_early_and_in_order_and_its_client_is_told_why(
    options: tuple[str, ...], folder: Path, make_receiver: MakeReceiver, tmp_path: Path
) -> None:
    receiver = make_receiver(control((1,)))
    blocked = [judging(name, after=40) for name in ("req-1", "req-2")]
    receiver.answer = lambda batch: merged(*(judge(batch) for judge in blocked))
    with _serving(folder, receiver.address, tmp_path / "log", "--stop-on-block", *options) as url:
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(_answer, url, folder, number, stream=number < 2, tokens=_LONG) for number in range(3)]
            free, streamed, whole = [one.result(ANSWER_S) for one in asked]
        receiver.wait(lambda r: len(r.finished) == 3)
    receiver.wait(lambda r: r.goodbyes == 1)
    assert free["choices"][0]["finish_reason"] == "length"
    assert free["usage"]["completion_tokens"] == _LONG
    for number, answer in ((1, streamed), (2, whole)):
        assert answer["choices"][0]["finish_reason"] == "content_filter"
        usage = answer["usage"]
        assert 0 < usage["completion_tokens"] < _LONG
        rows = receiver.rows(1)[f"req-{number}"]
        assert sorted(rows) == list(range(usage["prompt_tokens"] + usage["completion_tokens"] - 1))
    assert receiver.unseen == {}


def test_without_the_option_a_block_is_advice(folder: Path, make_receiver: MakeReceiver, tmp_path: Path) -> None:
    receiver = make_receiver(control((1,)))
    receiver.answer = judging("req-1")
    with _serving(folder, receiver.address, tmp_path / "log", *CONTINUOUS) as url:
        answer = _answer(url, folder, 1, stream=True, tokens=_LONG)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == _LONG


def test_steps_that_waited_longer_than_the_setting_allows_are_dropped_and_counted(
    folder: Path, make_receiver: MakeReceiver, tmp_path: Path
) -> None:
    receiver = make_receiver(control((1,)))
    never = {"STETHOSCOPE_QUEUE_S": "1e-9"}
    with _serving(folder, receiver.address, tmp_path / "log", *CONTINUOUS, settings=never) as url:
        prompt, made = _ask(url, folder, 0, stream=False)
    receiver.wait(lambda r: r.goodbyes == 1)
    assert receiver.batches == []
    assert receiver.reports[-1].tokens_computed == prompt + made - 1
    assert receiver.unseen == {UnseenReason.TAP_DROPPED: prompt + made - 1}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"STETHOSCOPE_STOP_ON_BLOCK": "maybe"}, "STETHOSCOPE_STOP_ON_BLOCK: want 0 or 1"),
        ({"STETHOSCOPE_QUEUE_S": "soon"}, "STETHOSCOPE_QUEUE_S: 'soon' is not a number of seconds over 0"),
        ({"STETHOSCOPE_QUEUE_S": "0"}, "STETHOSCOPE_QUEUE_S: '0' is not a number of seconds over 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting: dict[str, str], said: str) -> None:
    command = [sys.executable, "-m", "sidecar.tap.transformers", "serve", "nothing"]
    environment = os.environ | setting
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S, check=False)
    assert told.returncode == 2
    assert said in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["chat"], 2), (["--help"], 0)])
def test_anything_but_serve_is_told_how_to_use_it(arguments: list[str], status: int) -> None:
    command = [sys.executable, "-m", "sidecar.tap.transformers", *arguments]
    told = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert told.returncode == status
    assert "usage: python -m sidecar.tap.transformers serve MODEL" in told.stderr
