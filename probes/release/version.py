"""The next version of an artifact, from what has changed: a contract is major, a retraining minor, a threshold a patch."""

from __future__ import annotations

import re
from enum import IntEnum

import numpy as np

from probes.artifact import Artifact
from probes.errors import LabError
from probes.manifest import Manifest
from probes.weights import Weights

FIRST = "1.0.0"
_FORM = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
# What a reading is of, and what its sign means. Whoever built on it must look again.
_CONTRACT = ("kind", "tap_point", "also", "feature_contract", "model", "positive_label", "negative_label")
_RETRAINED = ("aggregation", "training_data")
_NOT_CONTENT = frozenset({"version", "content_digest", "signature"})


class Change(IntEnum):
    """How much of an artifact is other than before."""

    NONE = 0
    PATCH = 1
    MINOR = 2
    MAJOR = 3


def change_from(previous: Artifact, new: Manifest, weights: Weights) -> Change:
    """Compare by meaning. Anything that is neither contract nor training (calibration, threshold, evidence, words) is a patch."""
    before = previous.manifest
    if any(getattr(before, name) != getattr(new, name) for name in _CONTRACT):
        return Change.MAJOR
    same_weights = np.array_equal(previous.directions, weights.directions) and np.array_equal(
        previous.offsets, weights.offsets
    )
    if not same_weights or any(getattr(before, name) != getattr(new, name) for name in _RETRAINED):
        return Change.MINOR
    was, now = (one.model_dump(exclude=set(_NOT_CONTENT)) for one in (before, new))
    return Change.NONE if was == now else Change.PATCH


def next_version(previous: str, change: Change) -> str:
    """Raise the number that the change is of, and set those behind it to 0.

    >>> next_version("1.4.2", Change.MINOR), next_version("1.4.2", Change.NONE)
    ('1.5.0', '1.4.2')
    """
    major, minor, patch = parsed(previous)
    return {
        Change.NONE: previous,
        Change.PATCH: f"{major}.{minor}.{patch + 1}",
        Change.MINOR: f"{major}.{minor + 1}.0",
        Change.MAJOR: f"{major + 1}.0.0",
    }[change]


def agreed_version(asked: str | None, previous: Artifact | None, new: Manifest, weights: Weights) -> str:
    """The version asked for, if it says as much as what has changed; the next one if none was asked for.

    Raises LabError for a version that is none, or is too low for the change.
    """
    if asked is not None:
        parsed(asked)
    if previous is None:
        return asked or FIRST
    change = change_from(previous, new, weights)
    least = next_version(previous.manifest.version, change)
    if asked is not None and parsed(asked) < parsed(least):
        raise LabError(
            f"version {asked} is too low: against {previous.manifest.version} this is {_WORDS[change]}, {least}"
        )
    return asked or least


def parsed(version: str) -> tuple[int, int, int]:
    """Raises LabError if it is not three numbers."""
    found = _FORM.fullmatch(version)
    if found is None:
        raise LabError(f"{version!r} is not a version: three numbers with points between them, like 1.4.2")
    return int(found[1]), int(found[2]), int(found[3])


_WORDS = {
    Change.NONE: "the same",
    Change.PATCH: "a patch (threshold, calibration or words)",
    Change.MINOR: "a minor version (trained anew)",
    Change.MAJOR: "a major version (the feature contract)",
}
