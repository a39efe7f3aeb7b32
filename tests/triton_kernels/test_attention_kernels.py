"""Attention's tiles and thin products by kernels, against the operator's own rows in float64."""

from __future__ import annotations

import pytest
import torch
from covering import covering
from torch import Tensor

from ess_kernels import operators as ops
from ess_kernels.engine.thin_products import Bands
from ess_kernels.operators.attention import Attention

pytest.importorskip("triton")

from ess_kernels.backends.triton.attention import products as product_kernels
from ess_kernels.backends.triton.attention import softmax as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INF = float("inf")


def build(
    length: int = 33,
    size: int = 5,
    heads: int = 2,
    groups: int = 2,
    batch: int = 1,
    dtype: torch.dtype = torch.float64,
    sharpness: float = 1.0,
    **options: object,
) -> Attention:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, length, size, generator=generator, dtype=torch.float64)
    k = torch.randn(batch, groups, length, size, generator=generator, dtype=torch.float64)
    options = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in options.items()}
    return ops.attention((sharpness * q).to(dtype).to(DEVICE), k.to(dtype).to(DEVICE), **options)


def additive(*shape: int) -> Tensor:
    """With -inf here and there, and whole rows of it."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.randn(*shape, generator=generator, dtype=torch.float64)
    mask = mask.masked_fill(torch.rand(*shape, generator=generator) < 0.2, -INF)
    mask[..., shape[-2] // 3 : shape[-2] // 3 + 2, :] = -INF
    return mask


def keep(*shape: int) -> Tensor:
    return additive(*shape).isfinite()


CASES = {
    "plain": lambda: build(),
    "length 70, size 16": lambda: build(70, 16),
    "length 64, size 40": lambda: build(64, 40),
    "length 1": lambda: build(1),
    "length 2": lambda: build(2),
    "size 1": lambda: build(size=1),
    "one head": lambda: build(heads=1, groups=1),
    "grouped queries": lambda: build(heads=6, groups=2, batch=2),
    "one key head": lambda: build(heads=3, groups=1),
    "float16": lambda: build(size=16, dtype=torch.float16),
    "bfloat16": lambda: build(70, 40, dtype=torch.bfloat16),
    "float32": lambda: build(70, 40, dtype=torch.float32),
    "sharp": lambda: build(sharpness=30.0),
    "logits beyond exp": lambda: build(40, sharpness=3000.0),
    "scale": lambda: build(scale=-0.3),
    "window": lambda: build(70, window_size=9),
    "window of one": lambda: build(window_size=1),
    "wide window": lambda: build(70, window_size=69),
    "softcap": lambda: build(sharpness=10.0, softcap=1.5),
    "sinks": lambda: build(sinks=torch.tensor([-1.0, 40.0])),
    "bool mask": lambda: build(attn_mask=keep(33, 33)),
    "bool mask of every head": lambda: build(batch=2, attn_mask=keep(1, 2, 33, 33)),
    "mask of keys": lambda: build(batch=2, attn_mask=keep(2, 1, 1, 33)),
    "additive mask": lambda: build(batch=2, attn_mask=additive(2, 2, 33, 33)),
    "additive mask of rows": lambda: build(attn_mask=additive(33, 1)),
    "additive mask, bfloat16": lambda: build(70, attn_mask=additive(70, 70).bfloat16()),
    "additive mask, transposed": lambda: build(attn_mask=additive(33, 33).T.contiguous().T),
    "mask of huge finite numbers": lambda: build(
        attn_mask=torch.where(keep(33, 33), 0.0, torch.finfo(torch.float32).min).double()
    ),
    "everything": lambda: build(
        70, 40, heads=4, dtype=torch.bfloat16, window_size=31, softcap=2.0, sinks=torch.randn(4), attn_mask=keep(70, 70)
    ),
    "queries with strides": lambda: ops.attention(
        torch.randn(1, 33, 2, 6, dtype=torch.float64, device=DEVICE).transpose(1, 2),
        torch.randn(1, 2, 6, 33, dtype=torch.float64, device=DEVICE).mT,
    ),
    "identical keys": lambda: ops.attention(
        torch.randn(1, 2, 33, 6, dtype=torch.float64, device=DEVICE),
        torch.randn(1, 2, 1, 6, dtype=torch.float64, device=DEVICE).expand(1, 2, 33, 6),
    ),
}


@pytest.fixture(params=CASES)
def op(request: pytest.FixtureRequest) -> Attention:
    return CASES[request.param]()


def test_tiles_are_the_rows(op: Attention):
    heads = op.all_heads()
    expected = op.rows(heads, 0, op.length)
    T = kernels.tiles(op, heads)
    torch.testing.assert_close(T, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(T == 0, expected == 0)
    assert torch.equal(kernels.tiles(op, heads[1:])[:1], T[1:2])


def test_row_sums(op: Attention):
    heads = op.all_heads()
    every = slice(0, op.length)
    z = op.logits(heads, every, every)
    if op.sinks is not None:
        sinks = op.sinks.double()[op.unravel(heads)[1]]
        z = torch.cat([z, sinks[:, None, None].expand(-1, op.length, 1)], -1)
    sums = kernels.row_sums(op, heads)
    expected = z.logsumexp(-1)
    torch.testing.assert_close(sums.log_sum_exp, torch.where(expected == -INF, INF, expected), rtol=1e-13, atol=1e-13)


@covering(op=list(CASES), transposed=[False, True], indirect=["op"])
def test_products(op: Attention, transposed: bool):
    if op.length < 2:
        return
    heads, L = op.all_heads(), op.length
    positions = torch.tensor(sorted({1, L // 2, L - 1}), device=DEVICE)
    X = torch.randn(len(heads), len(positions), L, 3, dtype=torch.float64, device=DEVICE)
    expected = Bands(op, heads, 2**30)(positions, X, transposed)
    Y = product_kernels.thin_product(op, heads, positions, X, transposed)
    torch.testing.assert_close(Y, expected, rtol=1e-12, atol=1e-13)
    assert not ((Y != 0) & (expected == 0)).any()


@covering(
    each=2, columns=[1, 16, 17, 64, 70, 130], transposed=[False, True], mask={"plain": None, "mask": keep(33, 33)}
)
def test_any_number_of_columns(columns: int, transposed: bool, mask: Tensor | None):
    op = build(size=8, window_size=20, attn_mask=mask)
    heads, positions = op.all_heads()[1:], torch.tensor([20], device=DEVICE)
    X = torch.randn(1, 1, 33, columns, dtype=torch.float64, device=DEVICE)
    Y = product_kernels.thin_product(op, heads, positions, X, transposed)
    torch.testing.assert_close(Y, Bands(op, heads, 2**30)(positions, X, transposed), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("transposed", [False, True])
def test_tokens_on_the_other_side_are_not_read(transposed: bool):
    op = build(40)
    heads, positions = op.all_heads(), torch.tensor([7, 30], device=DEVICE)
    X = torch.randn(2, 2, 40, 4, dtype=torch.float64, device=DEVICE)
    after = (torch.arange(40, device=DEVICE) >= positions[:, None])[..., None]
    spoilt = X.masked_fill(after != transposed, torch.nan)
    products = [product_kernels.thin_product(op, heads, positions, x, transposed) for x in (X, spoilt)]
    assert torch.equal(*products)


def test_the_same_twice():
    op = build(70, 16)
    X = torch.randn(2, 1, 70, 16, dtype=torch.float64, device=DEVICE)
    heads, positions = op.all_heads(), torch.tensor([31], device=DEVICE)
    assert torch.equal(*(product_kernels.thin_product(op, heads, positions, X, True) for _ in range(2)))


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_more_entries_than_int32_counts(masked: bool):
    L, heads = 16640, 8
    assert heads * L * L > 2**31
    generator = torch.Generator("cuda").manual_seed(0)
    q, k = (torch.randn(1, heads, L, 16, device="cuda", generator=generator) for _ in range(2))
    mask = torch.rand(1, heads, L, L, device="cuda", generator=generator) < 0.9 if masked else None
    op = ops.attention(q, k, attn_mask=mask)
    last = torch.tensor([heads - 1], device="cuda")
    expected = op.rows(last, L - 100, L)
    T = kernels.tiles(op, op.all_heads())
    torch.testing.assert_close(T[-1:, -100:], expected, rtol=1e-12, atol=1e-14)
    del T
    i = L // 2 + 1
    X = torch.randn(1, 1, L, 64, dtype=torch.float64, device="cuda", generator=generator)
    Y = product_kernels.thin_product(op, last, torch.tensor([i], device="cuda"), X, False)
    torch.testing.assert_close(Y[0, 0, -100:], (expected[0, :, :i] @ X[0, 0, :i]), rtol=1e-11, atol=1e-12)
    # more numbers in X than int32 counts
    P = 2**31 // (heads * L * 64) + 1
    X = X.expand(heads, P, L, 64).contiguous()
    last = product_kernels.thin_product(op, op.all_heads(), torch.full((P,), i, device="cuda"), X, False)[-1, -1]
    torch.testing.assert_close(last, Y[0, 0], rtol=0, atol=0)
