"""Which sessions bet here, and under which name this run of this replica marks its sketches."""

from __future__ import annotations

import hashlib
import secrets

from sidecar.circuits.sessions import Share
from sidecar.config import Circuits as Config
from sidecar.errors import ConfigError


def share_of(config: Config) -> Share:
    """Raises ConfigError if the key cannot be read, or is empty."""
    if config.key_file is None:
        return Share(config.replica, config.replicas)
    try:
        key = config.key_file.read_bytes()
    except OSError as error:
        raise ConfigError([f"circuits.key_file: {error.strerror}"]) from None
    if not key.strip():
        raise ConfigError(["circuits.key_file: it is empty, and everybody could choose where a session bets"])
    return Share(config.replica, config.replicas, hashlib.sha256(key.strip()).digest())


def new_source(config: Config) -> str:
    """Another one at every start: what was counted before a restart is no repetition of what comes after it."""
    return f"replica-{config.replica}-{secrets.token_hex(4)}"
