"""The sections of the configuration: every setting, its bounds and its default."""

from __future__ import annotations

import ipaddress
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sidecar.address import default_address
from sidecar.types import Action, Mode, SamplingPolicy

Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]  # beyond 30 years the system's waits overflow
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
# gRPC decodes or cuts the path there, and would listen in a folder that nobody has checked.
_NOT_IN_A_PATH = re.compile(r"[%?#\x00-\x1f]")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(Section):
    """Where taps connect."""

    model_config = ConfigDict(validate_default=True)  # the default address is made from the environment

    address: Annotated[str, Field(description="unix:PATH, or HOST:PORT on loopback")] = Field(
        default_factory=default_address
    )
    reflection: Annotated[bool, Field(description="serve gRPC reflection")] = False
    # A compressed message costs this much memory before it is refused (one of 256 MiB: 27 MiB); a tap sends 16 MiB at most.
    max_message_bytes: Annotated[int, Field(ge=4096, le=1 << 30, description="largest message accepted")] = 24 << 20
    max_streams: Annotated[int, Field(gt=0, le=1024, description="calls served at once")] = 64
    drain_s: Annotated[Seconds, Field(description="time given to open calls at SIGTERM")] = 5.0

    @field_validator("address")
    @classmethod
    def _unix_or_loopback(cls, value: str) -> str:
        if value.startswith("unix:"):
            path = value.removeprefix("unix:")
            if not path.startswith("/"):
                raise ValueError("a unix: address needs an absolute path")
            if len(os.fsencode(path)) > 100:
                raise ValueError("the socket's path is longer than the 100 bytes a Unix socket can have")
            if _NOT_IN_A_PATH.search(path):
                raise ValueError("the socket's path has a character that gRPC reads as part of a URI: % ? #")
            return value
        host, _, port = value.rpartition(":")
        if not port.isdigit() or not 0 <= int(port) <= 65535:
            raise ValueError("want unix:/PATH or HOST:PORT")
        if not _is_loopback(host):
            raise ValueError("a TCP address other than loopback needs TLS, which this version does not have")
        return value


class Artifacts(Section):
    """Which probes are read."""

    folder: Annotated[Path | None, Field(description="folder with one sub-folder per artifact; empty for none")] = None
    reload_s: Annotated[Seconds, Field(description="how often the folder is looked at")] = 1.0
    max_columns: Annotated[int, Field(gt=0, le=4096, description="directions per tap point")] = 256
    max_artifacts: Annotated[int, Field(gt=0, le=4096, description="artifacts in the folder")] = 256
    public_key: Annotated[
        Path | None,
        Field(description="Ed25519 key in PEM that must have signed every artifact; empty: none need be signed"),
    ] = None

    @field_validator("folder", "public_key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class Limits(Section):
    """Bounds of everything that could grow."""

    rows: Annotated[int, Field(gt=0, le=1 << 20, description="tokens per step batch")] = 16384
    segments: Annotated[int, Field(gt=0, le=65536, description="segments per step batch")] = 1024
    tensors: Annotated[int, Field(gt=0, le=1024, description="tap points per step batch")] = 64
    finished: Annotated[int, Field(gt=0, le=65536, description="finished ids per step batch")] = 4096
    requests: Annotated[int, Field(gt=0, le=1 << 20, description="requests with running scores")] = 4096
    request_idle_s: Annotated[Seconds, Field(description="a request without rows for so long has ended")] = 120.0
    dedup_ids: Annotated[int, Field(gt=0, le=1 << 22, description="batch ids remembered")] = 65536
    engines: Annotated[int, Field(gt=0, le=1024, description="engines registered")] = 16
    clock_skew_s: Annotated[Seconds, Field(description="how far taken_ns may be from our clock")] = 3600.0


class Coverage(Section):
    """When silence is called blindness."""

    window_s: Annotated[Seconds, Field(description="expected and seen are compared over so long")] = 2.0
    min_seen: Annotated[Share, Field(description="share of expected tokens that must be seen")] = 0.99
    min_control: Annotated[Share, Field(description="share of rows whose positive control must read right")] = 0.9
    report_s: Annotated[Seconds, Field(description="a connected engine must report its traffic this often")] = 3.0
    engines: Annotated[int, Field(ge=0, le=1024, description="engines that must be there; fewer is blind")] = 1
    engine_grace_s: Annotated[
        Seconds, Field(description="so long may an engine be missing, at its start or restart")
    ] = 120.0
    forget_s: Annotated[Seconds, Field(description="a lost engine is forgotten after so long")] = 600.0


class Sampling(Section):
    """What taps are asked to capture."""

    mode: Annotated[Mode, Field(description="raw: the sidecar multiplies; projected: the tap does")] = Mode.RAW
    request_fraction: Annotated[
        Share | None, Field(description="share of requests; a tenth in raw mode, all in projected mode if empty")
    ] = None
    token_stride: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    first_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    last_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    sampled_steps: Annotated[
        Share, Field(description="projected mode: share of steps that carry a few raw rows as a check")
    ] = 0.01

    def policy(self) -> SamplingPolicy:
        share = self.request_fraction
        if share is None:
            share = 1.0 if self.mode is Mode.PROJECTED else 0.1
        return SamplingPolicy(share, self.token_stride, self.first_tokens, self.last_tokens)


class Metrics(Section):
    """Where Prometheus scrapes."""

    host: str = "127.0.0.1"
    port: Port = 9464
    max_connections: Annotated[int, Field(gt=0, le=256)] = 16
    header_timeout_s: Seconds = 5.0

    @field_validator("host")
    @classmethod
    def _loopback(cls, value: str) -> str:
        if not _is_loopback(value):
            raise ValueError("/metrics listens on loopback only until it can authenticate")
        return value


class Traces(Section):
    """Spans by OTLP/gRPC; endpoint, headers and the like come from the standard OTEL_* variables."""

    enabled: Annotated[bool, Field(description="export spans and evaluation events")] = False
    root_fraction: Annotated[Share, Field(description="share of requests without traceparent that get a span")] = 0.1
    queue: Annotated[int, Field(gt=0, le=1 << 20, description="ended requests waiting to become spans")] = 2048
    shutdown_s: Annotated[Seconds, Field(description="time given to the last export")] = 3.0


class Budget(Section):
    """The latency contract."""

    step_ms: Annotated[Seconds, Field(description="from last byte received to verdict written")] = 6.0
    rows: Annotated[
        int, Field(gt=0, le=1 << 20, description="rows that step_ms is for; a larger step has more, in proportion")
    ] = 256
    queue_s: Annotated[Seconds, Field(description="a batch that waited longer for its turn is dropped unread")] = 2.0


class Ladder(Section):
    """When the sidecar sheds work, and when it takes it up again."""

    enabled: Annotated[bool, Field(description="off: every batch is read in full, however long it takes")] = True
    window_s: Annotated[Seconds, Field(description="steps are judged over so long")] = 1.0
    high: Annotated[float, Field(gt=0, le=100, description="budget use above which a step is over")] = 1.0
    low: Annotated[float, Field(gt=0, le=100, description="budget use below which there is room")] = 0.5
    over_share: Annotated[Share, Field(description="share of steps over their budget that leads a rung down")] = 0.1
    queue_age_ms: Annotated[Seconds, Field(description="wait for a turn that counts as over, whatever the use")] = 20.0
    up_s: Annotated[Seconds, Field(description="so long must there be room before it goes a rung up")] = 5.0
    max_up_s: Annotated[Seconds, Field(description="the wait doubles up to here while going up fails")] = 300.0


class Verdicts(Section):
    """What a signal over its threshold leads to."""

    default: Annotated[Action, Field(description="for signals that are not named below")] = Action.FLAG
    signals: Annotated[dict[str, Action], Field(description="action by signal name")] = Field(default_factory=dict)
    at_deadline: Annotated[
        Action, Field(description="allow (fail open) or block (fail closed): the answer if no verdict is there in time")
    ] = Action.ALLOW

    @field_validator("at_deadline")
    @classmethod
    def _open_or_closed(cls, value: Action) -> Action:
        if value not in (Action.ALLOW, Action.BLOCK):
            raise ValueError("want allow or block")
        return value


class Worker(Section):
    """The hot path."""

    process: Annotated[bool, Field(description="give it a process of its own; otherwise it is a thread")] = True
    shards: Annotated[int, Field(ge=0, le=64, description="further processes that read tap points in parallel")] = 0
    calibrate_ms: Annotated[Seconds, Field(description="time given to the choice of a kernel when a plan is made")] = (
        200.0
    )


class Ring(Section):
    """Shared memory for taps on this machine."""

    enabled: Annotated[bool, Field(description="offer it to taps at a Unix socket")] = True
    slots: Annotated[int, Field(ge=1, le=64, description="messages on their way at once")] = 2
    slot_bytes: Annotated[
        int, Field(ge=4 << 20, le=1 << 30, description="largest message; a tap cuts its steps to fit")
    ] = 24 << 20
    hot_bytes: Annotated[int, Field(ge=0, le=1 << 30, description="of each slot, mapped in advance")] = 4 << 20


class Circuits(Section):
    """How circuits are followed on live traffic."""

    tick_s: Annotated[int, Field(ge=1, le=3600, description="sketches close, and detectors look, this often")] = 60
    slices: Annotated[
        tuple[str, ...], Field(max_length=7, description="routes that are told apart; all others are one slice")
    ] = ()
    sessions: Annotated[int, Field(gt=0, le=1 << 20, description="sessions remembered")] = 4096
    session_ticks: Annotated[
        int,
        Field(
            gt=0, le=10080, description="a session without rows for so long has ended; one that comes back bets again"
        ),
    ] = 60
    requests_are_sessions: Annotated[
        bool, Field(description="a request that names no session is one; requests of one user then count many times")
    ] = False
    run_length: Annotated[
        int,
        Field(
            ge=10, le=1 << 40, description="ticks to a false alarm of one circuit, at least, while its baseline holds"
        ),
    ] = 43_200
    cool_down: Annotated[int, Field(ge=1, le=10080, description="ticks after an alarm in which no other comes")] = 60
    resume_ticks: Annotated[
        int,
        Field(
            ge=0,
            le=1440,
            description="after a restart detectors go on if no more ticks than these were missed; 0: never",
        ),
    ] = 60
    diagnose_s: Annotated[Seconds, Field(description="so long does an alarm wait for canaries to answer")] = 60.0
    replica: Annotated[int, Field(ge=0, le=1023, description="which of the replicas this one is")] = 0
    replicas: Annotated[int, Field(ge=1, le=1024, description="sidecars that share the traffic of one model")] = 1
    key_file: Annotated[
        Path | None, Field(description="secret by which a session bets on one replica; the same on all of them")
    ] = None
    file_ticks: Annotated[
        int,
        Field(
            ge=4, le=3600, description="a file of the archive holds so many ticks: that much is lost with the machine"
        ),
    ] = 60  # what an alarm rests on is 240 ticks at most: a record never names too many files
    archive: Annotated[
        Path | None, Field(description="folder for sketches (Parquet) and the records of alarms; empty: none are kept")
    ] = None

    @field_validator("key_file", "archive", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("slices")
    @classmethod
    def _distinct_routes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len({*value, "other", "all"}) != len(value) + 2:
            raise ValueError("want each route once, none of them called other or all")
        if not all(re.fullmatch(r"[A-Za-z0-9._/-]{1,64}", one) for one in value):
            raise ValueError("want routes of letters, digits and . _ / -")
        return value


class Marks(StrEnum):
    """Where a request carries the token by which the tap believes that it is a canary."""

    HEADERS = "headers"  # transformers' launcher
    VLLM_XARGS = "vllm_xargs"  # vLLM, in the body


class Canary(Section):
    """Fixed prompts that are sent through the live engine, to see whether the model is still the same."""

    url: Annotated[
        str, Field(pattern=r"^(https?://[^\s/]+)?$", description="of the engine's OpenAI server; empty: none are sent")
    ] = ""
    path: Annotated[
        str, Field(pattern=r"^/[!-~]*$", description="where completions, or chat completions, are asked for")
    ] = "/v1/chat/completions"
    model: Annotated[
        str, Field(pattern=r"^[^\[\]{}\"\x00-\x1f]{0,512}$", description="name of the model, as the engine knows it")
    ] = ""
    marks: Marks = Marks.HEADERS
    token_file: Annotated[
        Path | None, Field(description="what the tap's STETHOSCOPE_CANARY_TOKEN is; canary.url needs it")
    ] = None
    prompts: Annotated[Path | None, Field(description="a prompt a line, 8 to 128; empty: 32 of our own")] = None
    reference: Annotated[
        Path | None,
        Field(description="what `sidecar canary record` made on the sound model; empty: nothing is compared"),
    ] = None
    every_s: Annotated[Seconds, Field(description="a round begins this often")] = 300.0
    request_timeout_s: Annotated[Seconds, Field(description="patience with one answer")] = 30.0
    limit: Annotated[
        float, Field(gt=1, le=1e6, description="floors of noise above which something has moved, two rounds in a row")
    ] = 5.0

    @field_validator("token_file", "prompts", "reference", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class Data(Section):
    """What outlives the process."""

    folder: Annotated[
        Path | None, Field(description="for the ledger; empty: beside the Unix socket, in memory for TCP")
    ] = None

    @field_validator("folder", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class Log(Section):
    """JSON lines on stderr."""

    level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    lines_per_s: Annotated[int, Field(gt=0, le=10000, description="lines per event name and second")] = 10
