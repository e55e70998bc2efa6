"""Clients of the demo's server: a few at once, streaming and not, each request with a trace of its own."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from sidecar.demo.prompts import Prompt, Prompts

CLIENTS = 4
_ANSWER, _GOES_ON = 12, 4  # tokens: a circuit's session bets by its prompt, and short answers make more sessions
_TIMEOUT_S = 120.0
_STOPPED = "content_filter"  # what the tapped server says of a request that it stopped


@dataclass(frozen=True, slots=True)
class Answered:
    """Requests that were answered (some of them cut short by a verdict), and those that failed."""

    requests: int = 0
    failed: int = 0
    tokens: int = 0
    stopped: int = 0


class Traffic:
    """Sends prompts until told to stop; requests under way are answered first."""

    def __init__(self, base_url: str, model: str, prompts: Prompts) -> None:
        self._base_url = base_url
        self._model = model
        self._prompts = prompts
        self._lock = threading.Lock()  # of the counts
        self._counts = Answered()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(bool(number % 2),), name=f"client-{number}", daemon=True)
            for number in range(CLIENTS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns when every open request has its answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S)

    def counts(self) -> Answered:
        with self._lock:
            return self._counts

    def _client(self, streaming: bool) -> None:
        with httpx.Client(base_url=self._base_url, timeout=_TIMEOUT_S, trust_env=False) as client:
            while not self._stop.is_set():
                try:
                    tokens, finish = _ask(client, self._model, self._prompts.next(), streaming)
                except (httpx.HTTPError, ValueError, LookupError):
                    self._book(failed=1)
                    self._stop.wait(1.0)
                else:
                    self._book(requests=1, tokens=tokens, stopped=int(finish == _STOPPED))

    def _book(self, requests: int = 0, failed: int = 0, tokens: int = 0, stopped: int = 0) -> None:
        with self._lock:
            now = self._counts
            self._counts = Answered(
                now.requests + requests, now.failed + failed, now.tokens + tokens, now.stopped + stopped
            )


def new_traceparent() -> str:
    """A sampled W3C trace context, as an instrumented client would send it."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def _ask(client: httpx.Client, model: str, prompt: Prompt, streaming: bool) -> tuple[int, str]:
    """One answer; returns the number of generated tokens (of chunks with text, when streaming), and why it ended."""
    body: dict[str, Any] = {"model": model, "temperature": 0.0}
    headers = {"traceparent": new_traceparent()}
    if not prompt.chat:
        body |= {"prompt": prompt.text, "max_tokens": _GOES_ON}
        return _told(client.post("/v1/completions", json=body, headers=headers))
    body |= {"messages": [{"role": "user", "content": prompt.text}], "max_tokens": _ANSWER, "stream": streaming}
    if not streaming:
        return _told(client.post("/v1/chat/completions", json=body, headers=headers))
    with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply:
        reply.raise_for_status()
        choices = list(_choices(reply))
    texts = sum(bool(choice.get("delta", {}).get("content")) for choice in choices)
    return texts, str(choices[-1].get("finish_reason"))


def _told(reply: httpx.Response) -> tuple[int, str]:
    reply.raise_for_status()
    answer = reply.json()
    return int(answer["usage"]["completion_tokens"]), str(answer["choices"][0]["finish_reason"])


def _choices(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in reply.iter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield from json.loads(data).get("choices") or []
