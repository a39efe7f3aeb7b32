"""The state space with diagonal gates, to which linear attention, GLA, RetNet, Mamba-2 and their kin all lower."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .structure import StateSpace, Tokens


class GatedStateSpace(StateSpace):
    """`T_ij = scale r_i w_j sum_n q_in k_jn exp(g_{j+1,n} + ... + g_{i,n})` for every (batch, head).

    Attributes:
        q, k: `[B, T, G, n]` as the caller gave them, each with a G of its own: head `h` of `H` reads key head
            `h // (H // G)`.
        g: natural-log gates `[B, T, H, n]`, often an expanded view (stride 0 where a gate is shared). -inf is allowed.
        scale: folded into the read.
        read_scale, write_scale: `r` and `w` above, `[B, T, H]`, or `None` for ones.
        diagonal_entries: `T_ii` where it is another number than reads and writes would make, float64 `[B, T, H]`. No
            `H_i` contains it: `dense` shows it, nothing else reads it, and bad data in it mark no head.
        turned: whether the transitions turn as well, and `q` and `k` hold that: the gates are their moduli only.

    With `reads_before` row i reads the state before token i enters it: its gates run over `g_{j+1} .. g_{i-1}`, and
    there is no diagonal but `diagonal_entries`.
    """

    TENSORS = ("q", "k", "g", "read_scale", "write_scale", "diagonal_entries")
    NUMBERS = ("scale", "reads_before", "turned")

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        g: Tensor,
        *,
        scale: float = 1.0,
        read_scale: Tensor | None = None,
        write_scale: Tensor | None = None,
        diagonal_entries: Tensor | None = None,
        reads_before: bool = False,
        turned: bool = False,
        inputs: Sequence[Tensor] | None = None,
    ):
        batch, length, heads, state_size = g.shape
        inputs = (q, k, g) if inputs is None else inputs
        super().__init__(length, (batch, heads), state_size, inputs, reads_before=reads_before)
        self.q, self.k, self.g = q, k, g
        self.scale = scale
        self.turned = turned
        self.read_scale, self.write_scale = read_scale, write_scale
        self.diagonal_entries = diagonal_entries

    def tokens(self, heads: Tensor) -> Tokens:
        batch, head = self.unravel(heads)

        def of_key_head(x: Tensor) -> Tensor:
            key_head = head // max(self.batch_shape[1] // max(x.shape[2], 1), 1)
            return x[batch, :, key_head].double()

        read, write = of_key_head(self.q), of_key_head(self.k)
        read = read if self.scale == 1 else read * self.scale
        if self.read_scale is not None:
            read = read * self.read_scale[batch, :, head].double()[..., None]
        if self.write_scale is not None:
            write = write * self.write_scale[batch, :, head].double()[..., None]
        return Tokens(read, write, self.g[batch, :, head].double().exp(), self.reads_before)

    def own_diagonal(self, heads: Tensor) -> Tensor | None:
        if self.diagonal_entries is None:
            return None
        batch, head = self.unravel(heads)
        return self.diagonal_entries[batch, :, head]
