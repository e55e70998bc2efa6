"""What the tap costs vLLM on a GPU: two servers on one device, one of them tapped, take turns under the same load.

The model is Llama 3.2 1B's shape with random weights in bfloat16, so that a step takes as long as a real one. With VLLM_PYTHON set,
``python -m bench.vllm_gpu [--rounds N]``; results with every round in bench/vllm_gpu.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.artifacts import BENCH_MODEL, write_artifacts
from bench.machine import describe
from bench.serving import Served, serving
from bench.vllm import connected
from bench.vllm_phase import Load, Phase, measure
from probes.smollm2 import cache_folder
from probes.whole import whole_folder
from sidecar.tap.identity import tokenizer_digest
from tests.engines.installed import PYTHON, Installed
from tests.engines.models import tiny_model
from tests.engines.vllm_server import VllmServer

RESULTS = Path(__file__).parent / "vllm_gpu.json"
WIDTH, LAYERS, TAPS, DIRECTIONS = 2048, 16, 2, 64
LOAD = Load(clients=32, requests=96, tokens=128)
RUNNERS = {"V1": "0", "V2": "1"}
_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_FLAGS = (
    "--load-format=dummy",  # its weights are made up
    "--dtype=bfloat16",
    "--gpu-memory-utilization=0.3",  # two of them fit
    f"--kv-cache-memory-bytes={2 << 30}",
    "--max-num-seqs=64",
)
_VERSIONS = (
    "import json, torch, triton, vllm; print(json.dumps([torch.__version__, triton.__version__, vllm.__version__]))"
)


def model_folder() -> Path:
    """A configuration and a tokenizer, and no weights."""

    def make(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(_SHAPE), encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((tiny_model("llama") / name).read_bytes())

    return whole_folder(cache_folder() / "engines" / "models" / "shape-1b", json.dumps(_SHAPE), make)


def run(runner: str, rounds: int) -> Iterator[tuple[Phase, dict[str, float]]]:
    """Phases, and what the sidecar had received by the end of each."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stg-", dir="/tmp")))
        home.chmod(0o700)
        model = model_folder()
        for name in ("bare", "tapped", "artifacts"):
            (home / name).mkdir()
        write_artifacts(home / "artifacts", WIDTH, TAPS, DIRECTIONS, model=_identity(model))
        surroundings = {"VLLM_USE_V2_MODEL_RUNNER": RUNNERS[runner]}
        address = f"unix:{home}/s"
        tap = {"STETHOSCOPE_TAP": "0,1", "STETHOSCOPE_ADDRESS": address, "STETHOSCOPE_TAP_COST": "1"}
        where = Installed(cache_folder() / "engines")
        servers = [
            VllmServer(where, model, home / name, *_FLAGS, env=env, eager=False)
            for name, env in (("bare", surroundings), ("tapped", surroundings | tap))
        ]
        with ThreadPoolExecutor() as pool:  # a minute and a half each
            bare, tapped = pool.map(stack.enter_context, servers)
        yield measure(f"{runner}, no sidecar", bare, tapped, rounds, LOAD), {}
        settings = {"default sampling, 10 % of requests": (), "every request": ("sampling.request_fraction=1.0",)}
        for times, (name, asked) in enumerate(settings.items(), 1):
            with serving(home / "artifacts", *asked, address=address) as served:
                connected(tapped, times)
                phase = measure(f"{runner}, {name}", bare, tapped, rounds, LOAD)
                came = received(served)
                if not came.get("stethoscope_rows_scored_total"):
                    raise RuntimeError(f"{phase.name}: no row came to the sidecar: {came}")
                yield phase, came


def _identity(model: Path) -> dict[str, Any]:
    """What must be right of it, or the sidecar refuses the artifacts. Other weights make them stale, and no cheaper."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return {**BENCH_MODEL, "layers": LAYERS, "tokenizer_digest": tokenizer_digest(tokenizer)}


def received(served: Served) -> dict[str, float]:
    """Of the sidecar's own counters: rows that came, tokens that were computed, seen and unseen; by their labels, without zeros."""
    with urllib.request.urlopen(f"http://127.0.0.1:{served.metrics_port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    wanted = ("stethoscope_rows_received_total", "stethoscope_rows_scored_total", "stethoscope_tokens_")
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(wanted))
    return {name: float(value) for name, value in pairs if float(value)}


def machine() -> dict[str, Any]:
    """This machine, its GPU, and the versions in vLLM's own environment."""
    made = subprocess.run([PYTHON, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout
    versions = dict(zip(("torch", "triton", "vllm"), json.loads(made.splitlines()[-1]), strict=True))
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return {**describe(), "gpu": gpu, "engine": versions}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.vllm_gpu")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of rounds a phase (default 12)")
    parser.add_argument("--runner", choices=RUNNERS, action="append", help="default: both")
    parser.add_argument("--note", default="", help="what is to be known of the build")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not PYTHON:
        parser.error("set VLLM_PYTHON: an interpreter with vLLM for CUDA and this package")
    told = [one for runner in options.runner or RUNNERS for one in run(runner, options.rounds)]
    rows = [row for phase, _ in told for row in phase.rows()]
    for row in rows:
        interval = "" if row.interval is None else f" [{row.interval[0]:.3g}, {row.interval[1]:.3g}]"
        print(f"{row.name}: {row.value:.3g}{interval}")
    raw = {phase.name: {**asdict(phase), "received": came} for phase, came in told}
    what = {"machine": machine(), "note": options.note, "load": asdict(LOAD), "flags": _FLAGS}
    made = {**what, "rows": list(map(asdict, rows)), "rounds": raw}
    options.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
