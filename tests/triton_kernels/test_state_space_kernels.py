"""The kernels of the state-space chain against their PyTorch twins and against the operator itself."""

from __future__ import annotations

import pytest
import torch
from covering import covering

from ess_kernels.testing.recurrences import DEVICE, control, gates, gla, mamba, normal, ssd

triton = pytest.importorskip("triton")

from ess_kernels import operators  # noqa: E402
from ess_kernels.backends.sources import source_of, source_of_tokens  # noqa: E402
from ess_kernels.backends.triton.recurrence import boundary, parts, roots, scans  # noqa: E402
from ess_kernels.engine.blocks import Blocks  # noqa: E402

# by the length
OPERATORS = {
    "gla": lambda T: gla(T=T),
    "gla-bfloat16": lambda T: gla(T=T, dtype=torch.bfloat16),
    "gla-33": lambda T: gla(B=1, T=T, H=1, K=33),
    "retention": lambda T: operators.retention(normal(0, 1, T, 3, 16), normal(1, 1, T, 3, 16)),
    "ssd": lambda T: ssd(B=1, T=T),
    "mamba": lambda T: mamba(L=T),
    "mamba-constant": lambda T: mamba(L=T, constant=True),
    "mamba-float16": lambda T: mamba(L=T, dtype=torch.float16),
    "mamba-20": lambda T: mamba(L=T, N=20),
    "one gate a token": lambda T: operators.simple_gla(
        normal(0, 1, T, 2, 20), normal(1, 1, T, 2, 20), g=gates(2, 1, T, 2)
    ),
    "control": lambda T: control(L=T),
    "control-constant": lambda T: control(L=T, constant=True),
    "wla": lambda T: operators.wla(normal(0, 1, T, 2, 4), normal(1, 1, T, 2, 4), gates(2, 2, 4)),
}


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-13) -> None:
    scale = expected.abs().max().clamp_min(1e-300)
    assert float((found - expected).abs().max() / scale) < tolerance


@covering(name=list(OPERATORS), c=[16, 32])
def test_parts_against_the_twin(name, c):
    op = OPERATORS[name](c + 5)  # a whole block and a partial one: what a block's parts are rests on no other
    heads = op.all_heads().flip(0)
    units = torch.ones(len(heads), dtype=torch.float64, device=DEVICE)
    found = parts.build(source_of(op, heads), 0.5 * units, 4 * units, c)
    expected = parts.build_in_torch(op.tokens(heads), c)
    n = op.state_size
    close(found.X[..., :n], 0.5 * expected.X)
    close(found.Z[..., :n], 4 * expected.Z)
    close(found.Y, 2 * expected.Y)
    close(found.Phi[..., :n], expected.Phi)
    assert not found.X[..., n:].any() and not found.Z[..., n:].any()


def test_a_block_is_the_operator_itself():
    op = gla(B=1, T=64, H=1, K=16)
    units = torch.ones(1, dtype=torch.float64, device=DEVICE)
    built = parts.build(source_of(op, op.all_heads()), units, units, 32)
    T = op.dense()[0, 0].tril(-1)
    for block in range(2):
        rows = slice(32 * block, 32 * block + 32)
        close(built.Y[block], T[rows, rows])
    close(built.X[1] @ built.Z[0].mT, T[32:, :32])


def test_offsets_beyond_32_bits():
    length, n, stride = 80, 16, 2**25 + 16
    try:
        store = torch.empty((length - 1) * stride + n, device=DEVICE)
    except RuntimeError:
        pytest.skip("no 11 GB to be had, though next to nothing of it is used")
    assert store.numel() > 2**31
    q = store.as_strided((1, length, 1, n), (0, stride, n, 1))
    q.copy_(normal(0, 1, length, 1, n, dtype=torch.float32))
    k, g = normal(1, 1, length, 1, n, dtype=torch.float32), gates(2, 1, length, 1, n)
    units = torch.ones(1, dtype=torch.float64, device=DEVICE)
    heads = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    far = parts.build(source_of(operators.gla(q, k, g), heads), units, units, 16)
    near = parts.build(source_of(operators.gla(q.contiguous(), k, g), heads), units, units, 16)
    for found, expected in zip(vars(far).values(), vars(near).values()):
        assert torch.equal(found, expected)


def test_parts_of_ready_made_tokens():
    op = mamba()
    heads = op.all_heads()
    units = torch.ones(len(heads), dtype=torch.float64, device=DEVICE)
    direct = parts.build(source_of(op, heads), units, units, 16)
    again = parts.build(source_of_tokens(op.tokens(heads)), units, units, 16)
    for found, expected in zip(vars(again).values(), vars(direct).values()):
        close(found, expected)


@pytest.mark.parametrize("n, c", [(16, 16), (32, 32), (64, 16)])
def test_gramians(n, c):
    heads, number = 2, 3
    X, Z = normal(0, heads * number, c, n), normal(1, heads * number, c, n)
    blocks = Blocks(X, normal(2, heads * number, c, c), Z, torch.rand_like(X[:, 0]))
    for found, expected in zip(scans.gramians(blocks, heads), scans.gramians_in_torch(blocks, heads)):
        close(found, expected)


@pytest.mark.parametrize("n, c", [(16, 16), (32, 32), (64, 16)])
def test_gramians_of_dense_products(n, c):
    heads, number = 2, 3
    Phi = torch.linalg.qr(normal(3, heads * number, n, n))[0].contiguous()
    Phi[1] = 0.0
    parts_ = (normal(0, heads * number, c, n), normal(2, heads * number, c, c), normal(1, heads * number, c, n), Phi)
    for found, expected in zip(scans.gramians(Blocks(*parts_), heads), scans.gramians_in_torch(Blocks(*parts_), heads)):
        close(found, expected)


def gramian(n: int, rank: int, items: int = 3) -> torch.Tensor:
    A = normal(3, items, n, rank) * torch.logspace(0, -3, n, dtype=torch.float64, device=DEVICE)[:, None]
    A[:, 2] = 0.0
    return A @ A.mT


@pytest.mark.parametrize("n, rank", [(16, 40), (32, 5), (64, 64)])
@pytest.mark.parametrize("kind", ["shifted", "pivoted"])
def test_roots(kind, n, rank):
    P = gramian(n, rank)
    mass = torch.rand(len(P), n, dtype=torch.float64, device=DEVICE)
    kernel = roots.shifted_roots if kind == "shifted" else roots.pivoted_roots
    twin = roots.shifted_roots_in_torch if kind == "shifted" else roots.pivoted_roots_in_torch
    F, size = kernel(P, mass)
    diagonal = P.diagonal(dim1=1, dim2=2)
    unit = (diagonal[:, :, None] * diagonal[:, None]).sqrt().clamp_min(1e-300)
    tolerance = 3 * roots.shift(n) if kind == "shifted" else 40 * roots.EPS
    for root in (F, twin(P, mass)[0]):
        assert float(((root.mT @ root - P) / unit).abs().max()) < tolerance
    assert not F[:, :, 2].any()
    close(size, (F.square() @ mass[..., None])[..., 0].amax(1), 1e-12)


def outside(items: int, n: int, c: int) -> boundary.Outside:
    """Pieces as they belong together, of full rank: `tau = 1` has singular values on both sides."""
    Q, F = normal(0, items, n, n) / n**0.5, normal(1, items, n, n) / n**0.5
    Q = Q @ Q.mT
    X, Z = normal(2, items, c, n) / n**0.5, normal(3, items, c, n) / n**0.5
    S = F @ Q @ F.mT
    AE = torch.cat([F @ X.mT, F @ Q @ Z.mT], 2)
    Y = normal(4, items, c, c).tril(-1) / n**0.5
    return boundary.Outside(S.contiguous(), AE.contiguous(), (Z @ Q @ Z.mT).contiguous(), Y.contiguous())


SIZES_OF_BOUNDARIES = [
    *((16, 16), (32, 32), (64, 32)),
    *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((16, 64), (64, 64), (128, 64))),
]


@pytest.mark.parametrize("definite", [False, True])
@pytest.mark.parametrize("n, c", SIZES_OF_BOUNDARIES)
def test_boundary_against_the_twin(n, c, definite):
    pieces = outside(2, n, c)
    which = torch.tensor([1, 0, 1], device=DEVICE)
    tau = torch.tensor([0.3, 1.7, 0.02], dtype=torch.float64, device=DEVICE)
    growth = torch.arange(3.0, dtype=torch.float64, device=DEVICE)
    arguments = (pieces, which, tau, growth, which, which, definite)
    found, expected = boundary.eliminate(*arguments), boundary.eliminate_in_torch(*arguments)
    for m in range(3):
        close(found.rkc[m], expected.rkc[m], 1e-8)
    close(found.value, expected.value, 1e-12)
    if not definite:
        # a bound of the twin's sums, and no loose one
        ratio = found.growth / expected.growth
        assert bool((ratio > 1 - 1e-6).all()) and bool((ratio < 4).all())
        close(found.least, expected.least, 1e-8)


def test_boundary_notices_bad_pivots():
    pieces = outside(3, 16, 16)
    pieces.S[0] = torch.nan
    pieces.S[1] = torch.eye(16, dtype=torch.float64, device=DEVICE)
    pieces.AE[2] = 0.0
    pieces.S[2] = torch.eye(16, dtype=torch.float64, device=DEVICE)
    which = torch.arange(3, device=DEVICE)
    one = torch.ones(3, dtype=torch.float64, device=DEVICE)
    found = boundary.eliminate(pieces, which, one, 0 * one, which, which, False)
    # a growth that is no number is no answer either
    assert not found.growth[0] < 1e200
    assert not found.growth[1] < 1e200
    assert found.least[2] == 0
