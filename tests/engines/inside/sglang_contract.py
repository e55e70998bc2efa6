"""Drives the tap of SGLang through SGLang's own plugin loader, batches and worker, and prints as JSON what was captured.

The model needs CUDA: a stub stands for its runner, and hands out states that say which row SGLang itself takes them for.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch._inductor.compile_fx  # with what is here of triton: nothing
import torch.utils.flop_counter
import transformers.utils.import_utils as found
from stand_ins import stand_in

found.is_torchvision_available()  # asked before there is a stand-in for it
stand_in(
    "triton", "IPython", "orjson", "torchvision", "gguf", "sglang.kernels.ops.mamba", "sglang.kernels.ops.attention.fla"
)

import sglang.srt.managers.schedule_batch as batches  # noqa: E402 - behind the stand-ins
from sglang.srt.layers.aux_hidden_states import pack_aux_hidden_states  # noqa: E402
from sglang.srt.layers.logits_processor import LogitsProcessorOutput  # noqa: E402
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req, ScheduleBatch  # noqa: E402
from sglang.srt.managers.scheduler import Scheduler  # noqa: E402
from sglang.srt.managers.tp_worker import TpModelWorker  # noqa: E402
from sglang.srt.plugins import load_plugins  # noqa: E402
from sglang.srt.runtime_context import SpawnRanks, get_exec, publish, reset_context  # noqa: E402
from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: E402
from sglang.srt.server_args import ServerArgs  # noqa: E402
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm  # noqa: E402

MODEL, WIDTH, LAYERS = sys.argv[1], 128, (1, 2)
SERVED = {
    "enable_return_aux_hidden_states": True,
    "speculative_algorithm": "EAGLE3",
    "return_aux_hidden_state_layer_ids": list(LAYERS),
}
UNTOLD = {**dict.fromkeys(SERVED), "enable_return_aux_hidden_states": False}
RESULT = "process_batch_result"
DEADLINE_S = 30.0


class Runner:
    """Stands for the runner of the model: hands out states, one element of which says the request's place, another its position."""

    is_draft_worker, device, lora_manager, attn_backend = False, "cpu", None, None
    prefill_attention_backend_str = "torch_native"

    def __init__(self, config: Any) -> None:
        self.model_config = config
        self.model = torch.nn.Linear(2, 2)
        self.kv_index_translator = SimpleNamespace(own_plan=lambda _: SimpleNamespace(bind=lambda *_, **__: None))
        self.ngram_embedding_manager = SimpleNamespace(enabled=False)
        self.seen: list[Any] = []  # what SGLang's own ForwardBatch says of each row

    def init_attention_backends(self) -> None:
        """As the real one: the model is told what to hand out, as the number of the block at whose beginning it is taken."""
        layers = get_exec().features.return_aux_hidden_state_layer_ids or []
        self.model.model = SimpleNamespace(layers_to_capture=[layer + 1 for layer in layers])

    def forward(self, forward: Any, **_: Any) -> Any:
        assert forward.capture_hidden_mode.is_full()
        lengths = forward.extend_seq_lens_cpu or [1] * forward.batch_size
        owners = [place for place, length in enumerate(lengths) for _ in range(length)]
        self.seen.append([[forward.rids[place], int(at)] for place, at in zip(owners, forward.positions, strict=True)])
        rows = torch.zeros(len(owners), WIDTH)
        rows[:, 0], rows[:, 1] = torch.tensor(owners), forward.positions
        packed = pack_aux_hidden_states([rows + 0.25 * place for place in range(len(LAYERS))])
        return SimpleNamespace(
            logits_output=LogitsProcessorOutput(next_token_logits=None, hidden_states=packed),
            can_run_graph=False, expert_distribution_metrics=None, routed_experts_output=None, indexer_topk_output=None,
        )  # fmt: skip

    def sample(self, _output: Any, forward: Any) -> torch.Tensor:
        return torch.full((forward.batch_size,), 7)

    @staticmethod
    def _elastic_cuda_graph_enabled() -> bool:
        return False


def made_worker(ranks: SpawnRanks = SpawnRanks(world_rank=0), **arguments: Any) -> TpModelWorker:  # noqa: B008 - frozen
    """A real worker but for what its constructor would load; its settings are resolved and published by SGLang's own code."""
    settings = ServerArgs(**{"model_path": MODEL, "device": "cpu", **SERVED, **arguments})
    reset_context()
    publish(settings, role="scheduler", ranks=ranks)
    from sglang.srt.configs.model_config import ModelConfig

    worker = TpModelWorker.__new__(TpModelWorker)
    worker.model_config = ModelConfig.from_server_args(settings)
    worker._model_runner, worker.model_runner_list = Runner(worker.model_config), []
    worker.is_draft_worker = worker.enable_overlap = worker.enable_spec = False
    worker.dllm_algorithm = worker.hicache_layer_transfer_counter = worker.tokenizer = None
    worker.pp_group = SimpleNamespace(is_last_rank=True)
    return worker


def made_scheduler(worker: TpModelWorker) -> Scheduler:
    """A real scheduler but for all that its constructor would start: what it does with a result is done by ``take``."""
    scheduler = Scheduler.__new__(Scheduler)
    nothing = SimpleNamespace(__getattr__=None)
    quiet = type("Quiet", (), {"__getattr__": lambda _self, _name: lambda *_, **__: None})()
    scheduler.__dict__.update(
        tp_worker=worker, scheduler_stage_metrics=None, load_publisher=quiet, load_inquirer=quiet, tree_cache=quiet,
        metrics_reporter=quiet, enable_fpm=False, disaggregation_mode=nothing, _record_step_counters=quiet.x,
        publish_load_snapshot=quiet.x, _maybe_clear_mm_inputs=quiet.x, maybe_send_health_check_signal=quiet.x,
        batch_result_processor=SimpleNamespace(process_batch_result_decode=take, process_batch_result_prefill=take),
    )  # fmt: skip
    return scheduler


def take(batch: ScheduleBatch, result: Any) -> None:
    """A token for every request whose prompt is complete; at its last one it is finished."""
    for req, token in zip(batch.reqs, result.next_token_ids.tolist(), strict=True):
        if req.extend_end >= len(req.origin_input_ids):
            req.output_ids.append(token)
        if len(req.output_ids) >= req.sampling_params.max_new_tokens:
            req.finished_reason = FINISH_LENGTH(len(req.output_ids))


def made_request(rid: str, prompt: int, most: int = 8, adapter: str | None = None, **asked: Any) -> Req:
    sampling = SamplingParams(max_new_tokens=most, custom_params=asked or None)
    sampling.normalize(None)
    return Req(rid, "", array("q", range(prompt)), sampling, vocab_size=100, eos_token_ids=set(), lora_id=adapter)


class Engine:
    """The steps of an SGLang, by its own batches."""

    def __init__(self, worker: TpModelWorker) -> None:
        self.worker, self.scheduler = worker, made_scheduler(worker)
        self._pool = SimpleNamespace(device="cpu")

    def prefill(self, *chunks: tuple[Req, int, int]) -> ScheduleBatch:
        """A real batch of these requests, each from what the cache has of it up to where its chunk ends."""
        for req, cached, end in chunks:
            req.refresh_fill_ids()
            req.prefix_len, req.extend_end = cached, end
        reqs = [req for req, _, _ in chunks]
        none = SpeculativeAlgorithm.NONE
        batch = ScheduleBatch.init_new(reqs, self._pool, None, None, self.worker.model_config, False, none)
        batch.prepare_for_extend()
        return batch

    def step(self, batch: ScheduleBatch) -> None:
        batch.input_ids = torch.zeros(1, dtype=torch.int64)
        result = self.worker.forward_batch_generation(batch)
        self.scheduler.process_batch_result(batch, result)


def slots(count: int) -> torch.Tensor:
    return torch.arange(count)


def story(engine: Engine) -> None:
    """Chunks, a prefix that the cache had, prompts among tokens, a retraction, a request that is forgotten, and ends."""
    one, two = (
        made_request("one", 5, most=2),
        made_request("two", 6, most=4, traceparent=TRACEPARENT, stethoscope_route="chat"),
    )
    check, lost = made_request("HEALTH_CHECK_1", 1), made_request("lost", 2, adapter="french")
    running = engine.prefill((two, 4, 6), (one, 0, 3), (check, 0, 1), (lost, 0, 2))
    engine.step(running)
    running.filter_batch(keep_indices=[0])
    running.prepare_for_decode()
    mixed = engine.prefill((one, 3, 5))
    mixed.mix_with_running(running)
    engine.step(mixed)
    mixed.prepare_for_decode()
    engine.step(mixed)  # the last of one
    engine.step(engine.prefill((two, 0, len(two.origin_input_ids) + len(two.output_ids))))  # computed again
    engine.worker.forward_batch_generation(None, _draft(engine))
    gone = weakref.ref(lost)
    del lost, running, mixed
    gc.collect()
    assert gone() is None
    last, quiet = made_request("last", 1, most=1), made_request("quiet", 3, most=1, stethoscope="never")
    engine.step(engine.prefill((quiet, 0, 3), (last, 0, 1)))


def _draft(engine: Engine) -> Any:
    """A step that comes without the scheduler's batch, as those of a drafter do."""
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    batch = engine.prefill((made_request("draft", 1), 0, 1))
    batch.input_ids = torch.zeros(1, dtype=torch.int64)
    return ForwardBatch.init_new(batch, engine.worker.model_runner, return_hidden_states_before_norm=False)


def unreadable(engine: Engine, kind: str) -> ScheduleBatch:
    """Of two prompts of 7 and 4 new tokens, in a kind of step whose rows nobody tells us."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    batch = engine.prefill((made_request("odd", 9), 2, 9), (made_request("odder", 4), 0, 4))
    batch.forward_mode = ForwardMode[kind]
    return batch


TRACEPARENT = f"00-{'4bf92f3577b34da6' * 2}-00f067aa0ba902b7-01"


def allocated_for_extend(batch: ScheduleBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = len(batch.reqs)
    return slots(batch.extend_num_tokens), slots(count), slots(count)


def wait_for(happens: Callable[[], bool]) -> None:
    pause, ends_s = threading.Event(), time.monotonic() + DEADLINE_S
    while not happens() and time.monotonic() < ends_s:
        pause.wait(0.02)


def hooked() -> dict[str, bool]:
    """Which methods SGLang's registry of hooks has wrapped."""
    places = (
        (TpModelWorker, "init_attention_backends"),
        (TpModelWorker, "forward_batch_generation"),
        (Scheduler, RESULT),
    )
    return {name: getattr(owner, name).__code__.co_filename.endswith("hook_registry.py") for owner, name in places}


def refused(rank: int = 0, **arguments: Any) -> str:
    """What the log says when a worker that was started so is made ready; empty if nothing is said. Fails if it is tapped."""
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    ours = logging.getLogger("stethoscope")
    ours.addHandler(listener)
    worker = made_worker(SpawnRanks(world_rank=rank), **arguments)
    worker.init_attention_backends()
    ours.removeHandler(listener)
    assert not hasattr(worker, "stethoscope")
    return "".join(said)


def tapped(**arguments: Any) -> TpModelWorker:
    worker = made_worker(**arguments)
    worker.init_attention_backends()
    wait_for(lambda: bool(worker.stethoscope.client.settings.tap_points))
    return worker


def main() -> dict[str, Any]:
    batches.alloc_for_extend = allocated_for_extend  # there is no memory of keys and values here
    batches.alloc_for_decode = lambda batch, token_per_req: slots(len(batch.reqs) * token_per_req)
    before = hooked()
    load_plugins()
    refusals = {
        "untold": refused(**UNTOLD),
        "other layers": refused(return_aux_hidden_state_layer_ids=[1]),
        "pipeline": refused(**UNTOLD, pp_size=2),
        "disaggregated": refused(disaggregation_mode="prefill"),
        "second rank": refused(rank=1, tp_size=2),
    }
    replica = tapped(ranks=SpawnRanks(world_rank=0, dp_rank=1), dp_size=2).stethoscope.client
    replica.stop(10.0)
    worker = tapped()
    watch = worker.stethoscope
    story(Engine(worker))
    for kind in ("SPLIT_PREFILL", "TARGET_VERIFY"):
        watch.before(unreadable(Engine(worker), kind))
    counts = watch.client.traffic.counts()
    watch.client.stop(10.0)
    return {
        "before": before,
        "after": hooked(),
        "refusals": refusals,
        "replica": replica.engine_id,
        "rows": worker.model_runner.seen,
        "errors": watch.faults.counts(),
        "tokens": counts.tokens_computed,
        "unseen": {reason.value: tokens for reason, tokens in counts.unseen},
    }


if __name__ == "__main__":
    print(json.dumps(main()))
