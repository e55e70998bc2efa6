"""An engine that answers canaries over HTTP, and whose hidden states a test decides: what a tap would send goes to the sidecar."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from sidecar.types import FloatArray, TapPoint
from tests.circuits.served import Live, project, step
from tests.circuits.small import LAYER, MLP

PROMPT_TOKENS = 12
States = dict[TapPoint, FloatArray]


class StubEngine:
    """token: what it knows canaries by. ``change`` edits the states of every prompt before they are sent; None answers 500.

    again: what somebody else has them be who sends every row a second time.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.live: Live | None = None
        self.projects = False  # its tap multiplies by itself, and sends no states
        self.change: Callable[[States], States] | None = lambda states: states
        self.again: Callable[[States], States] | None = None
        self.asked = 0
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5.0)

    def states(self, prompt: str) -> States:
        """The same for the same prompt."""
        draws = np.random.default_rng([ord(letter) for letter in prompt])
        return {where: draws.normal(size=(PROMPT_TOKENS, 8)).astype(np.float32) for where in (LAYER, MLP)}

    def _answer(self, route: str, prompt: str, token: str) -> int:
        with self._lock:
            self.asked += 1
            if self.change is None or self.live is None:
                return 500
            for change in (self.change, self.again):
                if change is not None:
                    self.send(route, change(self.states(prompt)), canary=token == self.token)
            return 200

    def send(self, route: str, states: States, *, canary: bool) -> None:
        assert self.live is not None
        facts = {"canaries": [canary], "routes": [route], "prompt_tokens": [PROMPT_TOKENS]}
        batch = step(states, [PROMPT_TOKENS], first=0, **facts)
        plan = self.live.sidecar.plans.plan
        self.live.send(project(batch, plan) if self.projects and plan is not None else batch)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = (self.headers.get("X-Stethoscope-Route", ""), self.headers.get("X-Stethoscope-Canary", ""))
                status = engine._answer(headers[0], body["prompt"], headers[1])
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None: ...

        return Handler
