"""From all sources to one configuration, with every problem reported at once.

Sources, later ones win: defaults, one YAML file, ``STETHOSCOPE_*`` environment (``STETHOSCOPE_METRICS__PORT=9500``), flags.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sidecar.config.tree import RELATIONS, Config
from sidecar.errors import ConfigError
from sidecar.sources import env_settings, prune, put, read_yaml

_TEXTS = {"extra_forbidden": "no such setting"}


def load_config(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    problems: Sequence[str] = (),
) -> Config:
    """Merge the sources and validate: the only way to a Config that may be served with.

    flags are dotted keys ("metrics.port"); problems: those that the caller has already found. Raises ConfigError listing
    every problem of every source at once.
    """
    found = list(problems)
    tree = read_yaml(path, found) if path is not None else {}
    for keys, value in env_settings(os.environ if env is None else env, _known_settings(), found):
        put(tree, keys, value, found)
    for name, value in (flags or {}).items():
        put(tree, name.split("."), value, found)
    config = _validate(tree, found)
    if found or config is None:
        raise ConfigError(list(dict.fromkeys(found)))
    return config


def _known_settings() -> dict[str, tuple[str, ...]]:
    sections = {name: field.default_factory for name, field in Config.model_fields.items()}
    return {name: tuple(one.model_fields) for name, one in sections.items() if isinstance(one, type(BaseModel))}


def _validate(tree: dict[str, Any], problems: list[str]) -> Config | None:
    """The tree as a Config. With what is wrong taken out, relations between the settings that are sound are judged too."""
    wrong: list[str] = []
    config: Config | None = None
    nothing_said: dict[str, Any] = {name: {} for name in Config.model_fields}
    try:
        config = Config.model_validate(nothing_said | tree)
    except ValidationError as invalid:
        for error in invalid.errors():
            wrong.append(".".join(map(str, error["loc"])))
            text = _TEXTS.get(error["type"], error["msg"]).removeprefix("Value error, ")
            problems.append(f"{wrong[-1]}: {text}")
            prune(tree, error["loc"])
        with suppress(ValidationError):  # a default is wrong here: there is no telling what would hold
            config = Config.model_validate(nothing_said | tree)
    for relation in RELATIONS:
        sound = not any(f"{one}.".startswith(f"{bad}.") for one in relation.settings for bad in wrong)
        if sound and config is not None and not relation.holds(config):
            problems.append(relation.text)
    return config
