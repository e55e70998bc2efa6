"""``sidecar record``: from the first engine that comes to the last file."""

from __future__ import annotations

import threading
import time

from sidecar.clock import SystemClock
from sidecar.config import Config
from sidecar.log import Level, Log
from sidecar.record.asking import Asking
from sidecar.record.completions import Completions, NoServerError, RefusedError
from sidecar.record.folder import RecordFolder
from sidecar.record.options import Ask, Options
from sidecar.record.prompts import Prompt, read_prompts
from sidecar.record.recording import Recording
from sidecar.record.rows import how_to_tap
from sidecar.record.service import RecordServer
from sidecar.record.traffic import Say, record_traffic
from sidecar.recorded import RecordedError

_SHOWN_GAPS = 20
_POLL_S = 1.0


class NoEngineError(Exception):
    """No engine came; the text says what it must be started with."""


def record(config: Config, options: Options, say: Say) -> bool:
    """Record until every prompt is done or, without prompts, until SIGINT or SIGTERM. True if no request has gaps.

    Must run on the main thread. Raises ConfigError, RecordedError, PromptsError, AskingError, RefusedError, NoServerError or
    NoEngineError; what was recorded stays, and the same command goes on from there.
    """
    log = Log(SystemClock(), Level[config.log.level])
    with RecordFolder(options.folder, options.points) as folder:
        if options.ask is None:
            return record_traffic(config, options, folder, log, say)
        return _prompts(config, options, options.ask, folder, log, say)


def _prompts(config: Config, options: Options, ask: Ask, folder: RecordFolder, log: Log, say: Say) -> bool:
    prompts = read_prompts(ask.prompts)
    left = [prompt for prompt in prompts if not folder.has(prompt.name, prompt.tokens)]
    if len(left) < len(prompts):
        say(f"{len(prompts) - len(left):,} of {len(prompts):,} prompts were recorded before")
    if not left:
        return True
    server = Completions(ask.server)
    asking = Asking(
        server,
        lambda prompt, recorded: folder.write(prompt.name, recorded, prompt.tokens),
        at_once=ask.at_once,
        tries=ask.tries,
    )
    recording = Recording(options.points, asking, folder.claim, options.held_bytes)
    listening = RecordServer(config, recording, SystemClock(), log)
    listening.start()
    try:
        _await_engine(recording, listening.address, options)
        _await_server(server, options.wait_s)
        gaps = asking.ask(left)
    finally:
        listening.stop()
        say(f"{asking.kept:,} of {len(left):,} prompts recorded into {folder.folder}")
    _tell_gaps(gaps, recording, say)
    return not gaps


def _await_engine(recording: Recording, address: str, options: Options) -> None:
    came = recording.wait_for_engine(options.wait_s)
    if recording.refused:
        raise RecordedError(recording.refused)
    if not came:
        how = f"{how_to_tap(options.points)} STETHOSCOPE_ADDRESS={address}"
        raise NoEngineError(f"no engine came to {address} within {options.wait_s:g} s: {how}")


def _await_server(server: Completions, wait_s: float) -> None:
    """A server answers a while after its engine has come."""
    ends_s, pause = time.monotonic() + wait_s, threading.Event()
    while True:
        try:
            return server.meet()
        except (NoServerError, RefusedError) as error:
            if isinstance(error, RefusedError) and not error.again:
                raise
            if time.monotonic() > ends_s:
                raise
        pause.wait(_POLL_S)


def _tell_gaps(gaps: list[tuple[Prompt, str]], recording: Recording, say: Say) -> None:
    for prompt, why in gaps[:_SHOWN_GAPS]:
        say(f"not recorded: {prompt.name}: {why}")
    if len(gaps) > _SHOWN_GAPS:
        say(f"and {len(gaps) - _SHOWN_GAPS:,} more")
    if recording.dropped:
        say(f"taps dropped {recording.dropped:,} tokens meanwhile: STETHOSCOPE_QUEUE_S=60 lets a step wait for longer")
