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
from sidecar.demo.circuit_table import Recent, circuits
from sidecar.demo.collector import Collector
from sidecar.demo.commands import lay_ready, start_server, start_sidecar
from sidecar.demo.course import Course
from sidecar.demo.options import DemoOptions, Plant
from sidecar.demo.process import DemoError
from sidecar.demo.prompts import Prompts
from sidecar.demo.reference import Home
from sidecar.demo.stopping import Stopping
from sidecar.demo.summary import summarise
from sidecar.demo.table import page
from sidecar.demo.traffic import Traffic

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
    return _ended(stage.course)


def _ended(course: Course) -> int:
    if course.as_planted:
        return 0
    told = ", ".join(f"{one.what.name} ({one.what.diagnosis})" for one in (*course.alerts, *course.alarms)) or "nothing"
    want = "nothing was planted" if course.plant is None else f"--plant {course.plant} wants its one alert"
    print(f"sidecar demo: {want}, and there was {told} (it ended in the phase {course.phase})", file=sys.stderr)
    return 1


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
        self._prompts = Prompts()
        self._traffic = Traffic(self._base_url, str(model), self._prompts)
        self._recent = Recent()

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
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stethoscope-", dir=_short_tmp())))
        home = self._home = Home(folder)
        lay_ready(home)
        self.course = Course(home, self._options.plant, self._plants)
        self._address = f"unix:{folder}/run/sidecar.sock"
        self._collector.start()
        stack.callback(self._collector.stop)
        self._sidecar = start_sidecar(home, self._options, self._address, self._model, self._collector.endpoint)
        stack.callback(self._sidecar.stop)
        self._channel = grpc.insecure_channel(self._address)
        stack.callback(self._channel.close)
        self._server = start_server(home, self._options, self._address, self._model)
        stack.callback(self._stop_server)

    def _plants(self) -> None:
        if self._options.plant is Plant.ABLATION:
            self._home.trigger.touch()
        else:
            self._prompts.stop_repeating()

    def _stop_server(self) -> None:
        """One that is up flushes its tap and says goodbye; one that still loads its model has nothing to say."""
        self._server.stop(signal.SIGINT, _FLUSH_S if self._up else _LOADING_S)

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
        """The live table, until asked to stop, or the time is over, or what was planted has been found, or not."""
        ends_s = None if self._options.seconds is None else time.monotonic() + self._options.seconds
        for name, address in self._addresses():
            self._console.print(f"[dim]{name:18}[/dim]{address}", soft_wrap=True, highlight=False)
        with _live(self._console) as live:
            while not stop.wait(_REFRESH_S) and not self.course.over and (ends_s is None or time.monotonic() < ends_s):
                self._sidecar.check()
                self._server.check()
                status = self._look()
                if live is not None:
                    live.update(self._page(status))

    def _look(self) -> control_pb2.GetStatusResponse | None:
        status, now_s = self._status(), time.monotonic()
        if status is not None:
            self._recent.note(status, now_s)
            self.course.look(status, now_s)
        return status

    def _page(self, status: control_pb2.GetStatusResponse | None) -> Any:
        told = "" if status is None else circuits(status, self.course, self._recent)
        return page(status, self._traffic.counts(), self._collector.received(), told)

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
        self._console.print(self._page(status))
        if self._options.picture is not None:
            self._draw(self._options.picture, status)
        return summarise(status, traffic, self.course)

    def _draw(self, picture: Path, status: control_pb2.GetStatusResponse) -> None:
        canvas = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
        canvas.print(self._page(status))
        drawn = canvas.export_svg(title="sidecar demo")
        drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # a picture that loads nothing from elsewhere
        picture.write_text(drawn, encoding="utf-8")


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
