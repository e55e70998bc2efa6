"""The circuits that are shipped say of themselves what their findings say, and nothing better."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.circuits.artifact import fit, load_circuit
from probes.circuits.behaviours import find_pairs
from probes.circuits.choosing import choose
from probes.circuits.draft import read_draft
from probes.circuits.findings import per_cent
from probes.circuits.replacing import Ablation
from probes.circuits.reporting.page import HTML, render
from probes.circuits.running import Decoder
from probes.circuits.shipping import SHIPPED, read_recipe, recipe_names
from probes.circuits.universe import nodes_of
from probes.circuits.validation.ablating import Ablated
from probes.circuits.validation.gates import gates, of_kind
from probes.circuits.watching import read
from probes.envelope import MANIFEST, WEIGHTS
from sidecar.types import Evidence
from tests.lab.test_report import checked

DOCS = Path(__file__).parents[2] / "docs" / "circuits.md"
NAMES = sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}"))


def test_every_recipe_is_shipped_and_nothing_without_one():
    assert tuple(NAMES) == recipe_names()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_circuit_is_sound_and_its_gates_are_those_of_its_findings(name):
    about = load_circuit(SHIPPED / name, root=SHIPPED).manifest
    assert about.name == name
    assert about.findings is not None
    assert about.gates == gates(about.findings, about.score)
    assert about.evidence is (Evidence.UNVERIFIED if about.failed else Evidence.USED)
    assert about.behaviour == read_recipe(name).behaviour


@pytest.mark.parametrize("name", NAMES)
def test_its_nodes_are_those_that_its_draft_chooses_by_the_recipe(name):
    about = load_circuit(SHIPPED / name, root=SHIPPED).manifest
    draft = read_draft(SHIPPED / name)
    chosen = choose(draft, read_recipe(name).share)
    assert about.parts == chosen.nodes
    assert draft.pairs_digest != about.findings.pairs_digest
    assert draft.model.weights_digest == about.model.weights_digest


@pytest.mark.parametrize("name", NAMES)
def test_its_report_is_that_of_its_manifest_and_small(name):
    about = load_circuit(SHIPPED / name, root=SHIPPED).manifest
    assert (SHIPPED / name / HTML).read_text(encoding="utf-8") == render(about)
    checked(render(about))
    sizes = {path.name: path.stat().st_size for path in (SHIPPED / name).iterdir()}
    assert sizes[MANIFEST] + sizes[WEIGHTS] < 256 << 10
    assert sum(sizes.values()) < 1 << 20


@pytest.mark.parametrize("name", NAMES)
def test_its_report_says_whether_it_may_page_and_that_a_draft_may_still_open_tickets(name):
    about = load_circuit(SHIPPED / name, root=SHIPPED).manifest
    told = render(about)
    assert ("Draft: never pages." in told) == ("it may open tickets" in told) == bool(about.failed)
    assert "never alarms" not in told


@pytest.mark.parametrize("name", NAMES)
def test_the_docs_say_of_it_what_its_manifest_says(name):
    about = load_circuit(SHIPPED / name, root=SHIPPED).manifest
    resample, score = of_kind(about.findings, Ablation.RESAMPLE), about.score
    verdict = f"failed: {', '.join(about.failed)}" if about.failed else f"validated, {about.severity.value}"
    cells = (
        name,
        f"{len(about.parts)} ({len(about.watched)})",
        per_cent(resample.necessity.left),
        per_cent(resample.faithfulness),
        f"{about.findings.validity.ratio:.1f}",
        f"{score.engaged_share:.0%} / {score.traffic_share:.1%}",
        verdict,
    )
    assert f"| {' | '.join(cells)} |" in DOCS.read_text(encoding="utf-8").splitlines()


@pytest.mark.model
def test_on_the_real_model_induction_is_engaged_where_it_is_called_for_and_not_once_it_is_ablated(smollm2: Path):
    from probes.activations.model import open_model

    lab = open_model(smollm2)
    circuit = load_circuit(SHIPPED / "induction", root=SHIPPED)
    assert fit(circuit.manifest, lab.identity).evidence is circuit.manifest.evidence  # at home, and not stale
    pairs = find_pairs("induction:8:7", lab)
    ablated = Ablated(Decoder(lab.model), pairs, Ablation.MEAN, nodes_of(lab.model))
    points = [place.where for place in circuit.manifest.places]
    at_work, without = (read(circuit, ablated.rows(nodes, points)[1]) for nodes in ((), circuit.manifest.parts))
    assert at_work.engaged.mean() > without.engaged.mean() + 0.4
