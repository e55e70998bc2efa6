"""A scikit-learn linear classifier in skops' format: types are named and allowed one by one, nothing is unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from probes.errors import LabError
from probes.release.plain import LIMIT_BYTES, Outgoing, PlainProbe, must_be_small, plain_probe, single

# Everything that a fitted linear classifier, alone or behind a standardisation, is made of. skops allows these by itself
# today; the list here keeps it so.
_LINEAR = frozenset(
    {
        "LogisticRegression",
        "LogisticRegressionCV",
        "RidgeClassifier",
        "RidgeClassifierCV",
        "LinearSVC",
        "SGDClassifier",
        "LinearDiscriminantAnalysis",
    }
)


def write(path: Path, out: Outgoing) -> None:
    """A LogisticRegression whose decision_function of a text's pooled row is our reading; predict is about 0, not our threshold.

    The row of a probe of several tap points is their pooled rows side by side, in the manifest's order.
    """
    import skops.io
    from sklearn.linear_model import LogisticRegression

    w, b = single(out.plain, "a scikit-learn classifier")
    model = LogisticRegression()
    model.classes_ = np.array([False, True])
    model.coef_, model.intercept_ = w[None, :], np.array([b])
    model.n_features_in_, model.n_iter_ = len(w), np.array([0], dtype=np.int32)
    skops.io.dump(model, path)


def read(path: Path) -> PlainProbe:
    """Take a linear classifier of two classes, or a pipeline of a StandardScaler and one; the scaling is folded in.

    Raises LabError for any other file, naming types that are not trusted.
    """
    must_be_small(path)
    model = _load(path)
    steps = [step for _, step in model.steps] if type(model).__name__ == "Pipeline" else [model]
    *before, last = steps
    if type(last).__name__ not in _LINEAR or not hasattr(last, "coef_"):
        raise LabError(
            f"{path}: a {type(last).__name__} is not a fitted linear classifier; known are {', '.join(sorted(_LINEAR))}"
        )
    w, b = np.asarray(last.coef_, dtype=np.float64), np.asarray(last.intercept_, dtype=np.float64).reshape(-1)
    if w.reshape(-1, w.shape[-1]).shape[0] != 1 or len(b) != 1:
        raise LabError(f"{path}: it tells {len(np.atleast_2d(w))} classes apart; a probe has two")
    row, offset = w.reshape(-1), float(b[0])
    for step in reversed(before):
        row, offset = _fold(path, step, row, offset)
    return plain_probe(path, row, offset)


def _load(path: Path) -> Any:
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        with zipfile.ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > LIMIT_BYTES:
                raise LabError(f"{path}: unpacked it is larger than any probe")
        return skops.io.load(path, trusted=[])
    except UntrustedTypesFoundException as error:
        raise LabError(f"{path}: it holds types that are not trusted: {error}") from None
    except LabError:
        raise
    except Exception:  # noqa: BLE001 - a foreign parser over foreign bytes raises whatever it runs into
        raise LabError(f"{path}: not a model that skops has written") from None


def _fold(path: Path, step: Any, row: Any, offset: float) -> tuple[Any, float]:
    """The same reading of rows that were not yet scaled."""
    if type(step).__name__ != "StandardScaler" or not hasattr(step, "scale_"):
        raise LabError(f"{path}: a {type(step).__name__} before the classifier is none that can be folded in")
    scaled = row if step.scale_ is None else row / np.asarray(step.scale_, dtype=np.float64)
    return scaled, offset if step.mean_ is None else offset - float(np.asarray(step.mean_, dtype=np.float64) @ scaled)
