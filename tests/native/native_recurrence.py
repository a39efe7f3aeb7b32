"""Recurrences as compiled kernels take them: tokens, their parts, and the kernels on them."""

from dataclasses import replace

import torch

from ess_kernels.backends.native import abi, call
from ess_kernels.backends.native.block_parts import Parts, outside_size
from ess_kernels.backends.native.memory import aligned
from ess_kernels.backends.native.nodes import Nodes
from ess_kernels.backends.native.tokens import NativeTokens
from ess_kernels.backends.native.transitions import DIAGONAL, RANK_ONE, ROWS
from ess_kernels.backends.sources import source_of_tokens
from ess_kernels.engine.quadrature import STANDARD
from ess_kernels.operators.structure import Tokens


def some_tokens(kind, length=77, n=13, heads=2, seed=0):
    """Tokens of a kind: "diagonal", "dense", "delta" (rank-one terms without an update) or "rank one"; "before"
    where reads come before the transition."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    if kind.startswith("dense"):
        A = 0.95 * torch.linalg.qr(randn(heads, length, n, n)).Q.contiguous()
    else:
        # what a rank-one term takes away comes on top of the decay
        A = torch.exp((-0.2 if kind.startswith("diagonal") else -0.02) * randn(heads, length, n).abs())
    A[0, length // 2] = 0.0
    tokens = Tokens(randn(heads, length, n), randn(heads, length, n), A, kind.endswith("before"))
    if kind.startswith("delta"):
        key = torch.nn.functional.normalize(randn(heads, length, n), dim=-1)
        return replace(tokens, lookup=A * key, write=randn(heads, length, 1).sigmoid() * key)
    if kind.startswith("rank one"):
        lookup, update = (torch.nn.functional.normalize(randn(heads, length, n), dim=-1) for _ in range(2))
        return replace(tokens, lookup=0.2 * lookup, update=1.5 * update)
    return tokens


class Native:
    """Tokens, their parts, and the kernels on them; parts that are not filled are left to the first answer."""

    def __init__(self, tokens, c, filled=True):
        self.tokens, self.c = tokens, c
        heads, self.length, self.n = tokens.read.shape
        kind = DIAGONAL if tokens.diagonal else RANK_ONE if tokens.rank_one else ROWS
        # no gate is read where transitions are matrices
        plain = replace(tokens, transition=tokens.write) if kind == ROWS else tokens
        self.arguments = NativeTokens(source_of_tokens(plain))
        self.parts = Parts(heads, self.length, self.n, c, kind)
        self.making = abi.RecurrenceParts(self.parts.pointer, self.arguments.pointer)
        if kind == ROWS:
            self.addresses = tokens.transition.data_ptr() + 8 * tokens.transition.stride(0) * torch.arange(heads)
            self.making.transition, self.making.transition_stride = (
                self.addresses.data_ptr(),
                tokens.transition.stride(1),
            )
        self.source = None if filled else self.arguments.pointer
        if filled:
            call.run(self.making)

    def array(self, name, *shape):
        """`[N, B, *shape]`, column-major matrices as they lie in memory."""
        return self.parts.arrays[name].view(len(self.tokens.read), -1, *shape)

    def counts(self, tau, wanted=None, squared=True):
        """Counts, growth and least row `[N, M, L]` for tolerances `[M]`, by squares or from the roots themselves."""
        heads, blocks = len(self.tokens.read), self.parts.structure.blocks
        tau = tau[None, :, None].expand(heads, -1, blocks).contiguous()
        wanted = torch.ones(tau.shape, dtype=torch.bool) if wanted is None else wanted
        out = torch.full((3, heads, tau.shape[1], self.length), torch.nan, dtype=torch.float64)
        pointers = (x.data_ptr() for x in (tau, wanted, *out))
        job = abi.RecurrenceCounts(self.parts.pointer, self.source, self.length, tau.shape[1], *pointers)
        if squared:
            call.run(job)
        else:
            arrays = (self.observe_roots(), *self.outsides())
            call.run(abi.RecurrenceUnsquaredCounts(job, *(x.data_ptr() for x in arrays)))
        return out

    def entropy_sums(self):
        """Sums of log-determinants with the quadrature's weights `[2, N, L]`, errors and units `[2, N, blocks]`."""
        heads, blocks, nodes = len(self.tokens.read), self.parts.structure.blocks, Nodes(STANDARD)
        wanted = torch.ones(heads, blocks, dtype=torch.bool)
        out = torch.full((2, heads, self.length), torch.nan, dtype=torch.float64)
        of_blocks = torch.full((2, heads, blocks), torch.nan, dtype=torch.float64)
        pointers = (x.data_ptr() for x in (wanted, *out, *of_blocks))
        parts, length = self.parts.pointer, self.length
        call.run(abi.RecurrenceEntropy(parts, self.source, length, None, nodes.pointer, *pointers))
        return out, of_blocks

    def outsides(self):
        m, blocks = self.parts.structure.n, len(self.tokens.read) * self.parts.structure.blocks
        return aligned(blocks, outside_size(m, self.c)), torch.zeros(blocks, dtype=torch.bool)

    def observe_roots(self):
        m = self.parts.structure.n
        roots = aligned(len(self.tokens.read), self.parts.structure.blocks, m, m)
        call.run(self.rooting(roots))
        return roots

    def rooting(self, roots):
        return abi.RecurrenceObserveRoots(self.making, roots.data_ptr())
