"""What can be read off the text without any model: what a probe must beat before it deserves to be called one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.datasets import Example
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
FOLDS = 5
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)


def baseline_scores(
    train: Sequence[Example], test: Sequence[Example], count_tokens: Callable[[str], int]
) -> dict[str, Array]:
    """Scores of the test rows by three kinds of text features, each with its own best regularisation.

    The strength is chosen by cross-validation on the training rows, as the probe's is: nobody gets a weak opponent.
    """
    labels = np.array([example.label for example in train])
    texts, held_out = [example.text for example in train], [example.text for example in test]
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
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(*steps, LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    search = GridSearchCV(model, {"logisticregression__C": _STRENGTHS}, scoring="roc_auc", cv=folds)
    search.fit(texts, labels)
    return np.asarray(search.decision_function(held_out), dtype=np.float64)
