"""The sums of a whitened difference of means, made by Ray tasks where the activations are: for more data than one machine reads.

Ray is an extra (``pip install 'stethoscope[ray]'``). Each task opens the store by its folder, which every worker must see, and
sends back O(D^2) numbers however many texts it has read. Adding up is done in the texts' order, so it comes out the same on
every run, and equal to one process's sums but for rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.kinds.moments import ClassMoments, Moments, class_moments
from probes.kinds.threads import one_thread
from probes.manifest import Aggregation
from sidecar.types import BoolArray

if TYPE_CHECKING:
    from probes.activations.store import Activations

Array = npt.NDArray[np.float64]
TASKS = 8


def ray_class_moments(
    texts: Activations, labels: BoolArray, weights: Array, aggregation: Aggregation, *, tasks: int = TASKS
) -> ClassMoments:
    """What `probes.kinds.moments.class_moments` gives, by ``tasks`` Ray tasks; `MassMean.fit_moments` takes it from there.

    Connects to the cluster that RAY_ADDRESS names, or starts one on this machine. Raises LabError if Ray is not installed, or
    if a task fails, with what it said.
    """
    try:
        import ray
    except ImportError:
        raise LabError("Ray is not installed: pip install 'stethoscope[ray]'") from None
    if not len(texts):
        raise LabError("there are no texts")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    task = ray.remote(_part)
    parts = np.array_split(np.arange(len(texts)), min(tasks, len(texts)))
    running = [task.remote(texts.take(part), labels[part], weights[part], aggregation) for part in parts]
    width = texts.width
    total = ClassMoments(Moments.none(width), Moments.none(width))
    for one in running:
        try:
            total = total.merged(ray.get(one))
        except ray.exceptions.RayTaskError as error:
            raise LabError(f"a Ray task failed: {error.cause}") from None
    return total


def _part(texts: Activations, labels: BoolArray, weights: Array, aggregation: Aggregation) -> ClassMoments:
    with one_thread():
        return class_moments(texts, labels, weights, aggregation)
