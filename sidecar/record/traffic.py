"""Whatever requests others send to an engine, recorded as they end."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable

from sidecar.clock import SystemClock
from sidecar.config import Config
from sidecar.log import Log
from sidecar.record.folder import RecordFolder
from sidecar.record.options import Options
from sidecar.record.recording import Outcome, Recording, Wanted
from sidecar.record.rows import Recorded
from sidecar.record.service import RecordServer
from sidecar.recorded import RecordedError
from sidecar.types import RequestId

Say = Callable[[str], None]
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_NAME_CHARS = 150
_POLL_S = 0.2


class _Traffic:
    """Every request that comes, each into a file of its name, as soon as it ends."""

    def __init__(self, folder: RecordFolder, say: Say) -> None:
        self.kept = self.gaps = 0
        self.over = False  # no lock: a signal's handler sets it, whatever its thread is just holding
        self.error: RecordedError | None = None
        self._folder, self._say = folder, say

    def choose(self, request: RequestId) -> Wanted | None:
        return None if self.over else Wanted(request)

    def settled(self, wanted: Wanted, outcome: Outcome) -> None:
        if isinstance(outcome, Recorded):
            self._keep(wanted.name, outcome)
        else:
            self.gaps += 1
            self._say(f"not recorded: {wanted.name}: {getattr(outcome, 'why', outcome)}")

    def end(self) -> None:
        """Want no more."""
        self.over = True

    def _keep(self, request: str, recorded: Recorded) -> None:
        try:
            self._folder.write(_NOT_IN_A_NAME.sub("_", request)[:_NAME_CHARS], recorded, None)
        except RecordedError as error:
            self.error = error
            self.over = True
        else:
            self.kept += 1
            self._say(f"{request}: {len(recorded.bits)} tokens")


def record_traffic(config: Config, options: Options, folder: RecordFolder, log: Log, say: Say) -> bool:
    """Until SIGINT or SIGTERM. True if no request has gaps. Raises ConfigError or RecordedError. Only on the main thread."""
    requests = _Traffic(folder, say)
    recording = Recording(options.points, requests, folder.claim, options.held_bytes)
    listening = RecordServer(config, recording, SystemClock(), log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: requests.end())
    listening.start()
    pause = threading.Event()
    try:
        while not (requests.over or recording.refused):
            pause.wait(_POLL_S)
    finally:
        listening.stop()
    say(f"{requests.kept:,} requests recorded into {folder.folder}, {requests.gaps:,} not")
    if recording.refused:
        raise RecordedError(recording.refused)
    if requests.error is not None:
        raise requests.error
    return not requests.gaps
