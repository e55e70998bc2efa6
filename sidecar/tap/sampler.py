"""Which requests and which of their tokens are captured: the same answer in every tap, layer and step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from sidecar.types import SamplingPolicy

RANDOM_BITS = 56
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def randomness(request_id: str, traceparent: str = "") -> int:
    """56 bits that stand for a request: the end of its trace id (W3C Trace Context level 2), else a hash of its own id.

    >>> hex(randomness("any", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
    '0x48eb211c80319c'
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is not None:
        return int(match[1][-RANDOM_BITS // 4 :], 16)
    digest = hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=RANDOM_BITS // 8)
    return int.from_bytes(digest.digest(), "big")


class Sampler:
    """Decides by one policy. Stateless: whoever asks keeps a request's decision for the request's life.

    A request is chosen if R >= (1 - p) * 2^56: OpenTelemetry's consistent probability sampling, so that a request chosen
    at 10 % is also chosen at 20 %, by every component that asks about the same trace.

    >>> Sampler(SamplingPolicy(1.0)).chooses("r"), Sampler(SamplingPolicy(0.0)).chooses("r")
    (True, False)
    """

    def __init__(self, policy: SamplingPolicy) -> None:
        self.policy = policy
        self._threshold = round((1.0 - policy.request_fraction) * (1 << RANDOM_BITS))
        self.every_token = policy.token_stride <= 1

    def chooses(self, request_id: str, traceparent: str = "") -> bool:
        return randomness(request_id, traceparent) >= self._threshold

    def select(self, first: int, count: int, prompt_tokens: int) -> Sequence[int]:
        """Offsets of the captured ones among the positions ``first .. first + count - 1``, increasing.

        >>> Sampler(SamplingPolicy(1.0, token_stride=4, first_tokens=2, last_tokens=2)).select(0, 10, 10)
        [0, 1, 4, 8, 9]
        """
        if self.every_token:
            return range(count)
        policy = self.policy
        chosen = set(range(-first % policy.token_stride, count, policy.token_stride))
        chosen.update(range(min(count, policy.first_tokens - first)))
        tail = max(0, prompt_tokens - policy.last_tokens - first)
        chosen.update(range(tail, min(count, prompt_tokens - first)))
        return sorted(chosen)
