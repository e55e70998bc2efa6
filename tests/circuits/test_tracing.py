"""Tracing tells which position carries the answer, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from probes.circuits.discovery import discover
from probes.circuits.draft import DraftCircuit
from probes.circuits.drafting import Settings
from probes.circuits.picture import tracing_figure, write_tracing
from probes.circuits.running import Decoder
from probes.circuits.toy import toy_pairs
from probes.circuits.tracing import Tracing, alike, traced_points
from sidecar.types import Site, TapPoint
from tests.circuits.toys import toy

PAIR = toy_pairs(1, seed=7)
LAST = len(PAIR[0].clean) - 1


@pytest.fixture(scope="module")
def tracing() -> Tracing:
    return Tracing(Decoder(toy().model), PAIR, goes_on=True)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> DraftCircuit:
    quiet = Progress(console=Console(stderr=True), disable=True)
    folder = tmp_path_factory.mktemp("draft")
    return discover(toy(), PAIR, Settings("induction_toy", method="exact"), folder, quiet)


def test_after_the_last_block_the_last_position_carries_all_and_no_other_anything(tracing: Tracing) -> None:
    found = tracing.restored(TapPoint(1))
    assert found[LAST] == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(found[:LAST], 0.0, atol=1e-5)


def test_before_the_prompts_differ_nothing_is_restored(tracing: Tracing) -> None:
    assert PAIR[0].differs_at > 1
    for point in traced_points(2):
        assert not tracing.restored(point)[: PAIR[0].differs_at].any()


def test_what_followed_the_word_carries_the_answer_until_block_1_looks_there(tracing: Tracing) -> None:
    """The previous-token head writes it there; so that is where the attention of block 0 matters, and block 1's at the end."""
    clean = PAIR[0].clean
    followed = clean.index(clean[-1]) + 1
    early, late = (tracing.restored(TapPoint(layer, Site.ATTN_HEADS)) for layer in (0, 1))
    assert int(np.argmax(early)) in (followed, clean.index(PAIR[0].wrong[0]))
    assert int(np.argmax(late)) == LAST
    assert early[followed] > 0.2


def test_going_on_from_a_block_or_not_makes_no_difference(tracing: Tracing) -> None:
    whole = Tracing(Decoder(toy().model), PAIR, goes_on=False)
    for point in traced_points(2):
        np.testing.assert_allclose(whole.restored(point), tracing.restored(point), atol=1e-5)


def test_only_pairs_of_one_length_are_laid_on_each_other() -> None:
    pairs = toy_pairs(3)
    assert alike(pairs, 2) == pairs[:2]


def test_the_picture_is_there_in_both_forms_and_the_same_every_time(draft: DraftCircuit, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_tracing(draft, tmp_path)]
    again = [path.read_bytes() for path in write_tracing(draft, tmp_path)]
    assert first == again
    assert first[0].startswith(b"\x89PNG")
    assert b"residual stream" in first[1]
    assert "residual stream" in str(tracing_figure(draft))
