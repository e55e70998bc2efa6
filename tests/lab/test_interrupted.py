"""A training that is killed goes on from what it had fitted, and ends with the same probe."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.activations.store import ActivationStore
from probes.cli import main
from probes.draft import FITS, WEIGHTS, Draft
from probes.kinds.base import ProbeEstimator
from probes.training.choice import FINALISTS
from probes.training.folds import FOLDS
from probes.training.search import Search
from probes.training.train import fingerprint, train
from sidecar.types import TapPoint
from tests.lab.planted import planted_store

OPTIONS = ["--kinds", "logistic,mass_mean,token", "--layers", "1,2", "--concatenate", "1,2", "--seed", "5"]
SEARCH = Search(name="planted", kinds=("mass_mean",), tap_points=(TapPoint(1),), strengths=(0.1, 1.0))
KEPT = 30  # fits that are done before the kill: six candidates, and more than the first tap point's kinds


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("acts"), n=160, width=8, strength=1.5, seed=7)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every estimator that is fitted."""
    seen: list[str] = []
    whole = ProbeEstimator.fit

    def fit(self: ProbeEstimator, *args: Any, **how: Any) -> ProbeEstimator:
        seen.append(type(self).__name__)
        return whole(self, *args, **how)

    monkeypatch.setattr(ProbeEstimator, "fit", fit)
    return seen


def wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes], deadline_s: float = 90.0) -> None:
    until = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < until
        with pytest.raises(subprocess.TimeoutExpired):  # it must not end before it is killed
            process.wait(timeout=0.02)


@pytest.mark.process
def test_a_killed_training_goes_on_and_gives_the_same_probe(
    store: ActivationStore, tmp_path: Path, fits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "a" / "mood", tmp_path / "b" / "mood"
    assert main(["train", str(store.folder), "--into", str(whole), *OPTIONS]) == 0
    without = len(fits)
    command = [sys.executable, "-m", "probes.cli", "train", str(store.folder), "--into", str(killed), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: lines(killed) > KEPT, process)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [one.name for one in killed.iterdir()] == [FITS]
    done = lines(killed) - 1
    fits.clear()
    capsys.readouterr()
    assert main(["train", str(store.folder), "--into", str(killed), *OPTIONS]) == 0
    assert len(fits) == without - done
    assert f"going on: {done} fits were done before" in capsys.readouterr().out
    first, second = (Draft(folder).training.model_dump(exclude={"seconds"}) for folder in (whole, killed))
    assert first == second
    assert (whole / WEIGHTS).read_bytes() == (killed / WEIGHTS).read_bytes()
    assert not (killed / FITS).exists()


def lines(folder: Path) -> int:
    """Whole ones."""
    try:
        return (folder / FITS).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_fits_of_another_seed_or_store_are_refused_and_that_is_said(
    store: ActivationStore, tmp_path: Path, fits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    draft = Draft(tmp_path / "mood")
    train(store, SEARCH, kept=draft.fits(fingerprint(store, replace(SEARCH, seed=1))))
    fits.clear()
    options = ["--kinds", "mass_mean", "--layers", "1", "--strengths", "0.1,1.0"]
    assert main(["train", str(store.folder), "--into", str(draft.folder), *options]) == 0
    assert "is of another training" in capsys.readouterr().out.replace("\n", " ")
    assert 0 <= len(fits) - SEARCH.count(store.facts) * FOLDS <= FINALISTS


def test_the_fingerprint_is_of_all_that_a_fit_depends_on_but_its_own_key(
    store: ActivationStore, tmp_path: Path
) -> None:
    own = fingerprint(store, SEARCH)
    assert fingerprint(store, replace(SEARCH, kinds=("logistic",), tap_points=None, name="other")) == own
    assert fingerprint(store, replace(SEARCH, seed=1)) != own
    other = planted_store(tmp_path / "other", n=160, width=8, strength=1.5, seed=8)
    assert fingerprint(other, SEARCH) != own


def test_more_layers_or_strengths_fit_only_what_is_new(store: ActivationStore, tmp_path: Path, fits: list[str]) -> None:
    kept = Draft(tmp_path / "mood").fits(fingerprint(store, SEARCH))
    small, _ = train(store, SEARCH, kept=kept)
    fits.clear()
    wide, _ = train(store, replace(SEARCH, tap_points=(TapPoint(1), TapPoint(2))), kept=kept)
    assert len(fits) == SEARCH.count(store.facts) * FOLDS + 1
    assert wide.candidates[: len(small.candidates)] == small.candidates


def test_what_is_done_is_not_even_read_again(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Draft(tmp_path / "mood").fits(fingerprint(store, SEARCH))
    first, served = train(store, SEARCH, kept=kept)
    read: list[int] = []
    whole = ActivationStore.read
    monkeypatch.setattr(
        ActivationStore, "read", lambda self, text, where: read.append(text) or whole(self, text, where)
    )
    second, again = train(store, SEARCH, kept=kept)
    assert np.array_equal(served.directions, again.directions)
    assert first.candidates == second.candidates
    assert max(read.count(text) for text in set(read)) <= 2 * FINALISTS
