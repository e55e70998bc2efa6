"""Fits by sums, made by Ray tasks where the activations are: for more data than one machine reads.

Ray is an extra (``pip install 'stethoscope[ray]'``). Each task opens the store by its folder, which every worker must see, and
sends back O(D^2) numbers, or a score a text, however many rows it has read. Adding up is done in the texts' order, so it comes
out the same on every run, and equal to one process's sums but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.kinds.base import ProbeEstimator
from probes.kinds.mass_mean import MassMean
from probes.kinds.moments import ClassMoments, Moments, class_moments
from probes.kinds.registry import KINDS
from probes.kinds.rows import Subset, Texts, width_of
from probes.kinds.threads import one_thread
from probes.kinds.weighing import text_weights
from probes.manifest import Aggregation
from probes.serving import Served
from probes.training.fitting import Way
from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]
TASKS = 8
SUMMED = tuple(name for name, kind in KINDS.items() if issubclass(kind, MassMean))


class ByRay:
    """A `Fitting` of the kinds `SUMMED`. Every fit is one pass over its texts, which stay where they are.

    Connects to the cluster that RAY_ADDRESS names, or starts one on this machine. Raises LabError if Ray is not installed, for
    other kinds, and if a task fails, with what it said.
    """

    name = "ray"

    def __init__(self, kinds: Sequence[str], tasks: int = TASKS) -> None:
        others = [kind for kind in kinds if kind not in SUMMED]
        if others:
            raise LabError(
                f"{', '.join(others)} cannot be fitted by sums, and so not by Ray: that takes {', '.join(SUMMED)}"
            )
        self._tasks = tasks
        _started()

    def ready(self, texts: Texts) -> Texts:
        return texts

    def fit(self, way: Way, texts: Texts, labels: BoolArray, groups: Sequence[str], seed: int) -> ProbeEstimator:
        made = way.make(seed)
        assert isinstance(made, MassMean)
        return made.fit_moments(
            ray_class_moments(texts, labels, text_weights(labels, groups), way.aggregation, tasks=self._tasks)
        )

    def scores(self, fitted: ProbeEstimator, texts: Texts) -> Array:
        parts = ((fitted.served_, Subset(texts, part)) for part in _parts(len(texts), self._tasks))
        return np.concatenate(list(_done(_scores, parts)))


def ray_class_moments(
    texts: Texts, labels: BoolArray, weights: Array, aggregation: Aggregation, *, tasks: int = TASKS
) -> ClassMoments:
    """What `probes.kinds.moments.class_moments` gives, by ``tasks`` Ray tasks; `MassMean.fit_moments` takes it from there.

    Raises LabError as `ByRay` does.
    """
    total = ClassMoments(Moments.none(width_of(texts)), Moments.none(width_of(texts)))
    parts = ((Subset(texts, part), labels[part], weights[part], aggregation) for part in _parts(len(texts), tasks))
    for one in _done(_moments, parts):
        total = total.merged(one)
    return total


def _started() -> Any:
    try:
        import ray
    except ImportError:
        raise LabError("Ray is not installed: pip install 'stethoscope[ray]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    return ray


def _parts(count: int, tasks: int) -> list[IndexArray]:
    return np.array_split(np.arange(count), min(tasks, count))


def _done(work: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
    """What each call gives, in order; all of them run at once, as far as the cluster has room."""
    ray = _started()
    task = ray.remote(work)
    running = [task.remote(*call) for call in calls]
    try:
        for one in running:
            yield ray.get(one)
    except ray.exceptions.RayError as error:
        raise LabError(f"a Ray task failed: {getattr(error, 'cause', None) or error}") from None


def _moments(texts: Texts, labels: BoolArray, weights: Array, aggregation: Aggregation) -> ClassMoments:
    with one_thread():
        return class_moments(texts, labels, weights, aggregation)


def _scores(served: Served, texts: Texts) -> Array:
    with one_thread():
        return served.scores(texts)
