"""The toy behind a real server, with a real sidecar beside it: started, asked and broken over HTTP."""

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from probes.circuits.toy import FIRST, WORDS
from tests.circuits.toys import FOLDER

TOKEN = "nobody-else-knows"
_START_S, _ANSWER_S, _STOP_S = 90.0, 30.0, 20.0
# Runs in the server: once the file appears, the heads of the circuit write nothing, by their weights.
_BREAK = """
import threading, time
from pathlib import Path
def watch(path):
    while not path.exists():
        time.sleep(0.05)
    import torch
    from sidecar.tap.transformers.tap import all_taps
    for tap in all_taps():
        for block, head in ((0, 3), (1, 3)):
            values = tap._model().model.layers[block].self_attn.v_proj.weight
            with torch.no_grad():
                values[head * 32 : (head + 1) * 32] = 0
    path.with_suffix(".done").touch()
threading.Thread(target=watch, args=(Path(%r),), daemon=True).start()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], seconds: float, why: Callable[[], str]) -> None:
    """Of another process: there is nothing to wait on but the clock."""
    ends = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < ends, why()
        time.sleep(0.05)


@contextmanager
def process(command: Sequence[str], log: Path, environment: dict[str, str], end: signal.Signals) -> Iterator[None]:
    with log.open("wb") as output:
        made = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
            made.send_signal(end)
            made.wait(_STOP_S)
        finally:
            made.kill()
            made.wait(_STOP_S)


class Sidecar:
    """One in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        self.address = f"unix:{home}/run/sidecar.sock"
        self.log = home / "sidecar.log"

    @contextmanager
    def running(self, **settings: object) -> Iterator[None]:
        told = {
            "listen.address": self.address,
            "artifacts.folder": self.home / "artifacts",
            "artifacts.reload_s": 0.2,
            "metrics.port": self.port,
            "sampling.request_fraction": 1.0,
            "ladder.enabled": False,
            "circuits.archive": self.home / "archive",
            "circuits.requests_are_sessions": True,
            **settings,
        }
        pairs = [part for name, value in told.items() for part in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "sidecar.cli", "serve", *pairs]
        with process(command, self.log, {"OMP_NUM_THREADS": "1"}, signal.SIGTERM):
            wait_until(lambda: bool(self.page()), _START_S, self.log.read_text)
            yield

    def page(self) -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return {}
        series = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name.removeprefix("stethoscope_"): float(value) for name, _, value in series}

    def wait_for(self, ready: Callable[[dict[str, float]], bool], seconds: float) -> dict[str, float]:
        """The first page of which it holds."""
        found: list[dict[str, float]] = []

        def looks() -> bool:
            found[:] = [self.page()]
            return bool(found[0]) and ready(found[0])

        def why() -> str:
            shown = {name: value for name, value in found[0].items() if "circuit" in name or "canary" in name}
            return f"{json.dumps(shown, indent=1)}\n{self.log.read_text()[-3000:]}"

        wait_until(looks, seconds, why)
        return found[0]


class Engine:
    """`transformers serve`, tapped, with the toy."""

    def __init__(self, home: Path, address: str) -> None:
        self.home, self.port, self._address = home, free_port(), address
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "server.log"
        self._broken = home / "break"
        self._draws = np.random.default_rng(0)

    @contextmanager
    def running(self) -> Iterator[None]:
        # The toy has no chat template and no end of text; without a batch of its own a request is one forward pass and another.
        arguments = ["serve", str(FOLDER), "--host", "127.0.0.1", "--port", str(self.port)]
        start = f"import sys\n{_BREAK % str(self._broken)}\nfrom sidecar.tap.transformers.launcher import main\n"
        environment = {
            "STETHOSCOPE_ADDRESS": self._address,
            "STETHOSCOPE_CANARY_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        with process(
            [sys.executable, "-c", f"{start}sys.exit(main({arguments!r}))"], self.log, environment, signal.SIGINT
        ):
            wait_until(self._healthy, _START_S, self.log.read_text)
            yield

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def ask(self, prompt: str) -> None:
        body = {"model": str(FOLDER), "prompt": prompt, "max_tokens": 1, "temperature": 0.0}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
            answer.read()

    def traffic(self, many: int, share: float) -> None:
        """Requests of which about that share repeat themselves; two at a time."""
        prompts = [self.prompt(repeats=bool(one)) for one in self._draws.random(many) < share]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.ask, prompts))

    def prompt(self, *, repeats: bool) -> str:
        """Words of which none comes twice, or twenty and all of them twice again."""
        words = self._draws.permutation(np.arange(2, WORDS))
        chosen = [*words[:FIRST]] * 3 if repeats else words[: 3 * FIRST]
        return " ".join(f"w{word}" for word in chosen)

    def breaks(self) -> None:
        """From now on the circuit's heads write nothing."""
        self._broken.touch()
        wait_until(self._broken.with_suffix(".done").exists, 10.0, self.log.read_text)
