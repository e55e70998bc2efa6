"""The server's side that clients know: OpenAI's completions, as vLLM serves them, with what a tap and its prefix cache heed."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

KEY_VARIABLE = "VLLM_API_KEY"  # the server's own name for it
_ANSWER_S = 600.0
_TEXT = 300  # of what the server says
_READ_BYTES = 1 << 20


class NoServerError(Exception):
    """Nobody answers: try again, or give up. The text says what happened."""


class RefusedError(Exception):
    """The server does not take this prompt; the text has its own words. again: it may, if it is asked once more."""

    def __init__(self, text: str, *, again: bool = False) -> None:
        super().__init__(text)
        self.again = again


class Completions:
    """Asks one server. Thread-safe. url: such as http://127.0.0.1:8000. A key is read from $VLLM_API_KEY."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._model = ""
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def meet(self) -> None:
        """Learn what the model is called there. Comes first. Raises NoServerError or RefusedError."""
        told = self._ask("/v1/models")
        try:
            self._model = str(told["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise RefusedError(f"{self._url}/v1/models names no model") from None

    def feed(self, tokens: Sequence[int], request_id: str) -> None:
        """Have the prompt computed, all of it, by a request of that name. Raises NoServerError or RefusedError.

        Its salt is nobody else's, so that no token comes from the prefix cache, where it would have no rows.
        """
        body = {
            "model": self._model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0,
            "cache_salt": secrets.token_hex(16),
            "vllm_xargs": {"stethoscope": "always"},
        }
        self._ask("/v1/completions", json.dumps(body).encode(), {"X-Request-Id": request_id})

    def _ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        sent = {"Content-Type": "application/json", **(headers or {})}
        if key := os.environ.get(KEY_VARIABLE):
            sent["Authorization"] = f"Bearer {key}"
        try:
            request = urllib.request.Request(self._url + path, body, sent)  # noqa: S310 - the scheme was checked
            with self._open(request, timeout=_ANSWER_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                told = f"{self._url}{path} answers {error.code}: {_words(error.read(_READ_BYTES))}"
            raise RefusedError(told, again=error.code >= 500 or error.code == 429) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = getattr(error, "reason", error)
            raise NoServerError(f"{self._url}{path}: {why}") from None


def _words(raw: bytes) -> str:
    """What an error's body says, on one line."""
    try:
        told = json.loads(raw)
        text = str(told["error"]["message"] if "error" in told else told.get("message", told))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = raw.decode("utf-8", "replace")
    return " ".join(text.split())[:_TEXT]
