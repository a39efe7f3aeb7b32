"""The state space with diagonal gates, to which linear attention, GLA, RetNet, Mamba-2 and their kin all lower."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .structure import StateSpace, Tokens


class GatedStateSpace(StateSpace):
    """`T_ij = scale r_i w_j sum_n q_in k_jn exp(g_{j+1,n} + ... + g_{i,n})` for every (batch, head).

    Attributes:
        q, k: `[B, T, G, n]` as the caller gave them: head `h` of `H` reads key head `h // (H // G)`.
        g: natural-log gates `[B, T, H, n]`, often an expanded view (stride 0 where a gate is shared). -inf is allowed.
        scale: folded into the read.
        read_scale, write_scale: `r` and `w` above, `[B, T, H]`, or `None` for ones.

    With `reads_before` row i reads the state before token i enters it: its gates run over `g_{j+1} .. g_{i-1}`, and
    there is no diagonal.
    """

    TENSORS = ("q", "k", "g", "read_scale", "write_scale")
    NUMBERS = ("scale", "reads_before")

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        g: Tensor,
        *,
        scale: float = 1.0,
        read_scale: Tensor | None = None,
        write_scale: Tensor | None = None,
        reads_before: bool = False,
        inputs: Sequence[Tensor] | None = None,
    ):
        batch, length, heads, state_size = g.shape
        inputs = (q, k, g) if inputs is None else inputs
        super().__init__(length, (batch, heads), state_size, inputs, reads_before=reads_before)
        self.q, self.k, self.g = q, k, g
        self.scale = scale
        self.read_scale, self.write_scale = read_scale, write_scale

    def tokens(self, heads: Tensor) -> Tokens:
        batch, head = self.unravel(heads)
        key_head = head // max(self.batch_shape[1] // max(self.q.shape[2], 1), 1)
        read = self.q[batch, :, key_head].double()
        read = read if self.scale == 1 else read * self.scale
        write = self.k[batch, :, key_head].double()
        if self.read_scale is not None:
            read = read * self.read_scale[batch, :, head].double()[..., None]
        if self.write_scale is not None:
            write = write * self.write_scale[batch, :, head].double()[..., None]
        return Tokens(read, write, self.g[batch, :, head].double().exp(), self.reads_before)
