"""The probe beside what plain text features reach on the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.baselines import baseline_scores
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
    return baseline_scores(train.texts, test.texts, tokens.__getitem__)


def compared(scores: Array, rivals: dict[str, Array], resamples: Resamples) -> tuple[Rival, ...]:
    """Each rival with the probe's gain over it, the best first."""
    own = auroc(scores, resamples.labels)
    found = []
    for name, other in rivals.items():
        value = auroc(other, resamples.labels)
        found.append(Rival(name=name, auroc=value, gain=own - value, gain_interval=resamples.gain(scores, other)))
    return tuple(sorted(found, key=lambda rival: -rival.auroc))
