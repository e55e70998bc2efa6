"""``sidecar demo``: prepare the model, start the sidecar and the server, send traffic, show what is heard, clean up."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
from rich.console import Console
from rich.live import Live

from probes.smollm2 import ModelNotInstalledError, prepared_model
from protos.stethoscope.v1 import control_pb2
from sidecar.address import GET_STATUS
from sidecar.demo.collector import Collector
from sidecar.demo.options import DemoOptions, shipped_artifacts
from sidecar.demo.process import Child, DemoError
from sidecar.demo.stopping import Stopping
from sidecar.demo.table import page
from sidecar.demo.traffic import Answered, Traffic

_START_S = 180.0  # a cold disk and a busy machine: importing the server alone can take a minute
_REFRESH_S = 0.5
_WIDTH = 100  # of the table where there is no terminal to ask
_SETTLE_S = 20.0
_FLUSH_S, _LOADING_S = 20.0, 2.0  # patience with a server that is told to end, while it serves and while it starts


def run_demo(options: DemoOptions, stopping: Stopping) -> int:
    """0 when it ended as asked (after the seconds, or by Ctrl-C), 1 if something did not work.

    Raises InterruptedStart, with nothing left running, if asked to stop before it was up.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    try:
        model = prepared_model(progress=True)
        stopping.check()
        with _Stage(options, model, console, stopping) as stage:
            stage.show_until(stopping.asked)
            summary = stage.end()
    except (DemoError, ModelNotInstalledError) as error:
        print(f"sidecar demo: {error}", file=sys.stderr)
        return 1
    if options.summary is not None:
        options.summary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return 0


class _Stage:
    """Everything that the demo starts, and its end in the right order: traffic, server, sidecar, collector."""

    def __init__(self, options: DemoOptions, model: Path, console: Console, stopping: Stopping) -> None:
        self._options = options
        self._stopping = stopping
        self._up = False
        self._model = model
        self._console = console
        self._stack = ExitStack()
        self._collector = Collector()
        self._base_url = f"http://127.0.0.1:{options.port}"
        self._traffic = Traffic(self._base_url, str(model))

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # what was started is ended even if the next does not start
            try:
                self._start(stack)
            finally:
                self._stopping.hold()  # from here on it is up, or is being ended
            self._up = True
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        _check_free(self._options.port, "the server")
        _check_free(self._options.metrics_port, "/metrics")
        with self._stopping.held():
            self._start_all(stack)
        with self._console.status("starting the sidecar"):
            self._sidecar.wait_until(lambda: self._status() is not None, _START_S, self._stopping.check)
        with self._console.status("starting transformers serve and loading the model"):
            self._server.wait_until(self._server_is_ready, _START_S, self._stopping.check)
        with self._stopping.held():
            self._traffic.start()
            stack.callback(self._traffic.stop)

    def _start_all(self, stack: ExitStack) -> None:
        """Start the processes, which takes milliseconds; whether they come up is seen afterwards."""
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stethoscope-", dir=_short_tmp())))
        self._address = f"unix:{home}/run/sidecar.sock"
        self._collector.start()
        stack.callback(self._collector.stop)
        self._sidecar = self._start_sidecar(home)
        stack.callback(self._sidecar.stop)
        self._channel = grpc.insecure_channel(self._address)
        stack.callback(self._channel.close)
        self._server = self._start_server(home)
        stack.callback(self._stop_server)

    def _stop_server(self) -> None:
        """One that is up flushes its tap and says goodbye; one that still loads its model has nothing to say."""
        self._server.stop(signal.SIGINT, _FLUSH_S if self._up else _LOADING_S)

    def _start_sidecar(self, home: Path) -> Child:
        command = [sys.executable, "-m", "sidecar.cli", "serve", "--traces", "--address", self._address]
        command += ["--metrics-port", str(self._options.metrics_port), "--artifacts", str(shipped_artifacts())]
        command += ["--set", "sampling.request_fraction=1.0"]
        if self._options.block is not None:
            command += ["--set", f"verdicts.signals.{self._options.block}=block"]
        env = {"OMP_NUM_THREADS": "1"}
        if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
            env["OTEL_EXPORTER_OTLP_ENDPOINT"] = self._collector.endpoint
        return Child("sidecar", command, home / "sidecar.log", env)

    def _start_server(self, home: Path) -> Child:
        command = [sys.executable, "-m", "sidecar.tap.transformers", "serve", str(self._model), "--continuous-batching"]
        command += ["--host", "127.0.0.1", "--port", str(self._options.port)]
        command += ["--stop-on-block"] if self._options.block is not None else []
        command += ["--cb-block-size", "32", "--cb-num-blocks", "512", "--cb-max-batch-tokens", "512"]
        env = {"STETHOSCOPE_ADDRESS": self._address, "STETHOSCOPE_ENGINE_ID": "demo", "HF_HUB_OFFLINE": "1"}
        return Child("server", command, home / "server.log", {"OMP_NUM_THREADS": "1", **env})

    def _status(self) -> control_pb2.GetStatusResponse | None:
        try:
            raw = self._channel.unary_unary(GET_STATUS, None, None)(b"", timeout=2.0)
        except grpc.RpcError:
            return None
        return control_pb2.GetStatusResponse.FromString(raw)

    def _server_is_ready(self) -> bool:
        """It answers, and its tap has introduced itself."""
        try:
            answers = httpx.get(f"{self._base_url}/health", timeout=2.0, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False
        status = self._status()
        return answers and status is not None and status.engines > 0

    def _addresses(self) -> list[tuple[str, str]]:
        return [
            ("chat completions", f"{self._base_url}/v1/chat/completions"),
            ("metrics", f"http://127.0.0.1:{self._options.metrics_port}/metrics"),
            ("status", shlex.join([*_own_command(), "status", "--address", self._address])),
            ("traces", os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", f"{self._collector.endpoint} (the demo's own)")),
        ]

    def show_until(self, stop: threading.Event) -> None:
        """The live table, until asked to stop or the time is over."""
        ends_s = None if self._options.seconds is None else time.monotonic() + self._options.seconds
        for name, address in self._addresses():
            self._console.print(f"[dim]{name:18}[/dim]{address}", soft_wrap=True, highlight=False)
        with _live(self._console) as live:
            while not stop.wait(_REFRESH_S) and (ends_s is None or time.monotonic() < ends_s):
                self._sidecar.check()
                self._server.check()
                if live is not None:
                    live.update(self._page())

    def _page(self) -> Any:
        return page(self._status(), self._traffic.counts(), self._collector.received(), [])

    def end(self) -> dict[str, Any]:
        """Let everything that is under way arrive, then read the last status: the summary's numbers."""
        self._traffic.stop()
        self._stop_server()  # the tap flushes, reports a last time and says goodbye
        traffic, status = self._traffic.counts(), self._status()
        ends_s = time.monotonic() + _SETTLE_S
        while status is not None and not _settled(status) and time.monotonic() < ends_s:
            time.sleep(0.2)
            status = self._status()
        if status is None:
            raise DemoError("the sidecar did not answer at the end")
        self._console.print(self._page())
        if self._options.picture is not None:
            self._draw(self._options.picture)
        return summarise(status, traffic)

    def _draw(self, picture: Path) -> None:
        canvas = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
        canvas.print(self._page())
        drawn = canvas.export_svg(title="sidecar demo")
        drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # a picture that loads nothing from elsewhere
        picture.write_text(drawn, encoding="utf-8")


def summarise(status: control_pb2.GetStatusResponse, traffic: Answered) -> dict[str, Any]:
    """The demo's summary, all of it counted by the sidecar but what its clients were answered."""

    def ledger(one: control_pb2.LedgerState) -> dict[str, int]:
        return {name: getattr(one, name) for name in ("received", "scored", "dropped", "rejected", "in_flight")}

    return {
        "requests": traffic.requests,
        "stopped": traffic.stopped,
        "tap": {name: getattr(status.taps, name) for name in ("sent", "ok", "refused", "unknown", "dropped")},
        "step_batches": ledger(status.step_batches),
        "rows": ledger(status.rows),
        "signals": {
            one.name: {
                "readings": one.readings,
                "mean": one.mean,
                "detections": one.detections,
                "evidence": one.evidence,
            }
            for one in status.signals
        },
        "coverage": {one.tap_point: {"expected": one.expected, "seen": one.seen} for one in status.coverage},
        "spans_exported": status.spans_exported,
    }


def _own_command() -> list[str]:
    """How ``sidecar`` is called from here: the script beside this interpreter, as one would type it, or the module."""
    script = Path(sys.executable).with_name("sidecar")
    if not script.is_file():
        return [sys.executable, "-m", "sidecar.cli"]
    here = Path.cwd()
    return [str(script.relative_to(here) if script.is_relative_to(here) else script)]


def _settled(status: control_pb2.GetStatusResponse) -> bool:
    return status.engines == 0 and status.step_batches.in_flight == 0


@contextmanager
def _live(console: Console) -> Iterator[Live | None]:
    """A live display on a terminal; nothing where there is none."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield live


def _check_free(port: int, whose: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise DemoError(f"port {port} of 127.0.0.1, meant for {whose}, is in use") from None


def _short_tmp() -> str | None:
    """A temporary folder whose name leaves room for a Unix socket's 100 bytes."""
    return None if len(tempfile.gettempdir()) < 50 else "/tmp"  # noqa: S108 - made private by TemporaryDirectory
