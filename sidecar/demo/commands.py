"""How the demo starts its sidecar and its server, and what it lays ready for them."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from pathlib import Path

from probes.circuits.artifact import load_circuit
from sidecar.demo.options import DemoOptions, Plant, shipped_artifacts, shipped_circuit
from sidecar.demo.process import Child
from sidecar.demo.prompts import canaries
from sidecar.demo.reference import Home

TICK_S = 5
_CANARIES_S = 5.0
_DIAGNOSE_S = 120.0  # a machine that is busy with something else needs a minute for two rounds
_FILE_TICKS = 4  # the toy reference is made of files of the archive: it must not wait five minutes for one


def lay_ready(home: Home) -> None:
    """The shipped probes and a circuit in a folder that a baseline may come into; the canaries' prompts, and their token."""
    for folder in (*shipped_artifacts().iterdir(), shipped_circuit()):
        if folder.is_dir():
            shutil.copytree(folder, home.artifacts / folder.name, copy_function=shutil.copyfile)
    home.prompts.write_text("\n".join(canaries()), encoding="utf-8")
    home.token.touch(mode=0o600)
    home.token.write_text(secrets.token_hex(16), encoding="ascii")


def start_sidecar(home: Home, options: DemoOptions, address: str, model: Path, collector: str) -> Child:
    settings = {
        "sampling.request_fraction": 1.0,
        "ladder.enabled": False,  # the model alone takes every core here: a demo that sheds shows nothing
        "circuits.tick_s": TICK_S,
        "circuits.requests_are_sessions": True,
        "circuits.diagnose_s": _DIAGNOSE_S,
        "circuits.archive": home.archive,
        "circuits.file_ticks": _FILE_TICKS,
        "canary.url": f"http://127.0.0.1:{options.port}",
        "canary.path": "/v1/completions",
        "canary.model": model,
        "canary.token_file": home.token,
        "canary.prompts": home.prompts,
        "canary.reference": home.canaries,
        "canary.every_s": _CANARIES_S,
    }
    if options.block is not None:
        settings[f"verdicts.signals.{options.block}"] = "block"
    command = [sys.executable, "-m", "sidecar.cli", "serve", "--traces", "--address", address]
    command += ["--metrics-port", str(options.metrics_port), "--artifacts", str(home.artifacts)]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    env = {"OMP_NUM_THREADS": "1"}
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector
    return Child("sidecar", command, home.folder / "sidecar.log", env)


def start_server(home: Home, options: DemoOptions, address: str, model: Path) -> Child:
    module = ["sidecar.tap.transformers"]
    if options.plant is Plant.ABLATION:
        module = ["sidecar.demo.ablated", str(home.trigger), ",".join(heads())]
    command = [sys.executable, "-m", *module, "serve", str(model), "--continuous-batching"]
    command += ["--host", "127.0.0.1", "--port", str(options.port)]
    command += ["--stop-on-block"] if options.block is not None else []
    command += ["--cb-block-size", "32", "--cb-num-blocks", "512", "--cb-max-batch-tokens", "512"]
    env = {"STETHOSCOPE_ADDRESS": address, "STETHOSCOPE_ENGINE_ID": "demo", "HF_HUB_OFFLINE": "1"}
    env["STETHOSCOPE_CANARY_TOKEN"] = home.token.read_text(encoding="ascii")
    return Child("server", command, home.folder / "server.log", {"OMP_NUM_THREADS": "1", **env})


def heads() -> list[str]:
    """The circuit's, which ``--plant ablation`` silences."""
    circuit = load_circuit(shipped_circuit(), root=shipped_circuit().parent)
    return [one.node for one in circuit.manifest.nodes if ".attn_heads." in one.node]
