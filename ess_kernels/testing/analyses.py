"""Results of a made-up model, for tests of tables, files and pictures: real operators of random tensors, measured."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from ess_kernels import operators
from ess_kernels._version import __version__
from ess_kernels.analysis.measure import fields_of, measure
from ess_kernels.analysis.result import Analysis, LayerResult
from ess_kernels.operators.structure import Operator

TOLERANCES = (1e-1, 1e-3, 1e-5)
KEY_SIZE = 8


def an_operator(
    mixer: str, batch: int, heads: int, length: int, mask: Tensor | None, generator: torch.Generator
) -> Operator:
    """An operator `[B, H]` of random tensors: `"gated_linear_attention"`, `"attention"` or `"linear_attention"`."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if mixer == "attention":
        shape = (batch, heads, length, KEY_SIZE)
        return operators.attention(random(*shape), random(*shape), attention_mask=mask)
    shape = (batch, length, heads, KEY_SIZE)
    if mixer == "linear_attention":
        return operators.linear_attention(random(*shape), random(*shape), attention_mask=mask)
    gates = torch.nn.functional.logsigmoid(random(*shape) + 1)
    return operators.gla(random(*shape), random(*shape), gates, attention_mask=mask)


def an_analysis(
    layers: int = 4, batch: int = 2, heads: int = 2, length: int = 24, seed: int = 0, padding: int = 0
) -> Analysis:
    """What `analyze` would return for a model of gated linear attention, attention and linear attention in turn.

    Args:
        layers, batch, heads, length: how many; a state of linear attention has 8 numbers.
        seed: of the random tensors.
        padding: how many tokens of padding the last row has at its left; 0: none.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = None
    if padding:
        mask = torch.ones(batch, length, dtype=torch.bool)
        mask[-1, :padding] = False
    found = {}
    kinds = ("gated_linear_attention", "attention", "linear_attention")
    for number in range(layers):
        mixer = kinds[number % len(kinds)]
        op = an_operator(mixer, batch, heads, length, mask, generator)
        measured = measure(op, atol=TOLERANCES)
        name = f"model.layers.{number}.mixer"
        found[name] = LayerResult(
            name=name,
            mixer=mixer,
            route="registry" if mixer == "attention" else "global",
            state_size=op.state_size,
            length=length,
            capture_error=3e-7,
            check="attribution only" if mixer == "attention" else "independent",
            dtype="float32",
            **fields_of(measured),
        )
    return Analysis(
        layers=found,
        skipped={"model.encoder": "cross-attention: its keys have another length than its queries"},
        model="MadeUpForCausalLM",
        tolerances=TOLERANCES,
        tokens=[[f" w{token}" for token in range(length)] for _ in range(batch)],
        notes=("dropout was switched off",),
        versions={"ess_kernels": __version__, "torch": torch.__version__, "python": platform.python_version()},
        seconds=sum(layer.seconds for layer in found.values()),
    )
