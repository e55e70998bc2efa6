"""Probes to and from other tools' files. What comes in begins as a draft: its weights are known, its worth is not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from probes.artifact import load_artifact
from probes.draft import Draft
from probes.errors import LabError
from probes.manifest import Aggregation, AggregationKind
from probes.release import npz, sklearn_file, steering, tensors
from probes.release.plain import Outgoing, PlainProbe, outgoing
from probes.serving import Served
from probes.stages import Part, Places, Training, named
from probes.training.table import in_words
from sidecar.errors import ArtifactError

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore


@dataclass(frozen=True, slots=True)
class Format:
    """write raises LabError for a probe that the format cannot hold, read for a file that is not of the format."""

    write: Callable[[Path, Outgoing], None]
    read: Callable[[Path], PlainProbe]
    text: str


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "sklearn": Format(sklearn_file.write, sklearn_file.read, "a scikit-learn linear classifier, by skops"),
        "safetensors": Format(tensors.write, tensors.read, "tensors w and b"),
        "npz": Format(npz.write, npz.read, "hulder's probe file"),
        "steering": Format(steering.write, steering.read, "a steering vector: a GGUF control vector"),
    }
)
# The kind that controls are trained with: the plainest one that has as many directions.
_KINDS = {
    AggregationKind.ATTENTION: "attention",
    AggregationKind.MAX_ROLLING_ATTENTION: "max_rolling_attention",
    AggregationKind.MULTIMAX: "multimax",
}
_PLAIN_KIND = "logistic"
_Said = TypeVar("_Said", Places, Aggregation)


@dataclass(frozen=True, slots=True)
class Origin:
    """What to call an imported probe, and what its file may not say; what the file says, these may not contradict."""

    name: str
    everywhere: Places | None = None
    aggregation: Aggregation | None = None
    seed: int = 0


def export_probe(folder: Path, form: str, into: Path, *, scale: float | None = None) -> None:
    """Write the artifact in ``folder`` as another tool's file, whole or not at all. Its readings are ours, before calibration.

    scale: length of a steering vector (1 if None); for no other format. Raises LabError.
    """
    if scale is not None and form != "steering":
        raise LabError(f"a scale is for a steering vector, not for {form}")
    try:
        artifact = load_artifact(folder, root=folder)
    except ArtifactError as error:
        raise LabError(f"{folder}: {error.text}") from None
    out = outgoing(artifact)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=into.parent) as work:
            made = Path(work) / into.name
            if scale is None:
                FORMATS[form].write(made, out)
            else:
                steering.write(made, out, scale)
            made.chmod(0o644)
            made.replace(into)
    except OSError as error:
        raise LabError(f"{into}: {error.strerror}") from None


def import_probe(path: Path, form: str, store: ActivationStore, origin: Origin, into: Path) -> Training:
    """Make a draft of another tool's probe, to be calibrated, evaluated and validated on a store's texts.

    The texts are divided as for training, and none of them has taught it; controls are trained with the plainest kind of as
    many directions. Raises LabError if the file, the store and ``origin`` do not fit each other.
    """
    plain = FORMATS[form].read(path)
    everywhere = _agreed(path, "tap point", plain.everywhere, origin.everywhere)
    aggregation = _agreed(path, "aggregation", plain.aggregation, origin.aggregation)
    served = Served(plain.directions, plain.offsets, aggregation)
    _must_fit(path, served, store, everywhere)
    training = _training(path, form, store, origin, everywhere, served)
    Draft(into).write_trained(training, served)
    return training


def _training(
    path: Path, form: str, store: ActivationStore, origin: Origin, everywhere: Places, served: Served
) -> Training:
    import numpy as np

    from probes.auroc import auroc
    from probes.data.parts import assign_parts
    from probes.kinds.beside import states_at
    from probes.kinds.registry import KINDS

    parts = assign_parts(store.texts, origin.seed, outside=frozenset(store.facts.outside))
    select = [row for row, part in enumerate(parts) if part is Part.SELECT]
    labels = np.array([store.texts[row].label for row in select], dtype=np.bool_)
    scores = served.scores(states_at(store, everywhere, select))
    if not np.isfinite(scores).all():
        raise LabError(f"{path}: its readings of {store.folder} are not finite")
    kind = _KINDS.get(served.aggregation.kind, _PLAIN_KIND)
    strengths = KINDS[kind].strengths
    return Training(
        name=origin.name,
        description=f"Imported from {path.name} ({FORMATS[form].text}).",
        positive_label=store.facts.positive_label,
        negative_label=store.facts.negative_label,
        store=str(store.folder.resolve()),
        store_digest=store.digest,
        kind=kind,
        tap_point=everywhere[0].name,
        also=tuple(where.name for where in everywhere[1:]),
        aggregation=served.aggregation,
        strength=strengths[len(strengths) // 2],
        seed=origin.seed,
        parts=parts,
        select_auroc=auroc(scores, labels),
        candidates=(),
        seconds=0.0,
    )


def _must_fit(path: Path, served: Served, store: ActivationStore, everywhere: Places) -> None:
    have, wanted = served.directions.shape[1], served.aggregation.columns
    if have != wanted:
        raise LabError(f"{path}: {have} directions, and {served.aggregation.kind.value} takes {wanted}")
    widths = store.facts.widths
    missing = [where.name for where in everywhere if where.name not in widths]
    if missing:
        raise LabError(f"{store.folder} has no {', '.join(missing)}; it has {', '.join(store.facts.tap_points)}")
    width = sum(widths[where.name] for where in everywhere)
    if width != served.directions.shape[0]:
        raise LabError(f"{path}: its directions have {served.directions.shape[0]} features, {store.folder} has {width}")


def _agreed(path: Path, what: str, told: _Said | None, asked: _Said | None) -> _Said:
    """Either side may be silent, not both; neither may contradict the other."""
    said = told if told is not None else asked
    if said is None:
        raise LabError(f"{path}: it does not say its {what}: say it (--{what.replace(' ', '-')})")
    if asked is not None and said != asked:
        raise LabError(f"{path}: its {what} is {_name(said)}, not {_name(asked)}")
    return said


def _name(said: Places | Aggregation) -> str:
    return in_words(said) if isinstance(said, Aggregation) else named(said)
