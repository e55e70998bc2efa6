"""Prompts sent to the server, a few at once, each until its states are whole or it is given up."""

from __future__ import annotations

import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sidecar.record.completions import Completions, NoServerError, RefusedError
from sidecar.record.prompts import Prompt
from sidecar.record.recording import Outcome, Wanted
from sidecar.record.rows import Gap, NeverWholeError, Recorded
from sidecar.types import RequestId

_OURS = re.compile(r"st\.[A-Za-z0-9_-]+\.[0-9a-f]{8}")  # an engine puts words of its own around a client's id
_TELLS_S = 15.0  # after the answer: for the rows to come, and the request's end
_PAUSE_S = 0.5


class AskingError(Exception):
    """The rest need not be asked: what went wrong would go wrong again. The text says what."""


@dataclass(slots=True)
class _Asked:
    wanted: Wanted
    done: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None


class Asking:
    """Asks each prompt at most ``tries`` times, ``at_once`` of them together. keep: writes what is whole."""

    def __init__(
        self, server: Completions, keep: Callable[[Prompt, Recorded], None], *, at_once: int = 8, tries: int = 3
    ) -> None:
        self.kept = 0
        self._server, self._keep = server, keep
        self._at_once, self._tries = at_once, tries
        self._lock = threading.Lock()  # guards everything below
        self._left: deque[Prompt] = deque()
        self._asked: dict[str, _Asked] = {}  # by request id
        self._gaps: list[tuple[Prompt, str]] = []
        self._stop = threading.Event()
        self._error: Exception | None = None

    # the recording's side

    def choose(self, request: RequestId) -> Wanted | None:
        """Which of our prompts a request of that id on the wire is."""
        match = _OURS.search(request)
        with self._lock:
            asked = self._asked.get(match[0]) if match is not None else None
            return None if asked is None or asked.done.is_set() else asked.wanted

    def settled(self, wanted: Wanted, outcome: Outcome) -> None:
        """What became of it."""
        with self._lock:
            asked = self._asked.get(wanted.name)
        if asked is not None:
            asked.outcome = outcome
            asked.done.set()

    # the caller's side

    def ask(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, str]]:
        """Those that have gaps, each with the reason. Raises AskingError, or what ``keep`` raised; what was kept stays."""
        self._left.extend(prompts)
        count = min(self._at_once, len(prompts))
        threads = [threading.Thread(target=self._run, name=f"ask-{n}", daemon=True) for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._stop.set()  # also when Ctrl-C comes: whoever waits, waits no longer
        if self._error is not None:
            raise self._error
        return self._gaps

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                if not self._left:
                    return
                prompt = self._left.popleft()
            try:
                why = self._until_whole(prompt)
            except Exception as error:  # noqa: BLE001 - raised by ``ask``, on the caller's thread
                with self._lock:
                    self._error = self._error or error
                self._stop.set()
                return
            with self._lock:
                if why:
                    self._gaps.append((prompt, why))
                else:
                    self.kept += 1

    def _until_whole(self, prompt: Prompt) -> str:
        """Empty once its states are written, else why they are not."""
        last: Gap | Exception = Gap("it was not asked any more")
        for attempt in range(self._tries):
            if attempt and self._stop.wait(_PAUSE_S * 2**attempt):
                break
            try:
                outcome = self._once(prompt)
            except (NoServerError, RefusedError) as error:
                last = error
                if isinstance(error, RefusedError) and not error.again:
                    break
                continue
            if isinstance(outcome, Recorded):
                self._keep(prompt, outcome)
                return ""
            last = outcome
        if isinstance(last, NoServerError):
            raise last
        if last is _SILENCE:
            raise AskingError(_SILENCE.why)
        return last.why if isinstance(last, Gap) else str(last)

    def _once(self, prompt: Prompt) -> Recorded | Gap:
        name = f"st.{prompt.name}.{secrets.token_hex(4)}"
        asked = _Asked(Wanted(name, len(prompt.tokens)))
        with self._lock:
            self._asked[name] = asked
        try:
            self._server.feed(prompt.tokens, name)
            asked.done.wait(_TELLS_S)
        finally:
            with self._lock:
                del self._asked[name]
        if isinstance(asked.outcome, NeverWholeError):
            raise AskingError(str(asked.outcome))
        return asked.outcome or _SILENCE


_SILENCE = Gap("the server has answered, and its tap has sent nothing of it: is it the engine that is connected here?")
