"""A probe made on transformers' states comes to act under vLLM: collected there, compared, admitted, and served."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from probes.activations.store import ActivationStore
from probes.cli import main as probes
from probes.draft import Draft
from probes.manifest import Aggregation
from probes.release.pack import pack
from probes.serving import Served
from sidecar.cli import main as sidecar
from sidecar.states_file import read_states
from sidecar.types import TapPoint
from tests.engines.environment import Environment
from tests.engines.models import tiny_model
from tests.engines.vllm_server import VllmServer
from tests.faults.process import Process
from tests.lab.drafts import calibration, evaluation, trained
from tests.service.client import Client
from tests.service_fixtures import private_folder
from tests.waiting import until

WHERE = TapPoint(1)
ENV = {"STETHOSCOPE_TAP": WHERE.name, "STETHOSCOPE_QUEUE_S": "60"}
TEXTS, ASKED = 240, 6
JUDGED = 'stethoscope_probe_request_score_count{probe="planted_truth"}'
WORDS = (
    "plain",
    "long",
    "house",
    "sea",
    "people",
    "money",
    "rain",
    "garden",
    "street",
    "winter",
    "music",
    "bread",
    "river",
)


@dataclass(slots=True)
class Story:
    """What was seen on the way."""

    hits: list[float] = field(default_factory=list)  # of the prefix cache
    prompts: dict[str, list[int]] = field(default_factory=dict)
    recorded: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    stores: tuple[ActivationStore, ...] = ()
    evidence: list[tuple[str, str]] = field(default_factory=list)  # and why, before and after
    detections: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(vllm: Environment) -> Iterator[Story]:
    with private_folder() as home:
        told, address = Story(), f"unix:{home}/run/s"
        (home / "vllm").mkdir()
        env = {**ENV, "STETHOSCOPE_ADDRESS": address}
        with VllmServer(vllm, tiny_model("llama"), home / "vllm", env=env, eager=True) as server:
            _record_shared_prefixes(told, server, home, address)
            _admit(told, server, home, address)
            _serve(told, server, home, address)
        yield told


def _record_shared_prefixes(told: Story, server: VllmServer, home: Path, address: str) -> None:
    draws = random.Random(0)
    shared = [draws.randrange(300, 20_000) for _ in range(300)]
    told.prompts = {f"p{n}": [*shared, n + 5, n + 6] for n in range(4)}
    for ids in told.prompts.values():
        server.complete(ids, max_tokens=1)
        told.hits.append(server.metric("vllm:prefix_cache_hits_total"))
    lines = [json.dumps({"id": name, "tokens": ids}) for name, ids in told.prompts.items()]
    (home / "prompts").write_text("\n".join(lines))
    record = ["record", "--into", str(home / "shared"), "--tap-points", WHERE.name, "--address", address]
    assert sidecar([*record, "--ask", str(home / "prompts"), "--server", server.url, "--tries", "1"]) == 0
    told.hits.append(server.metric("vllm:prefix_cache_hits_total"))
    for name in told.prompts:
        states = read_states(home / "shared" / f"{name}.safetensors")
        told.recorded[name] = (states.tokens, states.token_ids.tolist())


def _admit(told: Story, server: VllmServer, home: Path, address: str) -> None:
    """The three commands, and before them a probe."""
    collect = ["collect", "--model", str(server.model), "--data", str(_texts(home)), "--layers", str(WHERE.layer)]
    assert probes([*collect, "--into", str(home / "here")]) == 0
    _pack_probe(ActivationStore.open(home / "here"), home)
    assert probes([*collect, "--into", str(home / "there"), "--engine", server.url, "--listen", address]) == 0
    gate = ["gate", "--artifact", str(home / "probe"), "--reference", str(home / "here")]
    margins = ["--fpr-margin", "0.05", "--recall-margin", "0.05"]
    assert probes([*gate, "--candidate", str(home / "there"), *margins, "--admit", str(home / "admitted")]) == 0
    told.stores = tuple(ActivationStore.open(home / name) for name in ("here", "there"))


def _texts(home: Path) -> Path:
    draws = random.Random(1)
    with (home / "texts.csv").open("w") as file:
        file.write("text,label\n")
        for number in range(TEXTS):
            words = draws.choices(WORDS, k=6)
            words[draws.randrange(6)] = "superb" if number % 2 else "dreadful"
            file.write(f"{' '.join(words)} {number},{number % 2}\n")
    return home / "texts.csv"


def _pack_probe(store: ActivationStore, home: Path) -> None:
    """The difference of the means, so long that it is sure of every text that it is right about."""
    labels = np.array([text.label for text in store.texts])
    pooled = np.stack([rows.mean(axis=0) for rows in store.at(WHERE)])
    high, low = (pooled[labels == one].mean(axis=0) for one in (True, False))
    direction = (high - low) * 10 / np.sum((high - low) ** 2)
    served = Served(
        direction[:, None].astype(np.float32),
        np.array([-direction @ (high + low) / 2], np.float32),
        Aggregation(kind="mean"),
    )
    draft = Draft(home / "draft")
    draft.write_trained(trained(store), served)
    draft.write(calibration(0.5))
    draft.write(evaluation())
    pack(home / "draft", home / "probe")


def _serve(told: Story, server: VllmServer, home: Path, address: str) -> None:
    """A sidecar where the recording stood: with the probe as it was made, and then as it was admitted."""
    here, artifacts = told.stores[0], home / "artifacts"
    shutil.copytree(home / "probe", artifacts / "one")
    positives = [text for text in range(len(here)) if here.texts[text].label][:ASKED]
    everything = ("--set", "sampling.request_fraction=1.0", "--set", "artifacts.reload_s=0.1")
    with Process(home, artifacts, *everything, address=address) as process, Client(process) as client:
        process.event("started")
        until(lambda: client.status().engines and client.status().artifacts[0].reason)
        for admitted in (False, True):
            if admitted:
                shutil.copytree(home / "admitted", artifacts / "one", dirs_exist_ok=True)
                until(lambda: client.status().artifacts[0].version == "1.0.1")
            one = client.status().artifacts[0]
            told.evidence.append((one.evidence, one.reason))
            for text in positives:
                server.complete(here.tokens(text), max_tokens=2)
            if admitted:
                until(lambda: client.status().signals[0].detections >= ASKED - 1)
            else:
                until(lambda: client.series().get(JUDGED) == str(ASKED))
            told.detections.append(client.status().signals[0].detections)


def test_the_prefix_cache_gives_nothing_to_what_is_recorded(story: Story) -> None:
    *asked, before, after = story.hits
    assert before > asked[0], "without a salt, prompts that begin alike are found in it"
    assert after == before
    assert story.recorded == {name: (len(ids), ids) for name, ids in story.prompts.items()}


@pytest.mark.shows("vLLM V1", "collecting for the lab")
def test_vllms_states_are_those_of_transformers_under_another_name(story: Story) -> None:
    here, there = story.stores
    assert here.texts == there.texts
    for text in range(len(here)):
        ours, theirs = here.at(WHERE)[text], there.at(WHERE)[text]
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(ours)
    assert (here.facts.model.engine, there.facts.model.engine) == ("transformers", "vllm")
    assert here.facts.model.weights_digest != there.facts.model.weights_digest
    assert here.facts.model.tokenizer_digest == there.facts.model.tokenizer_digest


def test_the_probe_is_stale_under_vllm_and_never_acts_until_it_is_admitted(story: Story) -> None:
    (before, why), (after, nothing) = story.evidence
    assert before == "stale"
    assert "engine: made on transformers, served by vllm" in why
    assert after != "stale"
    assert nothing == ""
    assert story.detections[0] == 0
    assert story.detections[1] >= ASKED - 1
