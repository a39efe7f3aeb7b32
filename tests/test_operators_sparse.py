"""Attention over a tree of buckets and over chosen blocks."""

import pytest
import torch
from loops import gates, randn
from rows import decays, repeated, row_by_row, softmax, tokens_first, windowed

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


class TestLogLinearAttention(OperatorTestCase):
    constructor = staticmethod(operators.log_linear_attention)
    lengths = (9, 12, 16)
    state_size = 3 * 4
    allows_minus_inf = ("g",)
    scales = ("q", "k", "level_scales")
    other_sizes = ("level_scales",)

    def make_inputs(self, length):
        inputs = {name: randn(2, length, 2, 3) for name in "qk"}
        levels = 1 + max(4, (length - 1).bit_length())
        return {**inputs, "g": gates(2, length, 4), "level_scales": randn(2, length, 4, levels)}

    def dense(self, q, k, g, level_scales):
        q, k = repeated(q, 4), repeated(k, 4)

        def row(b, h, i):
            # buckets of a Fenwick tree: the lowest bit of what is left, from the token back
            scale, stop, entries = {}, i, [level_scales[b, i, h, 0]]
            while stop:
                size = stop & -stop
                scale |= dict.fromkeys(range(stop - size, stop), level_scales[b, i, h, size.bit_length()])
                stop -= size
            entries = torch.stack([scale[j] for j in range(i)] + entries)
            return entries * (k[b, : i + 1, h] @ q[b, i, h]) * decays(g[b, :, h], i).exp()

        return row_by_row((2, 4), q.shape[1], row)

    def upstream(self, v, q, k, g, level_scales):
        return upstream_function("fla.ops.log_linear_attn.naive", "naive_log_linear_attn")(q, k, v, g, level_scales)

    def test_counts_know_the_state_size(self):
        """Rounding errors of T have any rank; a count at tolerance 0 does not."""
        inputs = self.inputs(16)
        wide = {
            name: torch.cat([x] * 6, 1) if name != "level_scales" else randn(2, 96, 4, 8) for name, x in inputs.items()
        }
        op = operators.log_linear_attention(**wide)
        assert op.state_size == 3 * 7
        i = torch.arange(1, 96)
        buckets = torch.tensor([3 * bin(n).count("1") for n in i.tolist()])
        counts = ek.tolerance_ess(op, rtol=1e-9)
        assert (counts <= torch.minimum(buckets, torch.minimum(i, 96 - i))).all()
        assert (ek.tolerance_ess(op, 0.0) <= op.rank_cap(i)).all()

    def test_too_few_levels(self):
        inputs = self.inputs(9)
        with pytest.raises(ValueError, match=r"^level_scales: expected at least 5 levels for 9 tokens, got 4"):
            operators.log_linear_attention(**{**inputs, "level_scales": inputs["level_scales"][..., :4]})


def some_blocks(k):
    """Three choices of each key head, alike in every row: none, one after most rows, one named twice."""
    choices = torch.tensor([[-1, 1, 3], [0, 2, 0]])
    return choices[torch.arange(k.shape[2]) % 2].expand(*k.shape[:2], -1, -1)


def sparse(q, k, *, g_cmp, g_slc, g_swa, cu_seqlens=None, attention_mask=None):
    return operators.nsa(
        q,
        k,
        g_cmp=g_cmp,
        g_slc=g_slc,
        g_swa=g_swa,
        block_indices=some_blocks(k),
        block_size=3,
        window_size=4,
        cu_seqlens=cu_seqlens,
        attention_mask=attention_mask,
    )


class TestNSA(OperatorTestCase):
    """Upstream's reference function needs a GPU; the second form is a loop over rows and blocks."""

    constructor = staticmethod(sparse)
    state_size = None

    def make_inputs(self, length):
        more = {name: torch.sigmoid(randn(2, length, 4)) for name in ("g_cmp", "g_slc", "g_swa")}
        return {**tokens_first(length), **more}

    def dense(self, q, k, g_cmp, g_slc, g_swa):
        length = q.shape[1]
        indices, keys = some_blocks(k), repeated(k, 4)

        def row(b, h, i):
            weights = torch.zeros(i + 1).double()
            query = q[b, i, h] / 3**0.5
            complete = (i + 1) // 3
            if complete:
                means = torch.stack([keys[b, 3 * c : 3 * c + 3, h].mean(0) for c in range(complete)])
                for c, weight in enumerate(softmax(means @ query)):
                    weights[3 * c : 3 * c + 3] += g_cmp[b, i, h] * weight / 3
            chosen = [3 * c + t for c in indices[b, i, h // 2].tolist() if c >= 0 for t in range(3) if 3 * c + t <= i]
            if chosen:
                shares = softmax(keys[b, chosen, h] @ query)
                for j, weight in zip(chosen, shares):
                    weights[j] += g_slc[b, i, h] * weight
            weights += g_swa[b, i, h] * softmax(windowed(keys[b, : i + 1, h] @ query, 4))
            return weights

        return row_by_row((2, 4), length, row)

    def test_the_chosen_blocks_alone_are_upstream(self):
        """What of upstream's function runs on a CPU, where every row sees something of its choice."""
        naive = upstream_function("fla.ops.nsa.naive", "naive_nsa_selection")
        q, k = tokens_first(9).values()
        indices = torch.randint(-1, 4, (2, 9, 2, 3))
        indices[..., 0] = torch.arange(9)[:, None] // 3
        op = operators.nsa(q, k, g_cmp=None, g_slc=None, g_swa=None, block_indices=indices, block_size=3, window_size=0)
        one_hot = torch.eye(9).double()[None, :, None].expand(2, 9, 4, 9)
        found = naive(q, repeated(k, 4), one_hot, repeated(indices, 4), 3, 3**-0.5)
        assert_close("T", op.dense(), found.transpose(1, 2), 1e-12)

    @pytest.mark.parametrize(
        "change, error, match",
        [
            ({"block_indices": torch.zeros(2, 9, 2, 3)}, TypeError, r"^block_indices: expected an int32 .*float32"),
            ({"block_indices": torch.zeros(2, 9, 4, 3).long()}, ValueError, r"^block_indices: .*\[2, 9, 4, 3\]"),
            ({"block_size": 0}, ValueError, "^block_size"),
            ({"window_size": (3, 0)}, TypeError, "^window_size"),
            ({"g_swa": None}, ValueError, "^g_swa: expected a tensor"),
        ],
    )
    def test_bad_input(self, change, error, match):
        inputs = {**self.inputs(9), "block_indices": torch.zeros(2, 9, 2, 3).long(), "block_size": 3, "window_size": 4}
        with pytest.raises(error, match=match):
            operators.nsa(**{**inputs, **change})
