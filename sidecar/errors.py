"""What can go wrong, by what the caller does next. The texts are ours, fixed and short; they never quote the sender."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class RejectReason(StrEnum):
    """The sender's fault. The members are the only values that the label ``reason`` of rejected_total can have."""

    MALFORMED = "malformed"
    MISSING = "missing"
    BAD_TEXT = "bad_text"
    BAD_SHAPE = "bad_shape"
    BAD_DTYPE = "bad_dtype"
    SIZE_MISMATCH = "size_mismatch"
    NON_FINITE = "non_finite"
    BAD_POSITIONS = "bad_positions"
    BAD_ENUM = "bad_enum"
    BAD_TIMESTAMP = "bad_timestamp"
    BAD_COUNT = "bad_count"
    TOO_MANY = "too_many"
    UNKNOWN_ENGINE = "unknown_engine"
    UNKNOWN_TAP_POINT = "unknown_tap_point"
    UNKNOWN_GENERATION = "unknown_generation"


class DropReason(StrEnum):
    """Ours, or late. The members are the only values that the label ``reason`` of dropped_total can have."""

    DUPLICATE = "duplicate"
    SCORE_NON_FINITE = "score_non_finite"
    NO_PLAN = "no_plan"
    NO_ROWS = "no_rows"
    DEADLINE = "deadline"
    LADDER = "ladder"
    PROCESS_KILLED = "process_killed"
    SHUTTING_DOWN = "shutting_down"
    INTERNAL = "internal"


class Rejected(Exception):  # noqa: N818 - an outcome, not an error of ours
    """The batch is the sender's fault: give up on it, send the next one."""

    def __init__(self, reason: RejectReason, field: str) -> None:
        super().__init__(f"{reason.value} at {field}")
        self.reason = reason
        self.field = field


class Dropped(Exception):  # noqa: N818 - an outcome, not an error of ours
    """The batch was sound and is given up by the sidecar."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class OtherModelError(Exception):
    """An engine serves another model than the one that this sidecar is bound to."""


class EngineIdInUseError(Exception):
    """An engine of this id has an open stream: two engines cannot be told apart by one id."""


class TooManyEnginesError(Exception):
    """The configured number of engines is registered."""


class WorkerLostError(Exception):
    """The worker is gone: nothing that needs it can be done any more."""


class WorkerBusyError(Exception):
    """The worker did not answer in time: it is frozen, or at something long. Try again later."""


class OrderFailedError(Exception):
    """The worker ran into a bug of ours on that order; its log says which."""


class ArtifactReason(StrEnum):
    """Why an artifact cannot be used."""

    UNSAFE_PATH = "unsafe_path"
    NOT_REGULAR = "not_regular"
    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    PICKLE = "pickle"
    NOT_SAFETENSORS = "not_safetensors"
    BAD_HEADER = "bad_header"
    DUPLICATE_KEY = "duplicate_key"
    UNKNOWN_TENSOR = "unknown_tensor"
    OVERLAP = "overlap"
    HOLE = "hole"
    BAD_MANIFEST = "bad_manifest"
    BAD_SHAPE = "bad_shape"
    BAD_DTYPE = "bad_dtype"
    NON_FINITE = "non_finite"
    BAD_WEIGHTS = "bad_weights"
    BAD_DIGEST = "bad_digest"
    DUPLICATE_NAME = "duplicate_name"
    TOO_MANY = "too_many"
    OTHER_MODEL = "other_model"
    UNSIGNED = "unsigned"
    BAD_SIGNATURE = "bad_signature"


class ArtifactError(Exception):
    """An artifact is refused: serve without it, or go on with the generation before."""

    def __init__(self, reason: ArtifactReason, text: str) -> None:
        super().__init__(f"{reason.value}: {text}")
        self.reason = reason
        self.text = text


class ConfigError(Exception):
    """The configuration cannot be used; the process must not start. Carries every problem at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)
