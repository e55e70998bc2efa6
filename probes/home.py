"""Whether what was made on one model may be read on the model that is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from probes.manifest.binding import ModelBinding, ServingConfig
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import Evidence, ModelIdentity


@dataclass(frozen=True, slots=True)
class Fit:
    """What an artifact is worth on the model that is served, and why."""

    evidence: Evidence
    reason: str


def served_as(model: ModelIdentity) -> ServingConfig:
    return ServingConfig(model.weights_digest, model.dtype, model.quantisation, model.engine)


def moved_from(name: str, made: ModelBinding, width: int, model: ModelIdentity) -> str:
    """What is other than where ``name`` was made, in words that name both sides; "" if it is at home.

    Raises ArtifactError(OTHER_MODEL), naming both sides, if its directions would mean nothing there: another
    architecture, number of layers, width or tokenizer. Another or unknown weights digest, dtype, quantisation or
    engine, or a tokenizer that is not known, is a move.
    """
    fixed = [
        ("architecture", made.architecture, model.architecture),
        ("layers", made.layers, model.layers),
        ("layers of the encoder", made.encoder_layers or 0, model.encoder_layers),
        ("width", width, model.width),
    ]
    names = [name.replace("_", " ") for name in ServingConfig._fields]
    moving = list(zip(names, made.serving, served_as(model), strict=True))
    tokenizer = ("tokenizer digest", made.tokenizer_digest, model.tokenizer_digest)
    (moving if not model.tokenizer_digest else fixed).append(tokenizer)
    if others := _differences(fixed):
        raise ArtifactError(ArtifactReason.OTHER_MODEL, f"{name} was made for another model: {others}")
    return _differences(moving)


def _differences(pairs: list[tuple[str, Any, Any]]) -> str:
    return "; ".join(
        f"{what}: made on {_short(made)}, served by {_short(served)}" for what, made, served in pairs if made != served
    )


def _short(value: Any) -> str:
    text = str(value)
    return (text[:12] if len(text) == 64 else text[:80]) or "(not known)"
