"""Sums by Ray tasks give the probe that one process gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from probes.activations.store import ActivationStore
from probes.cli import main
from probes.draft import Draft
from probes.errors import LabError
from probes.kinds.beside import states_at
from probes.kinds.moments import class_moments
from probes.kinds.rows import Subset
from probes.kinds.weighing import text_weights
from probes.manifest import Aggregation, AggregationKind
from probes.training.fitting import HERE, Way
from probes.training.ray_sums import SUMMED, ByRay, ray_class_moments
from sidecar.types import TapPoint
from tests.lab.planted import planted_store

MEAN = Aggregation(kind=AggregationKind.MEAN)
# Ray's own start: files and processes that it leaves to the collector, and names of pydantic's that it still uses.
pytestmark = [
    pytest.mark.process,
    *(
        pytest.mark.filterwarnings(f"ignore::{name}")
        for name in ("FutureWarning", "ResourceWarning", "DeprecationWarning")
    ),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("acts"), n=120, seed=4, strength=1.5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def labels(store: ActivationStore) -> np.ndarray:
    return np.array([text.label for text in store.texts])


@pytest.mark.parametrize("everywhere", [(TapPoint(2),), (TapPoint(1), TapPoint(2))], ids=["one", "two layers"])
def test_sums_by_tasks_are_those_of_one_process(cluster, store, labels, everywhere) -> None:
    texts, weights = states_at(store, everywhere), text_weights(labels)
    summed, alone = (
        ray_class_moments(texts, labels, weights, MEAN, tasks=3),
        class_moments(texts, labels, weights, MEAN),
    )
    for of_class in ("positive", "negative"):
        by_ray, by_one = getattr(summed, of_class), getattr(alone, of_class)
        assert by_ray.count == pytest.approx(by_one.count, rel=1e-12)
        assert np.allclose(by_ray.scatter, by_one.scatter, rtol=1e-10, atol=1e-10)


def test_a_fit_and_its_scores_are_those_of_one_process(cluster, store, labels) -> None:
    way, texts = Way("mass_mean", MEAN, 1.0), Subset(store.at(TapPoint(2)), range(100))
    groups = ["" if at % 3 else f"group {at // 12}" for at in range(100)]
    there = ByRay(SUMMED, tasks=3)
    ours, theirs = (one.fit(way, one.ready(texts), labels[:100], groups, 0) for one in (HERE, there))
    assert np.allclose(ours.served_.directions, theirs.served_.directions, rtol=1e-5)
    assert np.array_equal(HERE.scores(ours, texts), there.scores(ours, texts))


def test_the_command_gives_the_same_draft_with_ray_and_without(cluster, store, tmp_path: Path) -> None:
    options = [
        "--kinds",
        "mass_mean",
        "--layers",
        "1,2",
        "--aggregations",
        "mean,last",
        "--strengths",
        "1.0",
        "--name",
        "one",
    ]
    for name, more in (("here", ["--concatenate", "1,2"]), ("there", ["--concatenate", "1,2", "--ray"])):
        assert main(["train", str(store.folder), "--into", str(tmp_path / name), *options, *more]) == 0
    here, there = (Draft(tmp_path / name) for name in ("here", "there"))
    assert np.allclose(here.served.directions, there.served.directions, rtol=1e-5, atol=1e-7)
    ours, theirs = here.training, there.training
    assert [one.auroc for one in ours.candidates] == pytest.approx([one.auroc for one in theirs.candidates], abs=1e-9)
    but = {"seconds", "candidates", "select_auroc"}
    assert ours.model_dump(exclude=but) == theirs.model_dump(exclude=but)


def test_a_text_that_a_task_cannot_read_is_named(cluster, labels) -> None:
    texts = [np.full((3, 4), np.nan if number == 77 else number, np.float32) for number in range(120)]
    with pytest.raises(LabError, match=r"a Ray task failed: .*a state is NaN or infinite"):
        ray_class_moments(texts, labels, text_weights(labels), MEAN, tasks=2)
