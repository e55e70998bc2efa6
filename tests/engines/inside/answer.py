"""Prints ``tokens=`` and, as JSON, those of one greedy answer by vLLM's own ``LLM``: model folder, then the prompt's token ids."""

from __future__ import annotations

import json
import sys

from vllm import LLM, SamplingParams


def main() -> None:
    model, *prompt = sys.argv[1:]
    engine = LLM(model, dtype="float32", max_model_len=1024, max_num_seqs=16, kv_cache_memory_bytes=256 << 20)
    (made,) = engine.generate(
        {"prompt_token_ids": [int(token) for token in prompt]},
        SamplingParams(temperature=0, max_tokens=8),
        use_tqdm=False,
    )
    print(f"tokens={json.dumps(list(made.outputs[0].token_ids))}")


if __name__ == "__main__":  # vLLM's worker is a process of its own, which imports this
    main()
