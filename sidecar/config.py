"""The whole configuration: one frozen tree, every default here, every problem reported at once.

Sources, later ones win: defaults, one YAML file, ``STETHOSCOPE_*`` environment (``STETHOSCOPE_METRICS__PORT=9500``), flags.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sidecar.errors import ConfigError
from sidecar.types import SamplingPolicy

ENV_PREFIX = "STETHOSCOPE_"
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]


def default_socket() -> str:
    """A socket in a folder of this user's own: $XDG_RUNTIME_DIR if there is one, otherwise the temporary folder."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return f"unix:{base}/stethoscope-{os.getuid()}/sidecar.sock"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(_Section):
    """Where taps connect."""

    address: Annotated[str, Field(description="unix:PATH, or HOST:PORT on loopback")] = Field(
        default_factory=default_socket
    )
    reflection: Annotated[bool, Field(description="serve gRPC reflection")] = False
    max_message_bytes: Annotated[int, Field(ge=4096, le=1 << 30, description="largest message accepted")] = 32 << 20
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
            return value
        host, _, port = value.rpartition(":")
        if not port.isdigit() or not 0 <= int(port) <= 65535:
            raise ValueError("want unix:/PATH or HOST:PORT")
        if not _is_loopback(host):
            raise ValueError("a TCP address other than loopback needs TLS, which this version does not have")
        return value


class Artifacts(_Section):
    """Which probes are read."""

    folder: Annotated[Path | None, Field(description="folder with one sub-folder per artifact")] = None
    reload_s: Annotated[Seconds, Field(description="how often the folder is looked at")] = 1.0
    max_columns: Annotated[int, Field(gt=0, le=4096, description="directions per tap point")] = 256
    max_artifacts: Annotated[int, Field(gt=0, le=4096, description="artifacts in the folder")] = 256


class Limits(_Section):
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


class Coverage(_Section):
    """When silence is called blindness."""

    window_s: Annotated[Seconds, Field(description="expected and seen are compared over so long")] = 2.0
    min_seen: Annotated[Share, Field(description="share of expected tokens that must be seen")] = 0.99
    min_control: Annotated[Share, Field(description="share of rows whose positive control must read right")] = 0.9
    report_s: Annotated[Seconds, Field(description="a connected engine must report its traffic this often")] = 3.0
    forget_s: Annotated[Seconds, Field(description="a lost engine is forgotten after so long")] = 3600.0


class Sampling(_Section):
    """What taps are asked to capture."""

    request_fraction: Share = 0.1
    token_stride: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    first_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    last_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0

    def policy(self) -> SamplingPolicy:
        return SamplingPolicy(self.request_fraction, self.token_stride, self.first_tokens, self.last_tokens)


class Metrics(_Section):
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


class Traces(_Section):
    """Spans by OTLP/gRPC; endpoint, headers and the like come from the standard OTEL_* variables."""

    enabled: Annotated[bool, Field(description="export spans and evaluation events")] = False
    root_fraction: Annotated[Share, Field(description="share of requests without traceparent that get a span")] = 0.1
    queue: Annotated[int, Field(gt=0, le=1 << 20, description="ended requests waiting to become spans")] = 2048
    shutdown_s: Annotated[Seconds, Field(description="time given to the last export")] = 3.0


class Budget(_Section):
    """The latency contract."""

    step_ms: Annotated[Seconds, Field(description="from last byte received to verdict written")] = 6.0


class Log(_Section):
    """JSON lines on stderr."""

    level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    lines_per_s: Annotated[int, Field(gt=0, le=10000, description="lines per event name and second")] = 10


class Config(_Section):
    """The sidecar's configuration."""

    listen: Listen = Field(default_factory=Listen)
    artifacts: Artifacts = Field(default_factory=Artifacts)
    limits: Limits = Field(default_factory=Limits)
    coverage: Coverage = Field(default_factory=Coverage)
    sampling: Sampling = Field(default_factory=Sampling)
    metrics: Metrics = Field(default_factory=Metrics)
    traces: Traces = Field(default_factory=Traces)
    budget: Budget = Field(default_factory=Budget)
    log: Log = Field(default_factory=Log)

    @model_validator(mode="after")
    def _relations(self) -> Config:
        if self.limits.segments > self.limits.rows:
            raise ValueError("limits.segments must not exceed limits.rows: every segment has a row")
        if self.limits.segments > self.limits.requests:
            raise ValueError(
                "limits.segments must not exceed limits.requests: the requests of one step are tracked at once"
            )
        if self.coverage.window_s >= self.coverage.forget_s:
            raise ValueError("coverage.window_s must be below coverage.forget_s")
        return self


def load_config(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Merge the sources and validate. Raises ConfigError listing every problem; flags are dotted keys ("metrics.port")."""
    problems: list[str] = []
    tree = _read_yaml(path, problems) if path is not None else {}
    for keys, text in _env_keys(env if env is not None else os.environ):
        _put(tree, keys, yaml.safe_load(text) if text else text, problems)
    for name, value in (flags or {}).items():
        _put(tree, name.split("."), value, problems)
    try:
        config = Config.model_validate(tree)
    except ValidationError as invalid:
        problems.extend(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in invalid.errors())
    if problems:
        raise ConfigError(problems)
    return config


def _read_yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path}: cannot be read: {type(error).__name__}")
        return {}
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        problems.append(f"{path}: want a mapping at the top")
        return {}
    return tree


def _env_keys(env: Mapping[str, str]) -> Iterable[tuple[list[str], str]]:
    """Variables with a double underscore are settings; the others (STETHOSCOPE_TAP, _CACHE) are for other parts."""
    for name in sorted(env):
        if name.startswith(ENV_PREFIX) and "__" in name:
            yield name.removeprefix(ENV_PREFIX).lower().split("__"), env[name]


def _put(tree: dict[str, Any], keys: list[str], value: Any, problems: list[str]) -> None:
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            problems.append(f"{'.'.join(keys)}: {key} is not a section")
            return
        tree = child
    tree[keys[-1]] = value
