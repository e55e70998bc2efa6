"""Where spans and events go: OTLP over gRPC, set up by the standard OTEL_* variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.exporter import InvalidCompressionValueException
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.trace.export import SpanExporter

from sidecar.errors import ConfigError

# gRPC's own pause between attempts grows to two minutes: a collector that is back would not be found for so long.
# Any: the exporters declare these options as text, and gRPC ignores numbers given as text.
_RECONNECT: Any = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 2000))
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL")


@dataclass(frozen=True, slots=True)
class Exporters:
    """The two ends. ``events`` is None if OTEL_LOGS_EXPORTER=none: the span alone then carries the scores."""

    spans: SpanExporter
    events: LogRecordExporter | None


@dataclass(frozen=True, slots=True)
class Pace:
    """How many requests go into one export, and how long the first of them waits for company."""

    batch: int = 512
    delay_s: float = 1.0


def disabled(env: Mapping[str, str] = os.environ) -> bool:
    """Whether OTEL_SDK_DISABLED=true or OTEL_TRACES_EXPORTER=none turns everything off."""
    return _word("OTEL_SDK_DISABLED", env).lower() == "true" or _word("OTEL_TRACES_EXPORTER", env) == "none"


def pace(env: Mapping[str, str] = os.environ) -> Pace:
    """Read OTEL_BSP_MAX_EXPORT_BATCH_SIZE, and OTEL_BSP_SCHEDULE_DELAY in milliseconds.

    Raises ConfigError for other than positive integers.
    """
    problems: list[str] = []
    batch = _positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", Pace().batch, env, problems)
    delay_ms = _positive("OTEL_BSP_SCHEDULE_DELAY", round(Pace().delay_s * 1000), env, problems)
    if problems:
        raise ConfigError(problems)
    return Pace(batch, delay_ms / 1000)


def connect(env: Mapping[str, str] = os.environ) -> Exporters:
    """Make the exporters. Nothing is sent yet, so a collector that is down is no error here.

    Raises ConfigError if the environment asks for what this version cannot do, for example OTLP over HTTP.
    """
    problems = [f"{name}: only grpc is supported" for name in _PROTOCOLS if _word(name, env) not in ("", "grpc")]
    problems += [
        f"{name}: only otlp and none are supported"
        for name in ("OTEL_TRACES_EXPORTER", "OTEL_LOGS_EXPORTER")
        if _word(name, env) not in ("", "otlp", "none")
    ]
    if problems:
        raise ConfigError(problems)
    try:
        spans = OTLPSpanExporter(channel_options=_RECONNECT)
        events = None if _word("OTEL_LOGS_EXPORTER", env) == "none" else OTLPLogExporter(channel_options=_RECONNECT)
    except (ValueError, RuntimeError, InvalidCompressionValueException) as error:
        raise ConfigError([f"OTEL_EXPORTER_OTLP_*: {error}"]) from error
    return Exporters(spans, events)


def _word(name: str, env: Mapping[str, str]) -> str:
    return env.get(name, "").strip()


def _positive(name: str, default: int, env: Mapping[str, str], problems: list[str]) -> int:
    value = _word(name, env) or str(default)
    if value.isascii() and value.isdigit() and int(value) > 0:
        return int(value)
    problems.append(f"{name}: want a positive integer")
    return default
