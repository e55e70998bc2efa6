"""Validation on the toy, whose circuit is known: that passes; a readout of something else does not, nor do other nodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from probes.activations.model import LabModel
from probes.circuits.artifact import Circuit, fit, load_circuit
from probes.circuits.behaviours import made_pairs
from probes.circuits.choosing import Chosen
from probes.circuits.discovery import discover
from probes.circuits.draft import DRAFT, DraftCircuit
from probes.circuits.drafting import Settings as DiscoverySettings
from probes.circuits.manifest import CircuitManifest, ReadoutKind, Severity
from probes.circuits.nodes import Node
from probes.circuits.pairs import Contrast
from probes.circuits.readouts import Look, logistic
from probes.circuits.replacing import Ablation
from probes.circuits.running import Decoder
from probes.circuits.toy import WORDS
from probes.circuits.universe import nodes_of
from probes.circuits.usual import Usual, usual
from probes.circuits.validation.ablating import Ablated
from probes.circuits.validation.bench import Settings
from probes.circuits.validation.claim import About, Claim
from probes.circuits.validation.reading import States
from probes.circuits.validation.traffic import idle
from probes.circuits.validation.validate import validate_circuit
from probes.circuits.watching import read
from probes.cli import main
from probes.errors import LabError
from sidecar.types import Evidence, FloatArray, TapPoint
from tests.circuits.toys import FOLDER, INDUCTION, PREVIOUS_TOKEN, toy
from tests.lab.test_report import checked, words

HALF = WORDS // 2


def unrepeated(low: int, high: int, texts: int = 64, length: int = 30) -> list[list[int]]:
    """Texts of words from ``low`` and below ``high``, none twice: nothing to go on with."""
    draws = np.random.default_rng(5)
    return [[0, *map(int, draws.permutation(np.arange(low, high))[:length])] for _ in range(texts)]


@pytest.fixture(scope="module")
def lab() -> LabModel:
    return toy()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, lab: LabModel) -> Path:
    """A draft found on the toy, and what it takes to validate it. Not to be changed."""
    root = tmp_path_factory.mktemp("toy")
    with Progress(disable=True) as bars:
        discover(lab, pairs(lab, 32, 0), DiscoverySettings("going_on", traced=0), root / "draft", bars)
    lines = [" ".join(f"w{word}" for word in text[1:]) for text in unrepeated(2, WORDS)]
    (root / "traffic.txt").write_text("\n".join(lines))
    (root / "about.yaml").write_text("behaviour: goes on\nseverity: page\nlicence: Apache-2.0\n")
    return root


def pairs(lab: LabModel, count: int, seed: int) -> tuple[Contrast, ...]:
    return made_pairs("induction", lab, count, seed)


def validate(root: Path, into: Path, *more: str, pairs: str = "induction:64:1") -> int:
    given = ["--pairs", pairs, "--traffic", str(root / "traffic.txt"), "--about", str(root / "about.yaml")]
    return main(
        ["validate", str(root / "draft"), "--model", str(FOLDER), *given, "--share", "0.05", "--into", str(into), *more]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The toy's circuit as `probes validate` leaves it. Not to be changed."""
    folder = tmp_path_factory.mktemp("validated") / "going_on"
    assert validate(root, folder) == 0
    return folder


@pytest.fixture(scope="module")
def circuit(folder: Path) -> Circuit:
    return load_circuit(folder, root=folder)


def failed(about: CircuitManifest) -> set[str]:
    return {gate.name for gate in about.gates if not gate.passed}


def telling_words(count: int) -> tuple[Contrast, ...]:
    """Induction asked for by words of the lower half of the vocabulary, all others being of the upper one."""
    draws, found = np.random.default_rng(6), []
    for _ in range(count):
        first = draws.choice(np.arange(HALF, WORDS), 12, replace=False)
        asked, other = draws.choice([4, 6, 8, 10], 2, replace=False)
        first[asked] = draws.integers(2, HALF)
        swapped = first.copy()
        swapped[[asked, other]] = first[[other, asked]]
        clean, corrupt = ((0, *words.tolist(), *first[: asked + 1].tolist()) for words in (first, swapped))
        found.append(Contrast(clean, corrupt, (int(first[asked + 1]),), (int(first[other + 1]),)))
    return tuple(found)


def claim(lab: LabModel, nodes: Sequence[Node], own: tuple[Contrast, ...] | None = None, traffic: int = 2) -> Claim:
    """That these nodes are a circuit. traffic: the lowest of its words."""
    told = About(severity="page", behaviour="goes on").model_dump(exclude={"basis"})
    return Claim(
        Chosen(tuple(nodes), (0.1,) * len(nodes)),
        nodes_of(lab.model),
        None,
        own or pairs(lab, 48, 2),
        unrepeated(traffic, WORDS),
        "words, none twice",
        told | {"name": "another", "token_span": "all"},
    )


def test_the_known_circuit_is_found_validated_and_may_page(circuit):
    about = circuit.manifest
    assert {PREVIOUS_TOKEN, INDUCTION} <= set(about.parts)
    assert failed(about) == set()
    assert (about.evidence, about.severity) == (Evidence.USED, Severity.PAGE)
    assert INDUCTION in {one.what for one in about.watched if one.readout and one.readout.kind is ReadoutKind.ENERGY}
    assert about.findings is not None
    assert about.findings.validity.ratio >= 5
    strongest = about.findings.edges[0]
    assert (strongest.source, Node.parse(strongest.target).where.layer) == (PREVIOUS_TOKEN.name, 1)


def test_it_is_at_home_on_the_toy_and_stale_on_its_weights_in_another_precision(circuit, lab):
    assert fit(circuit.manifest, lab.identity).reason == ""
    assert fit(circuit.manifest, replace(lab.identity, dtype="bfloat16")).evidence is Evidence.STALE


def test_its_score_falls_when_the_circuit_is_ablated_and_stays_when_another_head_is(circuit, lab):
    decoder, other = Decoder(lab.model), Node.parse("blocks.0.attn_heads.0")
    assert other not in circuit.manifest.parts
    points = [place.where for place in circuit.manifest.places]
    ablated = Ablated(decoder, pairs(lab, 64, 9), Ablation.MEAN, nodes_of(lab.model))

    def engaged(nodes: Sequence[Node]) -> float:
        return float(read(circuit, ablated.rows(nodes, points)[1]).engaged.mean())

    assert engaged(()) > 0.6
    assert engaged(circuit.manifest.parts) < 0.1
    assert engaged([other]) == pytest.approx(engaged(()), abs=0.05)


def test_the_same_validation_gives_the_same_bytes(folder, root, tmp_path):
    assert validate(root, tmp_path / "again") == 0
    for one in folder.iterdir():
        assert (tmp_path / "again" / one.name).read_bytes() == one.read_bytes()


def test_a_decoy_readout_with_a_good_auc_fails_the_validity_gate(lab, circuit, tmp_path):
    """It reads from which half of the vocabulary a word is: that tells where these pairs ask, whatever the circuit does."""
    stream = TapPoint(0)

    def decoy(engaged: States, idle: States) -> list[Look]:
        return [logistic(Node(stream), slice(0, 64), engaged[stream], idle[stream], strength=1.0)]

    own = claim(lab, circuit.manifest.parts, telling_words(160), traffic=HALF)
    about = validate_circuit(lab, own, tmp_path / "decoy", Settings(), decoy, also=[stream])
    assert about.findings is not None
    valid = about.findings.validity
    assert valid.auroc > 0.9
    assert valid.circuit < 0.25 * valid.gap
    assert "readout" in failed(about)
    assert "necessary" not in failed(about)
    assert about.evidence is Evidence.UNVERIFIED


def test_nodes_that_do_little_stay_a_draft(lab, tmp_path):
    rest = [Node.parse("blocks.1.attn_heads.2"), Node.parse("blocks.0.attn_heads.1")]
    about = validate_circuit(lab, claim(lab, rest), tmp_path / "rest", Settings())
    assert {"necessary", "minimal", "agree"} <= failed(about)
    assert (about.evidence, about.severity) == (Evidence.UNVERIFIED, Severity.TICKET)
    assert load_circuit(tmp_path / "rest", root=tmp_path).manifest == about


def test_nodes_that_do_nothing_are_no_circuit_at_all(lab, tmp_path):
    with pytest.raises(LabError, match="at work on 0 of 48 pairs"):
        validate_circuit(lab, claim(lab, [Node.parse("blocks.0.attn_heads.1")]), tmp_path / "none", Settings())
    assert not (tmp_path / "none").exists()


def test_pairs_that_chose_the_nodes_are_refused(root, tmp_path, capsys):
    assert validate(root, tmp_path / "none", pairs="induction:32") == 1
    assert "chose the nodes" in capsys.readouterr().err
    assert main(["validate", str(root / "draft"), "--model", str(FOLDER)]) == 1
    assert "--pairs" in capsys.readouterr().err


def test_an_option_of_probes_is_refused_for_a_circuit(root, tmp_path, capsys):
    assert validate(root, tmp_path / "none", "--steer", "2", "--texts", "8") == 1
    assert "is a circuit, for which --steer, --texts would do nothing" in capsys.readouterr().err


def test_too_few_random_sets_are_refused_before_anything_is_run(root, tmp_path, capsys):
    assert validate(root, tmp_path / "none", "--randoms", "5") == 1
    assert "one in twenty" in capsys.readouterr().err


def test_a_draft_found_on_other_weights_is_refused(root, tmp_path, capsys):
    told = json.loads((root / "draft" / DRAFT).read_text())
    told["model"]["weights_digest"] = "e" * 64
    DraftCircuit.model_validate(told).write(tmp_path / "draft")
    for name in ("traffic.txt", "about.yaml"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    assert validate(tmp_path, tmp_path / "none") == 1
    assert "found on other weights" in capsys.readouterr().err


def test_the_report_is_one_sound_page_that_says_what_is_not_shown(folder, circuit):
    page = (folder / "report.html").read_text(encoding="utf-8")
    checker = checked(page)
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link.startswith("#") for link in checker.links)
    assert "script" not in checker.elements
    said = words(page)
    assert "Validated: may page." in said
    assert "What this does not show" in said
    assert "A quiet circuit does not show that the behaviour does not happen" in said
    assert f"{PREVIOUS_TOKEN.name} alone takes" in said
    assert all(one.node in said for one in circuit.manifest.nodes)
    assert all(gate.text[:40] in said for gate in circuit.manifest.gates if '"' not in gate.text)


def test_inspect_shows_a_circuit_with_its_evidence_and_what_it_may_do(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert all(one in said for one in ("going_on", "used", "page"))


def test_tokens_at_which_the_circuit_is_at_work_are_no_traffic_without_it_and_yet_nothing_unusual(
    lab: LabModel,
) -> None:
    where = TapPoint(1)
    texts = [[*text, *text[1:]] for text in unrepeated(2, WORDS, texts=64, length=20)]
    found = idle(Decoder(lab.model), texts, [PREVIOUS_TOKEN, INDUCTION], [where])
    rows, of = found.everything(where)
    at_work = found.used[where]
    assert 0.5 < len(at_work) / len(rows) < 0.8
    assert len(rows) == len(of) == len(at_work) + len(found.texts)
    assert beyond(usual(where, rows, of, rank=8, first=0), at_work) < 0.02  # of a limit for one in a hundred
    assert beyond(usual(where, found.rows[where], found.texts, rank=8, first=0), at_work) > 0.04


def beyond(basis: Usual, rows: FloatArray) -> float:
    """The share of rows whose SPE is above the basis's limit."""
    away = rows - basis.columns[:, -1]
    spe = (away**2).sum(axis=1) - ((away @ basis.columns[:, :-1]) ** 2).sum(axis=1)
    return float((spe > basis.about.spe_limit).mean())
