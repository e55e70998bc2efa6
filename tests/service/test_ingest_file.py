"""Files of hidden states and a whole sidecar: what is read of them is what the tap's rows would have read."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from sidecar.cli import EX_CONFIG, EX_DATA, main
from sidecar.tap.client import TapClient
from sidecar.tap.step import CapturedStep, RequestInfo, StepSegment
from sidecar.tap.tensors.states import TorchStates
from sidecar.tap.traffic import StepTally
from sidecar.types import Phase
from tests.builders import MODEL, TAP, WIDTH
from tests.faults.process import Process
from tests.service.client import Client
from tests.service_fixtures import private_folder, write_artifacts
from tests.waiting import until

pytestmark = pytest.mark.process
ENDED = 'stethoscope_probe_request_score_count{probe="first"}'
TOKENS, LAYERS = 600, 3  # more than one batch of them
HERE = 2  # where block TAP.layer lies in the file: the others are of no interest to the sidecar


SENT = (("full", torch.float32, 0), ("half", torch.float16, -1), ("brain", torch.bfloat16, 0))


def states(tokens: int = TOKENS, dtype: torch.dtype = torch.float32, column: int = -1) -> torch.Tensor:
    """[tokens, LAYERS, WIDTH]; high in one column if one is given."""
    made = torch.from_numpy(np.random.default_rng(5).normal(size=(tokens, LAYERS, WIDTH)).astype(np.float32))
    if column >= 0:
        made[:, HERE, column] += 10.0
    return made.to(dtype)


def written(folder: Path, name: str, hidden: torch.Tensor) -> Path:
    path = folder / f"{name}.safetensors"
    save_file({"hidden_states": hidden, "token_ids": torch.arange(len(hidden))}, path)
    return path


def ingest(address: str, *arguments: object, layers: str = f"7,5,{TAP.layer}") -> int:
    return main(["ingest", "--address", address, "--layers", layers, *map(str, arguments)])


def sent_by_a_tap(address: str, requests: Mapping[str, torch.Tensor]) -> None:
    client = TapClient(address, MODEL, engine_id="tap")
    client.start()
    until(lambda: client.connected)
    for number, (name, hidden) in enumerate(requests.items(), 1):
        segment = StepSegment(RequestInfo(name), name, range(len(hidden)), Phase.PREFILL, len(hidden))
        rows = TorchStates(hidden[:, HERE].contiguous())
        step = CapturedStep(time.time_ns(), number, (segment,), ((TAP, rows),), len(hidden))
        assert client.submit(step)
        client.traffic.add(StepTally(len(hidden), 1))
    client.finish(requests)
    until(lambda: client.counts().ok == len(requests))
    client.stop(5.0)


@pytest.fixture
def process() -> Iterator[Process]:
    with private_folder() as home, Process(home, write_artifacts(home)) as process:
        process.event("started")
        yield process


def science(process: Process, requests: int) -> dict[str, float]:
    """What the sidecar says of what it read, but for when it did."""
    with Client(process) as client:
        until(lambda: float(client.series()[ENDED]) == requests)
        return {name: float(value) for name, value in client.science().items() if "_created" not in name}


def test_a_file_is_scored_as_the_same_rows_from_a_tap_are(tmp_path: Path, capsys: Any) -> None:
    sent = {name: states(dtype=dtype, column=column) for name, dtype, column in SENT}
    both = []
    for way in ("file", "tap"):
        with private_folder() as home, Process(home, write_artifacts(home)) as process, Client(process) as client:
            client.register()
            if way == "file":
                assert ingest(process.address, *(written(tmp_path, name, hidden) for name, hidden in sent.items())) == 0
            else:
                sent_by_a_tap(process.address, sent)
            both.append(science(process, len(sent)))
    by_file, by_tap = both
    assert by_file.keys() == by_tap.keys()
    assert by_file == pytest.approx(by_tap, rel=1e-6, abs=1e-6)
    assert by_file['stethoscope_probe_detections_total{probe="first"}'] == 2
    said = capsys.readouterr().out
    assert said.startswith(
        "full: 600 tokens: flag\n  first 1.000, over its threshold 0.900\n  second: below its threshold\n"
    )
    assert "half: 600 tokens: allow\n  first: below" in said


def test_every_token_is_expected_and_seen_and_every_file_is_a_request(
    tmp_path: Path, process: Process, capsys: Any
) -> None:
    files = [written(tmp_path, name, states(300)) for name in ("one", "two")]
    with Client(process) as client:
        client.register()
        assert ingest(process.address, *files) == 0
        now = client.status()
        assert [(one.tap_point, one.expected, one.seen, one.blind) for one in now.coverage] == [
            (TAP.name, 600, 600, False)
        ]
        assert (now.step_batches.scored, now.rows.scored) == (4, 600)
        assert float(client.series()[ENDED]) == 2
        assert ingest(process.address, files[0], "--request-id", "again") == 0, "the same engine comes back"
        assert [(one.expected, one.seen, one.blind) for one in client.status().coverage] == [(900, 900, False)]
    assert "again: 300 tokens: allow" in capsys.readouterr().out


def test_a_sidecar_that_has_met_no_model_is_told_which(tmp_path: Path, process: Process, capsys: Any) -> None:
    path = written(tmp_path, "one", states(30))
    assert ingest(process.address, path) == EX_DATA
    assert "--model FOLDER" in capsys.readouterr().err
    config = {"architectures": [MODEL.architecture], "num_hidden_layers": MODEL.layers, "hidden_size": MODEL.width}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ingest(process.address, path, "--model", tmp_path) == 0
    with Client(process) as client:
        status = client.status()
    assert {one.evidence for one in status.artifacts} == {"stale"}, "which weights made them is not known"
    assert status.model.engine == "file"
    assert "has not judged it" in capsys.readouterr().out


def damaged(raw: bytes, **header: Any) -> bytes:
    """The file with other words in its header."""
    length = struct.unpack("<Q", raw[:8])[0]
    fields = {**json.loads(raw[8 : 8 + length]), **header}
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


SIZE = 8 * LAYERS * WIDTH * 4  # of the sound one's states, in bytes
TWICE = b'{"hidden_states": {}, "hidden_states": {}}'


def unsound() -> dict[str, tuple[bytes, str]]:
    hidden, tokens = states(8), torch.arange(8)
    sound = save({"hidden_states": hidden, "token_ids": tokens})
    nan = hidden.clone()
    nan[3, 1, 2] = float("nan")
    length = struct.unpack("<Q", sound[:8])[0]
    entry = json.loads(sound[8 : 8 + length])["hidden_states"]
    return {
        "empty": (b"", "it is empty"),
        "a pickle": (b"\x80\x04\x95" + b"x" * 64, "not a safetensors file"),
        "cut short": (sound[:-9], "cut short or damaged"),
        "a header that lies": (struct.pack("<Q", 1 << 60) + sound[8:], "not a safetensors file"),
        "a key twice": (
            sound[:8] + sound[8 : 8 + length].replace(b"token_ids", b"hidden_states")[:length] + sound[8:],
            "",
        ),
        "no tokens": (save({"hidden_states": hidden}), "no tensor called token_ids"),
        "flat": (
            save({"hidden_states": hidden[:, 0].contiguous(), "token_ids": tokens}),
            "want [tokens, layers, width]",
        ),
        "too few tokens": (save({"hidden_states": hidden, "token_ids": tokens[:7].clone()}), "want [8]"),
        "doubles": (save({"hidden_states": hidden.double(), "token_ids": tokens}), "none of F32, F16, BF16"),
        "words for tokens": (save({"hidden_states": hidden, "token_ids": tokens.float()}), "elements of token_ids"),
        "beyond the end": (
            damaged(sound, hidden_states={**entry, "data_offsets": [128, 128 + SIZE]}),
            "cut short or damaged",
        ),
        "over each other": (
            damaged(sound, hidden_states={**entry, "data_offsets": [32, 32 + SIZE]}),
            "lie over each other",
        ),
        "offsets that are none": (damaged(sound, hidden_states={**entry, "data_offsets": [-1, 2]}), "makes no sense"),
        "not a number": (save({"hidden_states": nan, "token_ids": tokens}), "no finite number, at token 3"),
        "infinite halves": (
            save({"hidden_states": nan.nan_to_num(nan=1e9).to(torch.float16), "token_ids": tokens}),
            "no finite number, at token 3",
        ),
        "one layer": (
            save({"hidden_states": hidden[:, :1].contiguous(), "token_ids": tokens}),
            "it has 1 layers, 16 wide",
        ),
    }


def test_a_malformed_file_is_refused_in_plain_words_and_nothing_of_it_is_sent(
    tmp_path: Path, process: Process, capsys: Any
) -> None:
    with Client(process) as client:
        client.register()
        for name, (content, words) in unsound().items():
            path = tmp_path / f"{name}.safetensors"
            path.write_bytes(content)
            assert ingest(process.address, path) == EX_DATA, name
            said = capsys.readouterr().err
            assert said.startswith(f"sidecar: {path}: "), name
            assert words in said, (name, said)
        assert ingest(process.address, tmp_path / "missing.safetensors") == EX_DATA
        assert "No such file" in capsys.readouterr().err
        assert client.status().step_batches.received == 0
        assert ingest(process.address, written(tmp_path, "good", states(30))) == 0, "the next good one is taken"


def test_layers_that_the_sidecar_reads_and_the_file_lacks_are_named(
    tmp_path: Path, process: Process, capsys: Any
) -> None:
    path = written(tmp_path, "one", states(30))
    with Client(process) as client:
        client.register()
        assert ingest(process.address, path, layers="7,5,9") == EX_DATA
        assert f"the sidecar reads {TAP.name}; the blocks given are 7 5 9" in capsys.readouterr().err
        assert client.status().step_batches.received == 0
    for arguments in ((path, path, "--request-id", "x"), (path,)):
        layers = "1,2,x" if len(arguments) == 1 else "1"
        assert ingest(process.address, *arguments, layers=layers) == EX_CONFIG
        assert "want --layers" in capsys.readouterr().err


def test_where_no_sidecar_is_the_command_says_so(tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path, "one", states(30))
    assert ingest(f"unix:{tmp_path}/none", path) == EX_DATA
    assert "UNAVAILABLE" in capsys.readouterr().err
