"""The probe beside what plain text features reach on the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from probes.baselines import baseline_scores
from probes.datasets import Example
from probes.evaluate import auroc
from probes.quality.bootstrap import Resamples
from probes.quality.rows import Rows
from probes.stages import Rival

Array = npt.NDArray[np.float64]
LENGTH = "length"
WORDS = "tfidf_word"


def rival_scores(train: Rows, test: Rows) -> dict[str, Array]:
    """Test scores of the text baselines by name; lengths in tokens are those that the probe read."""
    tokens = {
        text.text: int(count) for rows in (train, test) for text, count in zip(rows.texts, rows.tokens, strict=True)
    }
    return baseline_scores(_examples(train), _examples(test), tokens.__getitem__)


def compared(scores: Array, rivals: dict[str, Array], resamples: Resamples) -> tuple[Rival, ...]:
    """Each rival with the probe's gain over it, the best first."""
    own = auroc(scores, resamples.labels)
    found = []
    for name, other in rivals.items():
        value = auroc(other, resamples.labels)
        found.append(Rival(name=name, auroc=value, gain=own - value, gain_interval=resamples.gain(scores, other)))
    return tuple(sorted(found, key=lambda rival: -rival.auroc))


def _examples(rows: Rows) -> list[Example]:
    return [Example(text.text, text.label, text.key) for text in rows.texts]
