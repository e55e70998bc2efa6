"""What vLLM's scheduler says of its requests, turned into the tap's: who they are, and what a caller asked of the tap for them.

A caller tells more in ``vllm_xargs`` of the request: see ``sidecar.tap.asked``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sidecar.tap.asked import chosen, request_info
from sidecar.tap.recorder import Recorder
from sidecar.tap.step import Request, RequestInfo

_INTERNAL = re.compile(r"(.+)-[0-9a-f]{8}")


def told_id(internal: str) -> str:
    """The id that the client knows: vLLM puts eight random hex digits behind it, so that ids can be used twice.

    >>> told_id("chatcmpl-one-abc-0-9f3c21d0")
    'chatcmpl-one-abc-0'
    """
    match = _INTERNAL.fullmatch(internal)
    return match[1] if match is not None else internal


class Requests:
    """The requests that the engine has, by its own ids. Owned by the thread of the worker."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._open: dict[str, Request] = {}
        self._limits: dict[str, Limits] = {}
        self._names: dict[str, str] = {}  # the client's names, and whose they are

    def __getitem__(self, internal: str) -> Request:
        return self._open[internal]

    def limits(self, internal: str) -> Limits:
        """Where its generation ends."""
        return self._limits[internal]

    def follow(self, scheduled: Any) -> None:
        """Of a ``SchedulerOutput``: what finished is over, and then what is new begins. The same id may do both at once."""
        self._finish(scheduled.finished_req_ids)
        for new in scheduled.scheduled_new_reqs:
            if new.req_id not in self._open:  # else it was preempted, and goes on
                self._begin(new)

    def _begin(self, new: Any) -> None:
        name = told_id(new.req_id)
        if name in self._names:  # two at once under one name: the sidecar is to tell them apart
            name = new.req_id
        asked = getattr(new.sampling_params, "extra_args", None) or {}
        request = self._recorder.request(_info(name, new, asked), new.prompt_len, chosen=chosen(asked))
        self._open[new.req_id], self._names[name] = request, new.req_id
        self._limits[new.req_id] = Limits(new.sampling_params, new.prompt_len)

    def _finish(self, ids: Iterable[str]) -> None:
        ended = [self._open.pop(one) for one in ids if one in self._open]
        for one in ids:
            self._limits.pop(one, None)
        for request in ended:
            self._names.pop(request.info.request_id, None)
        self._recorder.finish(ended)


class Limits:
    """Which sampled token is a request's last: vLLM throws away what was accepted behind it."""

    def __init__(self, sampling: Any, prompt_tokens: int) -> None:
        eos = getattr(sampling, "eos_token_id", None)
        self._stops = {*(getattr(sampling, "stop_token_ids", None) or ()), *(() if eos is None else (eos,))}
        most = getattr(sampling, "max_tokens", None)
        self._tokens = None if most is None else prompt_tokens + most

    def kept(self, known: int, sampled: list[int]) -> int:
        """How many of the accepted drafts, which are ``sampled`` but for the last one, are fed back.

        known: tokens of the request before them. The last token of a generation is never fed back.

        >>> Limits(None, 3).kept(5, [7, 8, 9])
        2
        """
        for place, token in enumerate(sampled[:-1]):
            if token in self._stops or (self._tokens is not None and known + place + 1 >= self._tokens):
                return place
        return max(0, len(sampled) - 1)


def _info(name: str, new: Any, asked: Mapping[str, Any]) -> RequestInfo:
    headers = getattr(new, "trace_headers", None) or {}
    adapter = getattr(new.lora_request, "lora_name", "") or ""
    return request_info(name, asked, traceparent=str(headers.get("traceparent") or ""), adapter=str(adapter))
