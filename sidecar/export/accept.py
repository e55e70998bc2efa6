"""Which of three fixed formats a scraper wants most."""

from __future__ import annotations

from enum import Enum


class Format(Enum):
    """The formats of the page, the richest first. A value is the content type, the same for every scraper."""

    PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    TEXT = "text/plain; version=0.0.4; charset=utf-8"


_NAMES = {
    "application/vnd.google.protobuf": Format.PROTOBUF,
    "application/openmetrics-text": Format.OPENMETRICS,
    "text/plain": Format.TEXT,
}
_WANTED = {
    Format.PROTOBUF: {"proto": "io.prometheus.client.metricfamily", "encoding": "delimited"},
    Format.OPENMETRICS: {"version": "1.0.0"},
    Format.TEXT: {},
}


def negotiate(accept: str) -> Format:
    """Return the format with the highest quality in the header, the richest of equals; text if none of them is named.

    Nothing is echoed: a version or an escaping that is asked for is not part of the answer.

    >>> negotiate("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    <Format.OPENMETRICS: 'application/openmetrics-text; version=1.0.0; charset=utf-8'>
    >>> negotiate("text/plain, */*;q=0.1").name
    'TEXT'
    """
    welcome = dict.fromkeys(Format, 0.0)
    for entry in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        settings = dict(part.split("=", 1) for part in parameters if "=" in part)
        named = _NAMES.get(kind)
        if named is not None and _is_ours(named, settings):
            welcome[named] = max(welcome[named], _quality(settings))
    best = max(Format, key=welcome.__getitem__)  # the first of equals
    return best if welcome[best] > 0 else Format.TEXT


def _is_ours(named: Format, settings: dict[str, str]) -> bool:
    """Whether what the header says about the format is true of ours; what it does not say is ours to choose."""
    return all(settings.get(key, value).strip('"') == value for key, value in _WANTED[named].items())


def _quality(settings: dict[str, str]) -> float:
    try:
        quality = float(settings.get("q", "1"))
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
