"""What an attack on the newer families found: sums that overflow on the way to a number that does not."""

import torch

import ess_kernels as ek
from ess_kernels.testing import assert_close


def test_means_of_large_keys_do_not_overflow():
    """The sum of a block of keys was beyond float64, its score -inf, and its weight 0; nothing was flagged."""
    factors = torch.tensor([1, 1, 1, 1, 1, 0.3, 0.1, 2.0]).double()
    q = -1e-308 * factors[None, :, None, None]
    k = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
    k[:, 2:4] = 1.7e308
    one, blocks = torch.ones(1, 8, 1).double(), torch.zeros(1, 8, 1, 1, dtype=torch.int64)

    def op(q, k):
        gates = {"g_cmp": one, "g_slc": 0 * one, "g_swa": None}
        return ek.operators.nsa(q, k, **gates, block_indices=blocks, block_size=2, window_size=0, scale=1.0)

    assert_close("T", op(q, k).dense(), op(q * 2.0**600, k * 2.0**-600).dense())


def test_a_block_larger_than_every_sequence():
    """Room for all of its tokens was asked for, 400 GB."""
    q, k = torch.randn(2, 1, 6, 1, 4).double()
    gates = {"g_cmp": None, "g_slc": None, "g_swa": None}
    chosen = torch.zeros(1, 6, 1, 1, dtype=torch.int64)
    op = ek.operators.nsa(q, k, **gates, block_indices=chosen, block_size=2**31, window_size=0)
    wanted = ek.operators.attention(q.transpose(1, 2), k.transpose(1, 2))
    assert_close("T", op.dense(), wanted.dense())


def test_gates_of_path_attention_are_scaled_before_they_are_added():
    """A sum that overflowed to -inf was taken for a closed gate."""
    q, k, w = (torch.full((1, 8, 1, 1), x, dtype=torch.float64) for x in (0.0, 1.0, 0.0))
    g = -1.2e308 * torch.tensor([1, 0.9, 0.7, 1, 0.2, 0.8, 1, 0.6]).double()[None, :, None]
    beta = 0 * g
    large = ek.operators.path_attention(q, k, w=w, beta=beta, g=g, scale=1e-308)
    small = ek.operators.path_attention(q, k, w=w, beta=beta, g=g * 2.0**-600, scale=1e-308 * 2.0**600)
    assert_close("T", large.dense(), small.dense())


def test_a_mask_of_columns_alone_is_cut_as_well():
    x = torch.randn(1, 2, 12, 4).double()
    mask = torch.arange(12) % 3 > 0
    cut = torch.tensor([0, 5, 12])
    packed = ek.operators.attention(x, x, attn_mask=mask, cu_seqlens=cut).dense()
    for start, stop in ((0, 5), (5, 12)):
        own = ek.operators.attention(x[:, :, start:stop], x[:, :, start:stop], attn_mask=mask[start:stop])
        assert_close("T", packed[..., start:stop, start:stop], own.dense())
