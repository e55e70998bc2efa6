"""Canaries through a real vLLM: quiet while the model is what it was, no part of the traffic, and loud once it is another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from sidecar.cli import main as sidecar_command
from sidecar.live.canary_arrivals import Unused
from tests.engines.environment import HERE, Environment
from tests.engines.vllm_server import VllmServer
from tests.faults.process import Process
from tests.service.client import Client
from tests.service_fixtures import private_folder
from tests.waiting import until

SHIPPED = Path(__file__).parents[2] / "probes" / "circuits" / "shipped"
CIRCUIT, ABLATED = "induction", 18
POINTS = "blocks.16.attn_heads,blocks.18.attn_heads,blocks.29.attn_heads,29"
SINKS = 4  # first positions, which no circuit looks at
SOON_S = 60.0
TOKEN = "nobody-else-knows"


@dataclass(frozen=True, slots=True)
class Served:
    """One vLLM and one sidecar with a circuit, which sends canaries through it."""

    home: Path
    server: VllmServer
    process: Process
    client: Client

    def value(self, name: str, **labels: str) -> float:
        told = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        return float(self.client.series().get(f"stethoscope_{name}" + (f"{{{told}}}" if labels else ""), "nan"))

    @property
    def rounds(self) -> float:
        return self.value("canary_rounds_total", outcome="whole")

    @property
    def tokens(self) -> float:
        return self.value("circuit_tokens_total", circuit=CIRCUIT, slice="all")

    def more_rounds(self, many: int) -> None:
        before = self.rounds
        until(lambda: self.rounds >= before + many, SOON_S)


@pytest.fixture(scope="module")
def served(vllm: Environment, smollm2: Path) -> Iterator[Served]:
    with private_folder() as home:
        shutil.copytree(SHIPPED / CIRCUIT, home / "artifacts" / CIRCUIT)
        (home / "vllm").mkdir()
        address = f"unix:{home}/run/sidecar.sock"
        env = {
            "STETHOSCOPE_TAP": POINTS,
            "STETHOSCOPE_ADDRESS": address,
            "STETHOSCOPE_QUEUE_S": "60",
            "STETHOSCOPE_CANARY_TOKEN": TOKEN,
            "PYTHONPATH": str(HERE / "inside"),
            "VLLM_SERVER_DEV_MODE": "1",
        }
        extension = "--worker-extension-cls=ablation.Ablation"
        with (
            VllmServer(vllm, smollm2, home / "vllm", extension, env=env) as server,
            Process(home, home / "artifacts", *_flags(home, server), address=address) as process,
            Client(process) as client,
        ):
            made = Served(home, server, process, client)
            until(lambda: made.rounds >= 1, SOON_S)
            yield made


def _flags(home: Path, server: VllmServer) -> list[str]:
    (home / "token").write_text(TOKEN)
    (home / "prompts").write_text("\n".join(_prompt(number) for number in range(8)))
    told = {
        "sampling.request_fraction": 1.0,
        "circuits.archive": home / "archive",
        "circuits.tick_s": 1,
        "circuits.requests_are_sessions": "true",
        "canary.url": server.url,
        "canary.path": "/v1/completions",
        "canary.model": server.model,
        "canary.marks": "vllm_xargs",
        "canary.token_file": home / "token",
        "canary.prompts": home / "prompts",
        "canary.reference": home / "reference.safetensors",
        "canary.every_s": 0.5,
    }
    return [part for name, value in told.items() for part in ("--set", f"{name}={value}")]


def _prompt(number: int) -> str:
    """A list of words, and its beginning again: the circuit is at work at its end."""
    words = ["river", "stone", "lamp", "window", "garden", "copper", "basket", "winter", "salt", "mirror"]
    turned = [*words[number:], *words[:number]]
    return " ".join((*turned, *turned[:5]))


@pytest.mark.shows("vLLM V1", "canaries")
def test_canaries_are_no_traffic_quiet_while_nobody_disturbs_the_model_and_loud_from_the_block_on_that_is_ablated(
    served: Served,
) -> None:
    served.more_rounds(2)  # with the first one more tokens than all of the traffic that follows
    assert not served.tokens > 0
    expected = _traffic(served.server)
    until(lambda: served.tokens >= expected, SOON_S)
    record = ["canary", "record", str(served.home / "archive"), "--out", str(served.home / "reference.safetensors")]
    assert sidecar_command([*record, "--rounds", "3"]) == 0
    served.more_rounds(4)
    quiet = served.value("circuit_canary_distance", circuit=CIRCUIT)
    assert 0 <= quiet < 5  # floors of noise
    assert served.value("circuit_canary_moved", circuit=CIRCUIT) == 0
    _ablate(served.server)
    until(lambda: served.value("circuit_canary_moved", circuit=CIRCUIT) == 1, SOON_S)
    distance = served.value("circuit_canary_distance", circuit=CIRCUIT)
    assert not any(served.value("canary_rows_unused_total", reason=why) for why in Unused)
    print(f"ready after {served.server.ready_s:.0f} s; quiet at {quiet:.2f} floors, ablated at {distance:.0f}")
    assert distance > 20
    assert served.value("canary_first_moved_info", tap_point=f"blocks.{ABLATED}.attn_heads") == 1
    assert served.tokens == expected
    told = [*served.client.series(), *served.process.lines, *served.server.log]
    assert not [line for line in told if TOKEN in line]


def _traffic(server: VllmServer) -> int:
    """Four requests, which call themselves canaries and do not know the token; how many tokens a circuit is to count of them."""
    draws = np.random.default_rng(0)
    prompts = [draws.integers(300, 2000, 12 + at).tolist() for at in range(4)]
    claims = [{"stethoscope_canary": claim, "stethoscope_route": "canary-3"} for claim in ("1", "true", TOKEN[:-1], "")]
    done = [
        server.complete(prompt, request_id=f"traffic{at}", max_tokens=4, ignore_eos=True, vllm_xargs=claims[at])
        for at, prompt in enumerate(prompts)
    ]
    return sum(len(one.fed) - SINKS for one in done)


def _ablate(server: VllmServer) -> None:
    rpc = {"method": "ablate_attention", "args": [str(ABLATED)]}
    answer = httpx.post(f"{server.url}/collective_rpc", json=rpc, timeout=SOON_S, trust_env=False)
    assert answer.raise_for_status().json() == {"results": [f"block {ABLATED} of 576 columns"]}
