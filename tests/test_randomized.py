"""Randomized counts: never too large, exact where certified, with an error that bounds what the sketch does not see."""

from __future__ import annotations

import math

import pytest
import torch
from covering import covering
from torch import Tensor

from ess_kernels import operators as ops
from ess_kernels.engine.sketch import cholesky_qr, draw, householder, orthonormal
from ess_kernels.engine.thin_products import Bands, Blockwise, Stored, thin_products
from ess_kernels.operators import Operator
from ess_kernels.operators.structure import StateSpace
from ess_kernels.randomized import RandomizedESS, randomized_ess
from ess_kernels.testing.cases import build, corner, low_rank, names, orthogonal, powers, randn, truth

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# pairs
ATOL = [1e-3, 1e-1, 0.0, 0.0, 0.0, 0.0]
RTOL = [0.0, 0.0, 0.3, 1e-2, 1e-5, 1e-9]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def true_counts(values: Tensor, atol: list[float], rtol: list[float]) -> Tensor:
    """`[M, ...]` from singular values `[..., S]`."""
    pairs = [(values > torch.clamp(r * values[..., :1], min=a)).sum(-1) for a, r in zip(atol, rtol, strict=True)]
    return torch.stack(pairs)


@covering(name=names(), rank=[6, 40])
def test_counts_of_every_operator(name: str, rank: int):
    op, values = build(name), truth(name).values
    if op.length < 2:
        assert randomized_ess(op, None).count.shape == (*op.batch_shape, 0)
        return
    expected = true_counts(values, ATOL, RTOL)
    found = randomized_ess(op, None, atol=ATOL, rtol=RTOL, rank=rank)
    count, certified, error = (x.flatten(1, -2) if len(op.batch_shape) else x[:, None] for x in found)
    assert (count >= 0).all()
    assert (count <= expected).all()
    assert (count == expected)[certified].all()
    unseen = values[..., rank] if values.shape[-1] > rank else torch.zeros_like(values[..., 0])
    assert (error >= unseen).all()


@pytest.mark.parametrize(
    "name", ["attention: sharp", "gla: decay", "convolution: falling", "recurrence: dense", "dense: rank 16 plus noise"]
)
def test_the_error_bounds_the_residual(name: str):
    op, rank, q = build(name), 5, 1
    test, _ = draw(op.length, rank, 5, torch.device("cpu"))
    T = op.dense_heads(op.all_heads())
    for i in (op.length // 3, op.length // 2):
        H = T[:, i:, :i]
        Q = torch.linalg.qr(H @ test[:i]).Q
        for _ in range(q):
            Q = torch.linalg.qr(H @ torch.linalg.qr(H.mT @ Q).Q).Q
        residual = torch.linalg.matrix_norm(H - Q @ (Q.mT @ H), ord=2)
        error = randomized_ess(op, [i], rank=rank, power_iterations=q, seed=5).error.flatten()
        assert (error >= residual).all()
        # by no more than the factor of the probes and the root of a rank
        assert (error <= 50 * residual).all()


@pytest.mark.parametrize("noise", [1e-2, 1e-5, 1e-8, 1e-11])
def test_low_rank_and_noise(noise: float):
    op = ops.dense(torch.stack([low_rank(80, 5, noise), low_rank(80, 11, noise)]))
    T = op.dense()
    positions = [25, 40, 50]
    atol = [300 * noise, 1e-3 * noise]
    found = randomized_ess(op, positions, atol=atol, rank=15)
    values = torch.stack([torch.linalg.svdvals(T[:, i:, :i])[:, :16] for i in positions], 1)
    assert found.certified[0].all()
    assert torch.equal(found.count[0], (values > 300 * noise).sum(-1))
    assert torch.equal(found.count[0], torch.tensor([[5], [11]]).expand(2, 3))
    # all sixteen and more are above the second
    assert not found.certified[1].any()
    assert (found.count[1] <= 15).all()


def test_a_known_spectrum():
    values = torch.tensor([4.0, 3.0, 2.0, 2.0, 1.0, 0.5, 0.25] + [1e-6] * 23, dtype=torch.float64)
    op = ops.dense(corner(values))
    atol = [3.5, 2.5, 2.0, 1.5, 0.3, 1e-3, 1e-7, 5.0, math.inf]
    count, certified, error = randomized_ess(op, [30], atol=atol, rank=10)
    assert count[:, 0].tolist() == [1, 2, 2, 4, 6, 7, 10, 0, 0]
    # on a value there is no certainty, nor where the sketch is too small
    assert certified[:, 0].tolist() == [True, True, False, True, True, True, False, True, True]
    assert (error >= 1e-6).all() and (error <= 1e-4).all()
    # now it is large enough
    count, certified, error = randomized_ess(op, [30], atol=1e-7, rank=30)
    assert (count == 30).all() and certified.all() and (error <= 1e-11).all()


def test_nothing_beyond_the_cap_needs_to_be_seen():
    op = ops.dense(torch.stack([orthogonal(40), 1e-3 * orthogonal(40)]))
    found = randomized_ess(op, [1, 5, 36, 39], atol=1e-9, rank=5)
    assert found.certified.all()
    assert torch.equal(found.count, torch.tensor([1, 5, 4, 1]).expand(2, 4))


@pytest.mark.parametrize("scale", [1e-290, 1e-160, 1.0, 1e160, 1e290])
def test_any_magnitude(scale: float):
    op = ops.dense(scale * low_rank(60, 4, 1e-6))
    count, certified, error = randomized_ess(op, [20, 30], atol=1e-3 * scale, rank=8)
    assert (count == 4).all() and certified.all()
    assert ((error > 1e-7 * scale) & (error < 1e-3 * scale)).all()


def test_zero():
    found = randomized_ess(torch.zeros(2, 20, 20), None, atol=[0.0, 1e-3, 0.0], rtol=[0.0, 0.0, math.inf])
    assert found.count.shape == (3, 2, 19)
    assert (found.count == 0).all() and found.certified.all() and (found.error == 0).all()


def test_shapes_order_and_repeats():
    op = build("gla: decay")
    positions = [40, 7, 40, 13]
    one, listed = randomized_ess(op, positions, atol=1e-2), randomized_ess(op, positions, atol=[1e-2])
    assert isinstance(one, RandomizedESS)
    assert [x.dtype for x in one] == [torch.int64, torch.bool, torch.float64]
    for a, b in zip(one, listed, strict=True):
        assert a.shape == (*op.batch_shape, 4) and torch.equal(a[None], b)
        assert torch.equal(a[..., 0], a[..., 2])
    alone = randomized_ess(op, torch.tensor([13]), atol=1e-2)
    torch.testing.assert_close(alone.error[..., 0], one.error[..., 3], rtol=1e-6, atol=1e-13)
    assert torch.equal(alone.count[..., 0], one.count[..., 3])
    default, same = randomized_ess(op, positions), randomized_ess(op, positions, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(default, same, strict=True))
    assert randomized_ess(op, []).count.shape == (*op.batch_shape, 0)
    assert randomized_ess(randn(0, 9, 9), [3], atol=[1.0, 2.0]).count.shape == (2, 0, 1)


def test_seeds():
    op = build("attention: plain")
    a, b, c = (randomized_ess(op, [30, 35], rank=6, seed=seed).error for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("budget", ["1", "300K"])
@pytest.mark.parametrize("name", ["attention: window", "gla: decay", "recurrence: dense", "convolution: noise"])
def test_a_small_budget_changes_nothing(name: str, budget: str, monkeypatch: pytest.MonkeyPatch):
    op = build(name)
    positions = range(1, op.length, 7)
    before = randomized_ess(op, positions, atol=[1e-2, 0.3], rank=10)
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", budget)
    after = randomized_ess(op, positions, atol=[1e-2, 0.3], rank=10)
    assert torch.equal(before.count, after.count) and torch.equal(before.certified, after.certified)
    torch.testing.assert_close(before.error, after.error, rtol=1e-5, atol=1e-13)


def test_bad_data_stays_with_its_head():
    q, k = randn(2, 2, 30, 4), randn(2, 2, 30, 4)
    clean = randomized_ess(ops.attention(q, k), [10, 15], atol=[1e-3, 1e-1])
    k[1, 0, 29, 2] = torch.nan
    found = randomized_ess(ops.attention(q, k), [10, 15], atol=[1e-3, 1e-1])
    bad = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    bad[:, 1, 0] = True
    assert (found.count[bad] == -1).all() and not found.certified[bad].any() and found.error[bad].isnan().all()
    for a, b in zip(found, clean, strict=True):
        assert torch.equal(a[~bad], b[~bad])


def test_inputs_that_require_grad():
    q = randn(1, 1, 20, 4).requires_grad_()
    found = randomized_ess(ops.attention(q, randn(1, 1, 20, 4)), [10], rank=4)
    assert not any(x.requires_grad for x in found)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"positions": [0]}, ValueError, r"positions: .*1\.\.11.*got 0"),
        ({"positions": [12]}, ValueError, "got 12"),
        ({"positions": [True]}, ValueError, "got True"),
        ({"positions": 3}, TypeError, "positions"),
        ({"atol": -1.0}, ValueError, "atol"),
        ({"atol": [1.0], "rtol": [1.0, 2.0]}, ValueError, "equal length"),
        ({"rank": 0}, ValueError, "rank: expected at least 1, got 0"),
        ({"rank": 2.5}, TypeError, "rank"),
        ({"power_iterations": -1}, ValueError, "power_iterations"),
        ({"seed": "a"}, TypeError, "seed"),
        ({"seed": -1}, ValueError, "seed"),
        ({"backend": "numpy"}, ValueError, "backend: expected one of .*got 'numpy'"),
        ({"backend": "reference"}, RuntimeError, "'reference' cannot be used for randomized_ess"),
        ({"backend": "native"}, RuntimeError, "'native' cannot be used for randomized_ess"),
        (
            {"backend": "triton"},
            RuntimeError,
            "'triton' cannot be used for randomized_ess: it multiplies with attention",
        ),
    ],
)
def test_refuses(arguments: dict, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        randomized_ess(**{"op": randn(12, 12), "positions": [3], **arguments})


def test_an_operator_is_expected():
    with pytest.raises(TypeError, match="op"):
        randomized_ess([[1.0]], [1])


# --- its parts --------------------------------------------------------------------------------------------------------


PRODUCTS = [
    "attention: window",
    "attention: grouped queries",
    "gated_convolution: plain",
    "dense: noise",
    "short_convolution: four taps",
    "selective_scan: groups",
    "gla: resets",
    "gla: length 96, state 33",
    "recurrence: diagonal",
    "recurrence: dense",
    "recurrence: singular transitions",
    "recurrence: unstable",
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("budget", [1, 2**30])
@pytest.mark.parametrize("name", PRODUCTS)
def test_thin_products(name: str, budget: int, transposed: bool):
    op = build(name)
    heads, L = op.all_heads(), op.length
    T = op.dense_heads(heads)
    positions = torch.tensor([1, L // 2, L // 2 + 3, L - 1])
    X = randn(len(heads), 4, L, 3)
    products = thin_products(op, heads, budget)
    assert isinstance(products, Blockwise if isinstance(op, StateSpace) else Bands)
    Y = products(positions, X, transposed)
    torch.testing.assert_close(Stored(T)(positions, X, transposed), Y, rtol=1e-12, atol=1e-13 * float(Y.abs().max()))
    for p, i in enumerate(positions.tolist()):
        H, expected = T[:, i:, :i], torch.zeros_like(Y[:, p])
        if transposed:
            expected[:, :i] = H.mT @ X[:, p, i:]
        else:
            expected[:, i:] = H @ X[:, p, :i]
        size = torch.linalg.vector_norm(H, dim=(1, 2)).amax()
        torch.testing.assert_close(Y[:, p], expected, rtol=0, atol=1e-13 * float(size))


def test_transitions_too_large_for_blocks():
    # T is small, but the product of a block's transitions is not finite
    A, B, C = torch.full((1, 90, 1), 1e5).double(), randn(1, 90, 1), randn(1, 90, 1)
    B[:, 3:] = 0.0
    C[:, :70] = 0.0
    A[:, 40:45] = 1e-10
    A[:, 70:] = 1e20
    op = ops.recurrence(A, B, C, diagonal=True)
    assert isinstance(thin_products(op, op.all_heads(), 2**30), Bands)


def spectra() -> Tensor:
    """Matrices `[10, 200, 12]` from well conditioned to singular, with zero columns and all zero."""
    U, V = torch.linalg.qr(randn(10, 200, 12)).Q, torch.linalg.qr(randn(10, 12, 12)).Q
    values = torch.stack([powers(0, -e, 12) for e in (0, 2, 5, 8, 11, 14, 17, 60)] + [powers(0, 0, 12)] * 2)
    values[8, 5:], values[9] = 0.0, 0.0
    Y = U * values[:, None] @ V.mT
    Y[0, :, 3:5] = 0.0
    return Y


@pytest.mark.parametrize("method", [householder, cholesky_qr, orthonormal])
def test_orthonormal(method):
    Y = spectra()
    Q, R, *good = method(Y)
    assert all(x.all() for x in good)
    gram = Q.mT @ Q
    ones = gram.diagonal(dim1=1, dim2=2).round()
    torch.testing.assert_close(gram, torch.diag_embed(ones), rtol=0, atol=1e-14)
    torch.testing.assert_close(Q @ R, Y, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.linalg.svdvals(R), torch.linalg.svdvals(Y), rtol=0, atol=1e-14)


def test_random_numbers_do_not_depend_on_the_device():
    assert all(torch.equal(a.cpu(), b) for a, b in zip(draw(9, 3, 1, torch.device(DEVICE)), draw(9, 3, 1, "cpu")))


# --- attention by kernels ---------------------------------------------------------------------------------------------

KERNELS = ["attention: window", "attention: sinks", "attention: additive mask"]


def on_device(op: Operator) -> Operator:
    def moved(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(DEVICE)

    return ops.attention(
        op.q.to(DEVICE), op.k.to(DEVICE), scale=op.scale, attn_mask=moved(op.attn_mask),
        window_size=op.window_size, softcap=op.softcap, sinks=moved(op.sinks),
    )  # fmt: skip


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_give_the_same(name: str, stored: bool, monkeypatch):
    pytest.importorskip("triton")
    op = on_device(build(name))
    if not stored:
        # there is room for T in no budget: it is rebuilt for every product
        monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", str(8 * op.length**2))
    L = op.length
    arguments = {"positions": [5, L // 2, L - 3], "atol": ATOL, "rtol": RTOL, "rank": 20, "power_iterations": 1}
    kernels, plain = (randomized_ess(op, **arguments, backend=backend) for backend in ("triton", "torch"))
    assert torch.equal(kernels.count, plain.count)
    assert torch.equal(kernels.certified, plain.certified)
    torch.testing.assert_close(kernels.error, plain.error, rtol=1e-6, atol=1e-12)


@pytest.mark.gpu
def test_a_long_sequence_takes_the_kernels():
    generator = torch.Generator("cuda").manual_seed(0)
    q, k = (torch.randn(1, 2, 8192, 64, device="cuda", generator=generator) for _ in range(2))
    # local attention: of low rank across any position
    distance = torch.arange(8192, device="cuda")
    mask = -0.2 * (distance[:, None] - distance).double()
    op = ops.attention(q, k, attn_mask=mask)
    found = randomized_ess(op, [1000, 4096], atol=[1e-2, 1e-4], rank=64)
    T = op.rows(op.all_heads(), 4096, 8192)[..., :4096]
    values = torch.linalg.svdvals(T)
    expected = torch.stack([(values > a).sum(-1) for a in (1e-2, 1e-4)])
    assert torch.equal(found.count[:, 0, :, 1][found.certified[:, 0, :, 1]], expected[found.certified[:, 0, :, 1]])
    assert (found.count[:, 0, :, 1] <= expected).all()
