"""What must never pass in silence: hooks that a compiled model does not run, and a vLLM that the tap does not know."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sidecar.types import TapPoint
from tests.e2e.own import write_artifacts
from tests.engines.beside import Beside, beside
from tests.engines.environment import HERE, Environment
from tests.engines.models import tiny_model
from tests.engines.reference import Reference
from tests.waiting import until

POINT = TapPoint(1)
PROMPT = list(range(500, 540))
HOOKS = {"STETHOSCOPE_TAP": f"hooks:{POINT.name}"}
# vLLM 0.32 cannot read the compiled models again that it writes on a CPU: without them it starts in two thirds of the time.
COMPILED = {"VLLM_USE_AOT_COMPILE": "0"}
WITHIN_S = 5.0


@pytest.fixture(scope="module")
def hooked(vllm: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """Compiled, with plain hooks in it all the same, beside a sidecar with a probe of this model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, own = tiny_model("llama"), tmp_path_factory.mktemp("own")
    write_artifacts(AutoModelForCausalLM.from_pretrained(model), POINT.layer, own, AutoTokenizer.from_pretrained(model))
    forced = {**HOOKS, **COMPILED, "PYTHONPATH": str(HERE / "inside")}
    extension = "--worker-extension-cls=plain_hooks.Nothing"
    with beside(vllm, model, own, extension, eager=False, engine_env=forced) as both:
        yield both


def test_the_self_test_says_before_the_first_request_that_nothing_comes(hooked: Beside) -> None:
    (told,) = [line for line in hooked.server.log if "self_test" in line]
    assert "ERROR" in told
    assert f"tap_point={POINT.name}: no states come" in told


@pytest.mark.shows("vLLM V1", "blind")
def test_a_compiled_model_that_runs_no_hook_answers_and_is_blind_within_five_seconds(
    hooked: Beside,
) -> None:
    client = hooked.client
    answer = Reference(hooked.server.model).answer(PROMPT, 8)
    assert hooked.server.complete(PROMPT, max_tokens=8).tokens == answer

    def state() -> tuple[bool, str]:
        (point,) = client.status().coverage
        return point.blind, point.reason

    until(lambda: state() == (True, "not_seen"), WITHIN_S)

    def counted() -> tuple[str, int, int]:
        (point,) = client.status().coverage
        return point.tap_point, point.expected, point.seen

    until(lambda: counted() == (POINT.name, len(PROMPT) + 7, 0), WITHIN_S)
    series = client.series()
    assert series[f'stethoscope_blind{{tap_point="{POINT.name}"}}'] == "1"
    assert series['stethoscope_blind{tap_point="any"}'] == "1"
    assert series[f'stethoscope_tokens_seen_total{{tap_point="{POINT.name}"}}'] == "0"
    assert float(series[f'stethoscope_tokens_expected_total{{tap_point="{POINT.name}"}}']) == len(PROMPT) + 7


@pytest.mark.shows("vLLM V1", "unknown version", how="contract")
def test_a_vllm_whose_sources_are_not_known_is_left_as_it_is_and_the_log_says_why(vllm: Environment) -> None:
    surroundings = {"VLLM_PLUGINS": "stethoscope", "STETHOSCOPE_TAP": "on"}
    printed = vllm.run(str(HERE / "inside" / "unknown_version.py"), env=surroundings)
    told = json.loads(printed.splitlines()[-1])
    assert told["replaced"] == []
    (why,) = [line for line in told["said"] if "not_tapped" in line]
    assert why.startswith("ERROR not_tapped: the source of this vllm is not one that the tap knows (part plugin, ")
    assert why.endswith("; known: 0.1.0); vLLM goes on as it is")


def test_a_setting_that_makes_no_sense_is_refused_with_its_reason_and_vllm_is_left_as_it_is(vllm: Environment) -> None:
    surroundings = {"VLLM_PLUGINS": "stethoscope", "STETHOSCOPE_TAP": "on", "STETHOSCOPE_QUEUE_S": "soon"}
    told = json.loads(vllm.run(str(HERE / "inside" / "what_is_said.py"), env=surroundings).splitlines()[-1])
    assert told["replaced"] == []
    why = "STETHOSCOPE_QUEUE_S: 'soon' is not a number of seconds over 0 and below 3600"
    assert [line for line in told["said"] if "not_tapped" in line] == [
        f"ERROR not_tapped: {why}; vLLM goes on as it is"
    ]
