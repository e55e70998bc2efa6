"""What can be read off the text without any model: what a probe must beat before it deserves to be called one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.data.texts import LabelledText
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
FOLDS = 5
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)


def baseline_scores(
    train: Sequence[LabelledText], test: Sequence[LabelledText], count_tokens: Callable[[str], int]
) -> dict[str, Array]:
    """Scores of the test rows by three kinds of text features, each with its own best regularisation.

    The strength is chosen by cross-validation on the training rows, as the probe's is: nobody gets a weak opponent. Folds do not
    heed near-duplicates; over the shipped recipes that moved no text baseline's AUROC by more than .04, and no verdict.
    """
    labels = np.array([one.label for one in train])
    texts, held_out = [one.text for one in train], [one.text for one in test]
    return {name: _scores(model, texts, labels, held_out) for name, model in _pipelines(count_tokens).items()}


def _pipelines(count_tokens: Callable[[str], int]) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    def lengths(texts: Sequence[str]) -> Array:
        return np.array([[len(text), len(text.split()), count_tokens(text)] for text in texts], dtype=np.float64)

    return {
        "tfidf_word": [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)],
        "tfidf_char": [TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)],
        "length": [FunctionTransformer(lengths), StandardScaler()],
    }


def _scores(steps: list[Any], texts: list[str], labels: BoolArray, held_out: list[str]) -> Array:
    """Cross-validate the strength, then train on all; features are made once a fold, for every strength."""
    from sklearn.pipeline import make_pipeline

    features = make_pipeline(*steps)
    strength = _best_strength(features, texts, labels)
    model = _classifier(strength).fit(features.fit_transform(texts), labels)
    return np.asarray(model.decision_function(features.transform(held_out)), dtype=np.float64)


def _best_strength(features: Any, texts: list[str], labels: BoolArray) -> float:
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    found = np.zeros(len(_STRENGTHS))
    for train, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(texts, labels):
        seen = features.fit_transform([texts[at] for at in train])
        unseen = features.transform([texts[at] for at in held_out])
        for at, strength in enumerate(_STRENGTHS):
            model = _classifier(strength).fit(seen, labels[train])
            found[at] += roc_auc_score(labels[held_out], model.decision_function(unseen))
    return _STRENGTHS[int(found.argmax())]


def _classifier(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
