"""The state space of all delta rules: diagonal transitions with one rank-one term a token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .structure import StateSpace, Tokens


class RankOneStateSpace(StateSpace):
    """`s_t = d_t * s_{t-1} + b_t (a_t . s_{t-1}) + w_t u_t`, `y_t = scale q_t . s_t`, with `d_t = exp(g_t)`.

    Every tensor but the gates has `G` groups: head `h` of `H` reads group `h // (H // G)`.

    Attributes:
        q, k: reads and writes `[B, T, G, n]` as the caller gave them; `w` is `write_scale * k`.
        g: natural-log gates `[B, T, H, n]`, often an expanded view (stride 0 where a gate is shared). -inf is allowed.
        lookup: `[B, T, G, n]`; None means `k`. With `looks_up_decayed` the token looks up what its own decay has left
            of the state, so that `a = d * lookup`, as delta rules do; without it `a` is the lookup itself.
        update: `b`, `[B, T, G, n]`; None means `-w`: the token replaces what it looked up.
        write_scale: `[B, T, H]`, or None for ones.
        scale: folded into the read.
    """

    TENSORS = ("q", "k", "g", "lookup", "update", "write_scale")
    NUMBERS = ("scale", "looks_up_decayed")

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        g: Tensor,
        *,
        lookup: Tensor | None = None,
        update: Tensor | None = None,
        write_scale: Tensor | None = None,
        scale: float = 1.0,
        looks_up_decayed: bool = True,
        inputs: Sequence[Tensor] | None = None,
    ):
        batch, length, heads, state_size = g.shape
        if inputs is None:
            inputs = [x for x in (q, k, g, lookup, update, write_scale) if x is not None]
        super().__init__(length, (batch, heads), state_size, inputs, rank_one=True)
        self.q, self.k, self.g = q, k, g
        self.lookup, self.update = lookup, update
        self.write_scale = write_scale
        self.scale, self.looks_up_decayed = scale, looks_up_decayed

    def tokens(self, heads: Tensor) -> Tokens:
        batch, head = self.unravel(heads)

        def of_heads(x: Tensor) -> Tensor:
            group = head // max(self.batch_shape[1] // max(x.shape[2], 1), 1)
            return x[batch, :, group].double()

        read, key, decay = of_heads(self.q) * self.scale, of_heads(self.k), of_heads(self.g).exp()
        write = key if self.write_scale is None else key * of_heads(self.write_scale)[..., None]
        lookup = key if self.lookup is None else of_heads(self.lookup)
        if self.looks_up_decayed:
            lookup = lookup * decay
        update = None if self.update is None else of_heads(self.update)
        return Tokens(read, write, decay, self.reads_before, lookup, update)
