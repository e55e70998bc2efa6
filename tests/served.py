"""A tapped tiny model behind OpenAI's completions, as far as `sidecar record` asks for them: what vLLM is to it, in a second."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import torch

from sidecar.tap.address import default_engine_id
from sidecar.tap.client import TapClient
from sidecar.tap.limits import LinkLimits
from sidecar.tap.transformers import attach
from sidecar.types import ModelIdentity

DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came."""

    request_id: str
    body: dict[str, Any]
    authorization: str = ""

    @property
    def tokens(self) -> list[int]:
        return list(self.body["prompt"])


class ServedModel:
    """Computes each prompt in one forward, and names it as vLLM does: ``cmpl-``, the client's id, ``-0``.

    identity: what the tap registers. layers: where it is tapped, whatever is asked for. cached: how many tokens of a call's prompt
    come from a cache, and so have no rows. refuse: an HTTP status for a call, 0 to take it.
    """

    def __init__(
        self, model: Any, identity: ModelIdentity, address: str, layers: tuple[int, ...] | None = None
    ) -> None:
        self.calls: list[Call] = []
        self.cached: Callable[[Call], int] = lambda _: 0
        self.refuse: Callable[[Call], int] = lambda _: 0
        self.meets: threading.Barrier | None = None  # of calls that are to be under way at once
        self._model = model
        self._lock = threading.Lock()
        self._client = TapClient(
            address, identity, engine_id=default_engine_id("served"), limits=LinkLimits(queue_s=DEADLINE_S)
        )
        self._tap = attach(model, client=self._client, layers=layers)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(DEADLINE_S)
        self._tap.detach()
        self._client.stop()

    @property
    def connected(self) -> bool:
        """Somebody takes what it captures."""
        return self._client.connected

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def complete(self, call: Call) -> int:
        """The HTTP status."""
        with self._lock:
            self.calls.append(call)
        if self.meets is not None:
            self.meets.wait(DEADLINE_S)
        status = self.refuse(call)
        if not status:
            with self._lock, torch.no_grad():
                self._compute(call)
        return status or 200

    def _compute(self, call: Call) -> None:
        cached, past = self.cached(call), None
        if cached:
            with self._tap.requests(["fills-the-cache"]):
                past = self._model(torch.tensor([call.tokens[:cached]]), use_cache=True).past_key_values
        with self._tap.requests([f"cmpl-{call.request_id}-0"]):
            self._model(torch.tensor([call.tokens[cached:]]), past_key_values=past)


def _handler(served: ServedModel) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"data": [{"id": "the-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = served.complete(Call(self.headers["X-Request-Id"], body, self.headers.get("Authorization", "")))
            self._answer(status, {"id": "x"} if status == 200 else {"error": {"message": "this one is\nnot taken"}})

        def _answer(self, status: int, told: dict[str, Any]) -> None:
            raw = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    return Handler
