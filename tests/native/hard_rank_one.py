"""Recurrences with rank-one terms that are hard for a substitution, or for whoever divides, by name."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ess_kernels.operators.structure import StateSpace, Tokens

# what `hard_tokens` is to make of each: beta of all tokens (else random in (0, 1)), kind of decay and of keys
HARD = {
    "weak decay": {"decay": "weak"},
    "decay of 1e-9 a token": {"decay": "strong"},
    "gates of -inf": {"decay": "cut"},
    "beta 2": {"beta": 2.0},
    "beta 2, one key": {"beta": 2.0, "keys": "one"},
    "beta 1, one key": {"beta": 1.0, "keys": "one"},
    "beta 1, keys within 1e-3": {"beta": 1.0, "keys": "close"},
    "beta 1.9, keys within 1e-3": {"beta": 1.9, "keys": "close"},
    "beta 0": {"beta": 0.0},
}


def hard_tokens(name: str, heads: int = 2, length: int = 77, n: int = 13, updates: bool = False) -> Tokens:
    """Delta rules: what a token takes away is what it writes, given as updates as well or left to `update=None`."""
    options = {"beta": None, "decay": "none", "keys": "random"} | HARD[name]
    generator = torch.Generator().manual_seed(list(HARD).index(name))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    read, key = randn(heads, length, n), randn(heads, length, n)
    if options["keys"] != "random":
        key = key[:, :1] + (1e-3 if options["keys"] == "close" else 0.0) * key
    read, key = (torch.nn.functional.normalize(x, dim=-1) for x in (read, key))
    uniform = torch.rand(heads, length, n, dtype=torch.float64, generator=generator)
    decay = {
        "none": torch.ones_like(uniform),
        "weak": torch.exp(-0.05 * uniform),
        "strong": torch.exp(-40 * uniform),
        "cut": torch.exp(-0.02 * uniform).masked_fill(uniform < 0.1, 0.0),
    }[options["decay"]]
    beta = randn(heads, length, 1).sigmoid() if options["beta"] is None else options["beta"]
    tokens = Tokens(read, beta * key, decay, False, lookup=decay * key)
    return replace(tokens, update=-tokens.write) if updates else tokens


class RankOne(StateSpace):
    """An operator of ready-made tokens with rank-one terms."""

    def __init__(self, tokens: Tokens):
        heads, length, n = tokens.read.shape
        given = tokens.tensors
        super().__init__(length, (heads,), n, given, reads_before=tokens.reads_before, rank_one=True)
        self.given = tokens

    def tokens(self, heads: Tensor) -> Tokens:
        return self.given.map(lambda x: x[heads])
