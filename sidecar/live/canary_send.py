"""One canary sent to an engine's OpenAI server: marked, so that the tap keeps it apart from traffic."""

from __future__ import annotations

import http.client
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from sidecar.config import Canary as Config
from sidecar.config import Marks
from sidecar.errors import ConfigError
from sidecar.live.canary_rows import PREFIX

_TOKEN = re.compile(r"[ -~]+")
_TOO_MUCH = 1 << 20  # bytes of an answer, which nobody reads


def token_of(config: Config) -> str:
    """Raises ConfigError. None of its texts says what is in the file."""
    if config.token_file is None:
        raise ConfigError(["canary.token_file: it is needed: without a token no request is believed to be a canary"])
    try:
        token = config.token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"canary.token_file: it cannot be read: {type(error).__name__}"]) from None
    if not _TOKEN.fullmatch(token):  # what no header can carry would be told by an error of http.client, in full
        raise ConfigError(["canary.token_file: want one line of printable ASCII"])
    return token


class Sender:
    """One connection for a round. ``send`` raises OSError or http.client.HTTPException where the engine does not answer."""

    def __init__(self, config: Config, token: str) -> None:
        self._config, self._token = config, token
        self._url = urlsplit(config.url)
        self._salt = secrets.token_hex(8)

    def send(self, prompts: Sequence[str]) -> int:
        """Every prompt in turn; how many were answered well. One token is asked for: what is compared is the prompt."""
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.netloc, timeout=self._config.request_timeout_s)
        try:
            return sum(self._one(connection, number, prompt) for number, prompt in enumerate(prompts))
        finally:
            connection.close()

    def _one(self, connection: http.client.HTTPConnection, number: int, prompt: str) -> bool:
        route = f"{PREFIX}{number}"
        body: dict[str, Any] = {"model": self._config.model, "max_tokens": 1, "temperature": 0.0}
        if self._config.path.endswith("/chat/completions"):
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        headers = {"Content-Type": "application/json"}
        if self._config.marks is Marks.VLLM_XARGS:
            asked = {"stethoscope_canary": self._token, "stethoscope_route": route, "stethoscope": "always"}
            # A prompt whose states are in the cache is not computed again: nothing would be compared.
            body |= {"vllm_xargs": asked, "cache_salt": self._salt}
        else:
            headers |= {"X-Stethoscope-Canary": self._token, "X-Stethoscope-Route": route}
        connection.request("POST", self._config.path, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read(_TOO_MUCH)
        return answer.status == http.client.OK
