"""What `analyze` costs: watching a model, a whole hybrid model, and one layer of the size of Llama-3-8B's.

    python bench/capture_speed.py [--quick] [--json FILE]

Weights are random and nothing is downloaded. Ratios are medians of several runs, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ess_kernels as ek


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    report = {
        "threads": torch.get_num_threads(),
        "overhead": overhead(*((2, 64, 64, 3) if options.quick else (12, 256, 512, 15))),
        "hybrid": hybrid(*((3, 64, 64) if options.quick else (12, 256, 512))),
        "layer of Llama-3-8B": large_layer(*((256, 4, 2, 128) if options.quick else (4096, 32, 8, 2048))),
    }
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def overhead(layers: int, width: int, length: int, rounds: int) -> dict[str, Any]:
    """How much longer a forward pass takes while seams watch and nobody measures."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=512,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 500, (1, length))

    def plain() -> None:
        model(input_ids=ids, use_cache=False)

    def watched(*seams: str) -> Callable[[], None]:
        def run() -> None:
            with ek.capture.capturing(model, lambda call: None, shape=(1, length), seams=seams):
                plain()

        return run

    ways = {
        "plain": plain,
        "registry": watched("registry"),
        "torch": watched("torch"),
        "all": watched(*ek.capture.SEAMS),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for name, run in ways.items():
                begin = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(times["plain"][1:], times[name][1:])) - 1, 4)
        for name in ways
        if name != "plain"
    }
    return {"forward pass, ms": round(1e3 * median["plain"], 1), "longer by": ratios}


def hybrid(layers: int, width: int, length: int) -> dict[str, Any]:
    """A model of gated delta rules and attention, every position and both metrics at three tolerances."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        linear_key_head_dim=width // 4,
        linear_value_head_dim=width // 4,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=width,
        shared_expert_intermediate_size=width,
        vocab_size=512,
    )
    model = Qwen3NextForCausalLM(config).eval()
    ids = torch.randint(3, 500, (1, length))
    begin = time.perf_counter()
    found = ek.analyze(model, ids)
    return {
        "layers": len(found.layers),
        "skipped": dict(found.skipped),
        "kinds": sorted({layer.mixer for layer in found.layers.values()}),
        "largest capture_error": max(layer.capture_error for layer in found.layers.values()),
        "seconds": round(time.perf_counter() - begin, 2),
        "seconds of metrics": round(sum(layer.seconds for layer in found.layers.values()), 2),
    }


def large_layer(width: int, heads: int, key_heads: int, length: int) -> dict[str, Any]:
    """One decoder layer in bfloat16, counts at one tolerance at every position, and what 32 of them come to."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=7 * width // 2,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=512,
        dtype=torch.bfloat16,
    )
    model = LlamaModel(config).to(torch.bfloat16).eval()
    ids = torch.randint(3, 500, (1, length))
    taken: dict[str, float] = {}

    def analyze() -> None:
        begin = time.perf_counter()
        found = ek.analyze(model, ids, atol=1e-3, metrics=("tolerance",))
        taken["all"] = time.perf_counter() - begin
        (layer,) = found.layers.values()
        taken["metric"] = layer.seconds
        taken["error"] = layer.capture_error
        taken["mean"] = float(layer.tolerance[1e-3].double().mean())

    with torch.no_grad():
        model(input_ids=ids)
        begin = time.perf_counter()
        model(input_ids=ids)
        forward = time.perf_counter() - begin
    analyze()
    analyze()  # the first call builds what is kept
    return {
        "seconds of metric": round(taken["metric"], 2),
        "seconds of metric and check": round(taken["all"] - forward, 2),
        "forward pass, seconds": round(forward, 2),
        "capture_error": taken["error"],
        "mean count": round(taken["mean"], 1),
        "32 such layers: seconds of metric and check": round(32 * (taken["all"] - forward)),
        "32 such layers: seconds of forward pass": round(32 * forward),
        "peak resident memory, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "of these weights": round(sum(p.numel() for p in model.parameters()) * 2 / 2**30, 2),
    }


if __name__ == "__main__":
    main()
