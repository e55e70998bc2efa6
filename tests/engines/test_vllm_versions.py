"""Which vLLMs the tap knows: the one that runs here by all of its parts, and the next one by its source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probes.smollm2 import cache_folder
from sidecar.tap.source import Names, source_digest
from sidecar.tap.vllm.known import KNOWN, PLUGIN, V1, V2
from tests.engines.environment import Environment
from tests.engines.source import VLLM_NEXT

NAMES: dict[str, Names] = {"plugin": PLUGIN, "v1": V1, "v2": V2}
REFUSALS = """
import json
from sidecar.tap.vllm.known import KNOWN, refusal
print(json.dumps({part: refusal(part) for part in KNOWN}))
"""


@pytest.fixture(scope="module")
def source() -> Path:
    return VLLM_NEXT.unpacked(cache_folder())


def test_no_part_of_the_vllm_that_runs_here_is_refused(vllm: Environment) -> None:
    assert json.loads(vllm.run("-c", REFUSALS)) == dict.fromkeys(NAMES, "")


def test_every_part_of_the_next_vllm_is_known_by_its_version(source: Path) -> None:
    known = {part: KNOWN[part].get(source_digest(source / "vllm", names), "") for part, names in NAMES.items()}
    assert all(VLLM_NEXT.version in versions.split(" and ") for versions in known.values()), known
