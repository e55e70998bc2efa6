"""vLLM's own OpenAI server on a real model, as its users start it: for a test to talk to, and certain to end."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from tests.engines.environment import Environment, clean_environment
from tests.engines.product import ROOT

START_S = 300.0
STOP_S = 60.0
ANSWER_S = 120.0
_POLL_S = 0.1
# As many blocks as a few hundred short sequences of SmolLM2 need: what is left is left to the tests.
_CACHE_BYTES = 256 << 20
SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",  # more threads than cores cost it a factor
}
_DEFAULTS = {
    "--dtype": "float32",
    "--max-model-len": "1024",
    "--max-num-seqs": "16",
    "--kv-cache-memory-bytes": str(_CACHE_BYTES),
}
Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Completion:
    """What one request came to."""

    id: str  # as the server names it: "cmpl-" and the client's X-Request-Id
    prompt: list[int]  # token ids
    tokens: list[int]  # token ids that were made
    text: str
    finish_reason: str

    @property
    def fed(self) -> list[int]:
        """The tokens that the model computed states for, by position: the last one made is never fed back."""
        return (self.prompt + self.tokens)[:-1]


class VllmServer:
    """Entering starts it and waits until it answers; leaving ends it and everything that it started.

    environment: where vLLM and our package are installed. model: a folder. folder: an empty one, where it is started and where
    its log is written. flags: of the server, added to the defaults above or replacing them ("--max-num-seqs=4" as one word).
    env: added to its environment, which has none of our own settings. eager: without torch.compile, else compiled.
    """

    def __init__(
        self,
        environment: Environment,
        model: Path,
        folder: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        eager: bool = True,
    ) -> None:
        self.model = model
        self.ready_s = 0.0  # from its start to its first answer
        self._environment = environment
        self._folder = folder
        self._flags = (*flags, "--enforce-eager") if eager else flags
        self._env = dict(env or {})
        self._port = 0
        self._warden: subprocess.Popen[bytes] | None = None
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        begun_s = time.monotonic()
        self._start()
        try:
            self._wait_until_ready(begun_s + START_S)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - begun_s
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it in order, then by force; afterwards none of its processes is left. Twice is fine."""
        if self._client is not None:
            self._client.close()
        if self._warden is None or self._warden.stdin is None:
            return
        self._warden.stdin.close()
        self._warden.wait(STOP_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def log(self) -> list[str]:
        """The lines of all its processes so far."""
        return self._log.read_text(errors="replace").splitlines()

    @property
    def pids(self) -> list[int]:
        """Its processes: the API server first, then whatever that started."""
        if self._warden is None or self._warden.poll() is not None:
            return []
        return [one.pid for one in psutil.Process(self._warden.pid).children(recursive=True)]

    @property
    def engine_pid(self) -> int:
        """The process with the scheduler."""
        return self._titled("VLLM::EngineCore")

    @property
    def worker_pid(self) -> int:
        """The process where the model runs, and a tap."""
        return self._titled("VLLM::Worker")

    def complete(
        self,
        prompt: Prompt,
        *,
        request_id: str | None = None,
        max_tokens: int = 16,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> Completion:
        """Answer one prompt, greedily unless ``extra`` (of the request's JSON) says otherwise; any thread may ask.

        Raises httpx.HTTPStatusError if the server refuses.
        """
        body = self._body(prompt, max_tokens, extra)
        response = self._http.post("/v1/completions", json=body, headers=_headers(request_id, headers))
        response.raise_for_status()
        answer = response.json()
        choice = answer["choices"][0]
        return Completion(
            answer["id"], choice["prompt_token_ids"], choice["token_ids"], choice["text"], choice["finish_reason"]
        )

    @contextmanager
    def stream(
        self,
        prompt: Prompt,
        *,
        request_id: str | None = None,
        max_tokens: int = 16,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Give the answer's chunks as they come. Leaving before the last one closes the connection: vLLM aborts the request."""
        body = self._body(prompt, max_tokens, {"stream": True, **extra})
        sent = _headers(request_id, headers)
        with self._http.stream("POST", "/v1/completions", json=body, headers=sent) as response:
            response.raise_for_status()
            yield (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))

    def metric(self, name: str) -> float:
        """The sum of vLLM's own metric of this name over its labels; 0 before it was first counted."""
        lines = self._http.get("/metrics").raise_for_status().text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def _titled(self, title: str) -> int:
        (found,) = (pid for pid in self.pids if psutil.Process(pid).cmdline()[:1] == [title])
        return found

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    @property
    def _http(self) -> httpx.Client:
        assert self._client is not None, "not started"
        return self._client

    def _body(self, prompt: Prompt, max_tokens: int, extra: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "return_token_ids": True}
        return {"model": str(self.model), **wanted, **extra}

    def _start(self) -> None:
        self._port = _free_port()
        # The server closes what idles for 5 s: a connection that is used just then is lost.
        kept = httpx.Limits(keepalive_expiry=2.0)
        self._client = httpx.Client(base_url=self.url, timeout=ANSWER_S, trust_env=False, limits=kept)
        surroundings = {"VLLM_CACHE_ROOT": str(self._environment.compiled), **SURROUNDINGS, **self._env}
        with self._log.open("wb") as log:
            self._warden = subprocess.Popen(
                self._command(),
                cwd=self._folder,  # not the checkout: what is imported there is what is installed
                env={**clean_environment(), **surroundings},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the test's, which then ends us in order
            )

    def _command(self) -> list[str]:
        server = [str(self._environment.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        given = {flag.partition("=")[0] for flag in self._flags}
        defaults = [f"{flag}={value}" for flag, value in _DEFAULTS.items() if flag not in given]
        where = ["--host", "127.0.0.1", "--port", str(self._port)]
        return [sys.executable, str(ROOT / "tests/engines/warden.py"), *server, *where, *defaults, *self._flags]

    def _wait_until_ready(self, ends_s: float) -> None:
        while not self._answers():
            if self._warden is None or self._warden.poll() is not None:
                raise AssertionError(f"vLLM ended before it was ready\n{self._tail()}")
            if time.monotonic() > ends_s:
                raise AssertionError(f"vLLM was not ready after {START_S:.0f} s\n{self._tail()}")
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        try:
            return self._http.get("/health", timeout=2.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _tail(self) -> str:
        return "\n".join(self.log[-60:])


def _headers(request_id: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    named = {} if request_id is None else {"X-Request-Id": request_id}
    return {**named, **(headers or {})}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
