"""A real engine, a real sidecar process, real scrapes: a circuit is followed, ablated in the engine, and left by its traffic."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.circuits.baseline_fit import Options, fit_baseline
from sidecar.circuits.record import read_record
from sidecar.cli import main as sidecar_command
from tests.circuits.test_validation import folder, lab, root
from tests.circuits.toy_engine import TOKEN, Engine, Sidecar
from tests.circuits.toys import FOLDER
from tests.service_fixtures import private_folder

__all__ = ["folder", "lab", "root"]
pytestmark = [pytest.mark.process, pytest.mark.timeout(480)]
NAME = "going_on"
ALL = f'circuit="{NAME}",slice="all"'
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def home(folder: Path) -> Iterator[Path]:
    """A sidecar's folder with the circuit that `probes validate` made of the toy."""
    with private_folder() as made:
        (made / "artifacts").mkdir()
        shutil.copytree(folder, made / "artifacts" / NAME)
        (made / "token").write_text(TOKEN)
        yield made


def canaries(home: Path, engine: Engine, **more: object) -> dict[str, object]:
    """Settings of a sidecar that sends them."""
    lines = [engine.prompt(repeats=bool(number % 2)) for number in range(12)]
    (home / "prompts").write_text("\n".join(lines))
    return {
        "canary.url": engine.url,
        "canary.path": "/v1/completions",
        "canary.model": FOLDER,
        "canary.token_file": home / "token",
        "canary.prompts": home / "prompts",
        "canary.every_s": 1.0,
        **more,
    }


@pytest.mark.shows("transformers", "canaries")
def test_ablation_is_the_models_and_traffic_that_stops_is_the_traffics(home: Path) -> None:
    sidecar = Sidecar(home)
    engine = Engine(home, sidecar.address)
    settings = {"circuits.tick_s": 1, "circuits.cool_down": 5, "circuits.run_length": 1000, "circuits.diagnose_s": 60.0}
    asked = canaries(home, engine)
    with sidecar.running(**settings, **asked), engine.running():
        engine.traffic(1, 1.0)  # the engine loads its model, and its tap introduces itself
        for _ in range(12):
            engine.traffic(10, 0.9)
        page = sidecar.wait_for(lambda page: page.get(f"circuit_tokens_total{{{ALL}}}", 0) > 120 * 50, PATIENCE_S)
        share = page[f"circuit_tokens_engaged_total{{{ALL}}}"] / page[f"circuit_tokens_total{{{ALL}}}"]
        assert 0.3 < share < 0.8
        assert page[f'circuit_state{{circuit="{NAME}",state="learning"}}'] == 1
        sidecar.wait_for(lambda page: page['canary_rounds_total{outcome="whole"}'] >= 3, PATIENCE_S)
        traffic_only = page[f"circuit_tokens_total{{{ALL}}}"]
        engine.traffic(1, 0.0)
        later = sidecar.wait_for(lambda page: page[f"circuit_tokens_total{{{ALL}}}"] > traffic_only, PATIENCE_S)
        assert later[f"circuit_tokens_total{{{ALL}}}"] - traffic_only < 121 * 62 - 120 * 50  # canaries are none of it
    archive = home / "archive"
    reference = home / "reference.safetensors"
    assert sidecar_command(["canary", "record", str(archive), "--out", str(reference), "--rounds", "3"]) == 0
    baseline = home / "artifacts" / "baseline"
    fit_baseline([archive], baseline, Options(buckets=1, run_length=1000, armed=True))

    with sidecar.running(**settings, **asked, **{"canary.reference": reference}), engine.running():
        engine.traffic(20, 0.9)
        page = sidecar.wait_for(lambda page: page['canary_rounds_total{outcome="whole"}'] >= 3, PATIENCE_S)
        assert page[f'circuit_state{{circuit="{NAME}",state="validated"}}'] == 1
        assert page[f'circuit_canary_moved{{circuit="{NAME}"}}'] == 0
        for _ in range(6):
            engine.traffic(10, 0.0)
        page = _until_alarm(sidecar, engine, "traffic", 0.0)
        assert page[f'circuit_canary_moved{{circuit="{NAME}"}}'] == 0
        engine.breaks()
        page = sidecar.wait_for(lambda page: page[f'circuit_canary_moved{{circuit="{NAME}"}}'] == 1, PATIENCE_S)
        assert page[f'circuit_canary_distance{{circuit="{NAME}"}}'] > 20
        assert page['canary_first_moved_info{tap_point="blocks.1.attn_heads"}'] == 1
        page = _until_alarm(sidecar, engine, "model", 0.9)
    records = [read_record(path) for path in sorted(archive.glob("*.json"))]
    assert {one.diagnosis for one in records} >= {"traffic", "model"}
    for path in archive.glob("*.json"):
        assert sidecar_command(["replay", str(path), "--baseline", str(baseline)]) == 0


def _until_alarm(sidecar: Sidecar, engine: Engine, cause: str, share: float) -> dict[str, float]:
    """Go on with such traffic until there is an alarm of that cause."""
    name = f'circuit_alarms_total{{cause="{cause}",{ALL}}}'
    for _ in range(30):
        engine.traffic(10, share)
        page = sidecar.page()
        if page.get(name):
            return page
    return sidecar.wait_for(lambda page: page[name] > 0, PATIENCE_S)
