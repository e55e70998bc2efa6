"""The gate: the same texts under two serving configs, and a verdict that is wrong as rarely as it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.activations.store import ActivationStore
from probes.artifact import load_artifact
from probes.cli import main
from probes.errors import LabError
from probes.manifest import Aggregation
from probes.quality.scaling import probabilities
from probes.release.compare import Pair, Side, compare_stores, fires_at
from probes.release.gate import Gated, Margins, Quantity, State, Verdict, gate, rate_change
from probes.release.pack import pack
from probes.release.realign import propose
from tests.lab.drafts import calibration, evaluation, limit, make_draft
from tests.lab.planted import planted_store
from tests.probes.broken import seal
from tests.probes.builders import write_artifact

TEXTS = 640
STATUSES = {Verdict.PASS: 0, Verdict.THRESHOLD_STALE: 10, Verdict.DEGRADED: 11, Verdict.INCONCLUSIVE: 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of the same texts, and an artifact for them. Not to be changed."""
    root = tmp_path_factory.mktemp("gate")
    for name, changes in CONFIGS.items():
        planted_store(root / name, n=TEXTS, layers=2, **changes)
    planted_store(root / "few", n=60, layers=2)
    make_draft(root / "draft", ActivationStore.open(root / "reference"))
    pack(root / "draft", root / "artifact")
    return root


CONFIGS: dict[str, dict[str, Any]] = {
    "reference": {},
    "shifted": {"shift": 1.0},
    "sunk": {"shift": -1.0},
    "noisy": {"noise": 12.0},
}


def pair_of(root: Path, reference: str, candidate: str) -> Pair:
    artifact = load_artifact(root / "artifact", root=root)
    return compare_stores(artifact, *(ActivationStore.open(root / name) for name in (reference, candidate)))


def found(root: Path, reference: str, candidate: str) -> Gated:
    return gate(pair_of(root, reference, candidate))


CLAIMS = {
    "the same": ("reference", "reference", Verdict.PASS),
    "scores moved up": ("reference", "shifted", Verdict.THRESHOLD_STALE),
    "scores moved down": ("reference", "sunk", Verdict.THRESHOLD_STALE),
    "noise": ("reference", "noisy", Verdict.DEGRADED),
    "few texts": ("few", "few", Verdict.INCONCLUSIVE),
}


@pytest.mark.parametrize(("reference", "candidate", "verdict"), CLAIMS.values(), ids=CLAIMS.keys())
def test_what_was_done_to_the_states_is_what_the_verdict_says(root, reference, candidate, verdict):
    assert found(root, reference, candidate).verdict is verdict


@pytest.mark.parametrize(("reference", "candidate", "verdict"), CLAIMS.values(), ids=CLAIMS.keys())
def test_each_verdict_has_an_exit_status_of_its_own(root, capsys, reference, candidate, verdict):
    given = [
        "--reference",
        str(root / reference),
        "--candidate",
        str(root / candidate),
        "--artifact",
        str(root / "artifact"),
    ]
    assert main(["gate", *given]) == STATUSES[verdict]
    assert verdict.value in capsys.readouterr().out


def test_the_help_documents_every_exit_status(capsys):
    with pytest.raises(SystemExit):
        main(["gate", "--help"])
    told = capsys.readouterr().out
    for verdict, status in STATUSES.items():
        assert f"{status}  {verdict.value}" in told


def test_a_shift_is_told_in_numbers(root):
    pair = pair_of(root, "reference", "shifted")
    told = gate(pair)
    changed = pair.reference.fires != pair.candidate.fires
    assert told.flips == int(changed.sum()) > 20
    assert told.flip_interval[0] < told.flips / TEXTS < told.flip_interval[1]
    assert set(told.flipped) <= {key for key, flip in zip(pair.keys, changed, strict=True) if flip}
    assert told.fpr.worse == pytest.approx(told.fpr.candidate - told.fpr.reference)
    assert told.fpr.interval[0] < told.fpr.worse < told.fpr.interval[1]
    assert (told.fpr.rows, told.recall.rows) == (TEXTS // 2, TEXTS // 2)
    assert (told.auroc.state, told.fpr.state, told.recall.state) == (State.HOLDS, State.BROKEN, State.HOLDS)


def made(before: Any, after: Any, labels: Any, limit: float = 0.0) -> Pair:
    """A pair out of bare scores; a text fires above ``limit``."""

    def side(scores: Any) -> Side:
        values = np.asarray(scores, dtype=np.float64)
        return Side(values, 1 / (1 + np.exp(-values)), np.full(len(values), 10), values > limit)

    rows = np.asarray(labels, dtype=np.bool_)
    return Pair(rows, np.arange(len(rows)), tuple(map(str, range(len(rows)))), side(before), side(after), ())


def drawn(seed: int, rows: int, *, jitter: float, up: float = 0.0) -> Pair:
    """AUROC .96 before; after, every score moves by ``up`` and by N(0, jitter)."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 2 == 0
    before = random.normal(size=rows) + 2.5 * labels
    return made(before, before + up + jitter * random.normal(size=rows), labels, limit=1.7)


def test_a_config_that_changed_nothing_but_rounding_hardly_ever_fails():
    assert [gate(drawn(seed, 800, jitter=0.003)).verdict for seed in range(4)] == [Verdict.PASS] * 4
    assert [false_alarms(drawn(seed, 800, jitter=0.003)).state for seed in range(100)] == [State.HOLDS] * 100


def test_a_false_positive_rate_that_doubled_never_passes():
    """4.5 % before, 9 % after: beyond the margin, so a pass is an error, of at most 2.5 % of draws."""
    states = [false_alarms(drawn(seed, 800, jitter=0.003, up=0.36)).state for seed in range(200)]
    assert states.count(State.HOLDS) <= 5
    assert states.count(State.BROKEN) >= 150


def false_alarms(pair: Pair) -> Quantity:
    return rate_change("rate", pair.reference.fires, pair.candidate.fires, ~pair.labels, 0.02, sign=1)


def test_the_interval_of_a_rates_change_holds_the_truth():
    """A true rise from 5 % to 7 % among 250 benign texts lies in the interval in at least 95 % of draws."""
    random, everyone, inside = np.random.default_rng(0), np.ones(250, dtype=np.bool_), 0
    for _ in range(400):
        chance = random.uniform(
            size=250
        )  # below .01 it ceases to fire, from there to .05 it fires on, to .08 it begins to
        change = rate_change("rate", chance < 0.05, (chance >= 0.01) & (chance < 0.08), everyone, 0.02, sign=1)
        inside += change.interval[0] <= 0.02 <= change.interval[1]
    assert inside >= 380


def test_without_a_single_change_it_still_takes_enough_texts():
    def verdict(benign: int, positives: int) -> Verdict:
        labels = np.arange(benign + positives) < positives
        scores = np.where(labels, 3.0, -3.0) + np.random.default_rng(0).normal(size=len(labels))
        return gate(made(scores, scores, labels)).verdict

    assert verdict(benign=220, positives=88) is Verdict.PASS
    assert verdict(benign=210, positives=88) is Verdict.INCONCLUSIVE
    assert verdict(benign=220, positives=80) is Verdict.INCONCLUSIVE


def test_lost_quality_outweighs_a_stale_threshold_and_known_harm_outweighs_doubt(root):
    assert found(root, "reference", "noisy").fpr.state is State.BROKEN
    few = drawn(3, 120, jitter=0.003, up=1.5)
    assert gate(few).verdict is Verdict.THRESHOLD_STALE


@pytest.mark.parametrize("name", ["auroc", "fpr", "recall"])
def test_each_margin_decides(root, name):
    same = pair_of(root, "reference", "reference")
    noisy = drawn(1, 800, jitter=0.15)
    assert gate(same, Margins()).verdict is Verdict.PASS
    wide = {"auroc": 0.5, "fpr": 0.5, "recall": 0.5}
    assert gate(noisy, Margins(**wide)).verdict is Verdict.PASS
    assert gate(noisy, Margins(**{**wide, name: 1e-4})).verdict is not Verdict.PASS


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_a_margin_that_is_no_share_is_refused(value):
    with pytest.raises(LabError, match="margin of fpr"):
        Margins(fpr=value)


def test_one_class_alone_is_refused(root):
    with pytest.raises(LabError, match="0 positive"):
        gate(made(np.zeros(50), np.zeros(50), np.zeros(50)))


def test_the_order_of_the_texts_does_not_matter(root, tmp_path):
    """A store is compared by its texts, whatever their order."""
    artifact = load_artifact(root / "artifact", root=root)
    reference = ActivationStore.open(root / "reference")
    turned = Turned(root / "shifted")
    one = compare_stores(artifact, reference, ActivationStore.open(root / "shifted"))
    other = compare_stores(artifact, reference, turned)  # type: ignore[arg-type]
    assert np.array_equal(one.candidate.scores, other.candidate.scores)
    assert np.array_equal(one.candidate.tokens, other.candidate.tokens)


class Turned:
    """A store whose texts stand in reverse order."""

    def __init__(self, folder: Path) -> None:
        self._store = ActivationStore.open(folder)
        self.folder, self.facts = folder, self._store.facts
        self.texts, self.places = self._store.texts[::-1], self._store.places[::-1]
        self.lengths = self._store.lengths[::-1]

    def at(self, where, rows):
        return self._store.at(where, [len(self.texts) - 1 - row for row in rows])


def test_other_texts_are_refused_with_the_first_that_is_missing(root, tmp_path):
    planted_store(tmp_path / "others", n=60, layers=2, seed=5)
    artifact = load_artifact(root / "artifact", root=root)
    others, few = ActivationStore.open(tmp_path / "others"), ActivationStore.open(root / "few")
    with pytest.raises(LabError, match=r"planted row 1 of .*few is not in it"):
        compare_stores(artifact, few, others)
    with pytest.raises(LabError, match=r"planted row 61 of .*reference is not in it"):
        compare_stores(artifact, ActivationStore.open(root / "reference"), few)
    with pytest.raises(LabError, match=r"planted row 61 of .*reference is not in it"):
        compare_stores(artifact, few, ActivationStore.open(root / "reference"))


MISFITS = {
    "architecture": {"model": "architecture"},
    "tokenizer": {"model": "tokenizer_digest"},
}


@pytest.mark.parametrize("changes", MISFITS.values(), ids=MISFITS.keys())
def test_an_artifact_of_another_model_is_refused_naming_both_sides(root, tmp_path, changes):
    shutil.copytree(root / "artifact", tmp_path / "artifact")
    model = json.loads((tmp_path / "artifact" / "manifest.json").read_text())["model"]
    seal(tmp_path / "artifact", model={**model, changes["model"]: "f" * 64})
    artifact = load_artifact(tmp_path / "artifact", root=tmp_path)
    store = ActivationStore.open(root / "few")
    with pytest.raises(LabError, match=f"{changes['model'].replace('_', ' ')}: the artifact has ffff.*, the store "):
        compare_stores(artifact, store, store)


def test_a_positive_control_decides_nothing_and_is_refused(root, tmp_path, capsys):
    range_ = {"low": 0.0, "high": 1.0, "outside": 0.0}
    nothing = dict.fromkeys(("aggregation", "calibration", "threshold", "quality"))
    write_artifact(tmp_path, "control", kind="positive_control", control_range=range_, **nothing)
    given = [
        "--reference",
        str(root / "few"),
        "--candidate",
        str(root / "few"),
        "--artifact",
        str(tmp_path / "control"),
    ]
    assert main(["gate", *given]) == 1
    assert "decides nothing" in capsys.readouterr().err


def test_thresholds_by_length_are_those_of_each_length(root, tmp_path):
    store = ActivationStore.open(root / "few")
    draft = make_draft(tmp_path / "draft", store, stages="", aggregation=Aggregation(kind="max_ema", window=4))
    draft.write(calibration(thresholds=(limit(0, 0.2), limit(20, 0.999999))))
    draft.write(evaluation())
    pack(tmp_path / "draft", tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact", root=tmp_path)
    side = compare_stores(artifact, store, store).reference
    long = side.tokens >= 20
    assert np.array_equal(side.fires, side.probability > np.where(long, 0.999999, 0.2))
    assert side.fires[~long].mean() > 0.5 > side.fires[long].mean()
    assert propose_error(artifact, store) is None


def propose_error(artifact: Any, store: ActivationStore) -> float | None:
    """The threshold alone that is proposed: none where there are several."""
    return propose(compare_stores(artifact, store, store), artifact.manifest).threshold


def test_a_shift_and_a_stretch_is_undone_without_any_label(root):
    artifact = load_artifact(root / "artifact", root=root)
    pair = pair_of(root, "reference", "reference")
    after = pair.reference.scores * 3.0 - 4.0
    moved = Pair(pair.labels, pair.groups, pair.keys, pair.reference, retold(artifact, pair.candidate, after), ())
    assert gate(moved).verdict is Verdict.THRESHOLD_STALE
    proposal = propose(moved, artifact.manifest)
    assert proposal.fits
    assert proposal.calibration.scale == pytest.approx(artifact.manifest.calibration.scale / 3, rel=1e-6)
    realigned = probabilities(proposal.calibration, after)
    np.testing.assert_allclose(realigned, pair.reference.probability, atol=1e-6)
    assert proposal.fires_realigned == proposal.fires_reference != proposal.fires_candidate
    assert (
        retold(artifact, pair.candidate, after).probability > proposal.threshold
    ).sum() == pair.reference.fires.sum()


def retold(artifact: Any, side: Side, scores: Any) -> Side:
    probability = probabilities(artifact.manifest.calibration, scores)
    return Side(scores, probability, side.tokens, fires_at(artifact.manifest.threshold, probability, side.tokens))


def test_labels_do_not_change_the_proposal(root):
    artifact = load_artifact(root / "artifact", root=root)
    pair = pair_of(root, "reference", "shifted")
    turned = Pair(~pair.labels, pair.groups, pair.keys, pair.reference, pair.candidate, pair.moved)
    assert propose(pair, artifact.manifest) == propose(turned, artifact.manifest)


def test_realigning_a_shift_brings_the_false_positive_rate_back(root):
    artifact = load_artifact(root / "artifact", root=root)
    pair = pair_of(root, "reference", "shifted")
    proposal = propose(pair, artifact.manifest)
    again = probabilities(proposal.calibration, pair.candidate.scores)
    fires = fires_at(artifact.manifest.threshold, again, pair.candidate.tokens)
    side = Side(pair.candidate.scores, again, pair.candidate.tokens, fires)
    realigned = gate(Pair(pair.labels, pair.groups, pair.keys, pair.reference, side, ()))
    assert realigned.verdict is Verdict.PASS


def test_a_change_that_is_no_shift_and_stretch_is_said_to_be_none(root):
    artifact = load_artifact(root / "artifact", root=root)
    pair = pair_of(root, "reference", "reference")
    bent = retold(artifact, pair.candidate, np.sign(pair.reference.scores) * np.abs(pair.reference.scores) ** 4)
    assert not propose(Pair(pair.labels, pair.groups, pair.keys, pair.reference, bent, ()), artifact.manifest).fits


def test_too_few_or_all_equal_scores_give_no_proposal(root):
    artifact = load_artifact(root / "artifact", root=root)
    with pytest.raises(LabError, match="30 texts"):
        propose(drawn(0, 30, jitter=0.1), artifact.manifest)
    flat = made(np.zeros(60), np.zeros(60), np.arange(60) % 2)
    with pytest.raises(LabError, match="nothing to align"):
        propose(flat, artifact.manifest)


def test_the_command_writes_what_it_found_and_what_it_proposes(root, tmp_path, capsys):
    given = [
        "--reference",
        str(root / "reference"),
        "--candidate",
        str(root / "shifted"),
        "--artifact",
        str(root / "artifact"),
    ]
    wanted = ["--json", str(tmp_path / "found.json"), "--realign", str(tmp_path / "proposal.json")]
    assert main(["gate", *given, *wanted]) == 10
    told = json.loads((tmp_path / "found.json").read_text())
    assert (told["verdict"], told["rows"]) == ("THRESHOLD_STALE", TEXTS)
    assert told["quantities"]["false-positive rate"]["state"] == "broken"
    proposal = json.loads((tmp_path / "proposal.json").read_text())
    assert proposal["labels_used"] is False
    assert proposal["fits"] is True
    assert "proposed without labels" in capsys.readouterr().out
    assert main(["gate", *given, "--json", str(tmp_path / "no" / "where")]) == 1


def test_the_same_stores_give_the_same_verdict_to_the_last_digit(root):
    assert found(root, "reference", "noisy") == found(root, "reference", "noisy")
