"""Compressed operators by kernels: the same answers as in PyTorch at every length, rank and tolerance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels import backends
from ess_kernels.backends.native import block_states
from ess_kernels.compressing import compressed
from ess_kernels.operators.dense import as_operator
from ess_kernels.testing.cases import randn

KERNELS = [s.name for s in backends.describe() if s.usable and s.name == "native"]
# in units of the largest singular value
TOLERANCES = [0.3, 1e-2, 1e-5, 1e-8, 1e-11, 1e-14, 0.0]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=KERNELS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def in_blocks(T: Tensor, block: int, error: float = 1e-12) -> ek.Compressed:
    """As `compress`, in blocks that may be longer than the sequence."""
    return compressed(as_operator(T), error * max([0.0, *T.abs().nan_to_num(0.0).flatten().tolist()]), None, block)


def low_rank(*shape: int, rank: int) -> Tensor:
    """`T` `[*shape, L, L]` for `shape` `[..., L]`."""
    return randn(*shape, rank) @ randn(*shape[:-1], rank, shape[-1])


def values_of(op: ek.Compressed) -> Tensor:
    """Singular values `[N, L - 1, S]` by one decomposition a position, zero padded."""
    T, L = op.dense_heads(op.all_heads()).tril(-1), op.length
    found = [torch.linalg.svdvals(T[:, i:, :i]) for i in range(1, L)]
    return torch.stack([torch.nn.functional.pad(s, (0, L // 2 - s.shape[-1])) for s in found], 1)


def check(op: ek.Compressed, tolerances: list[float], backend: str, resolved: float = 0.98) -> None:
    """Counts are those of the singular values within what the certificate says, and resolved where PyTorch's are."""
    values, L = values_of(op), op.length
    noise = 1e-13 * values[..., :1]  # of that decomposition
    answers = {}
    for name in ("torch", backend):
        found = ek.tolerance_ess(op, atol=tolerances, backend=name, certificate=True)
        counts, width, unresolved = (
            x.reshape(len(tolerances), -1, L - 1) for x in (found[0], found[1].width, found[1].unresolved)
        )
        for m, tau in enumerate(tolerances):
            band = torch.where(width[m] < math.inf, tau * width[m], math.inf)[..., None] + noise
            least, most = ((values > tau + side * band).sum(-1) for side in (1, -1))
            assert (((least <= counts[m]) & (counts[m] <= most)) | unresolved[m]).all(), (name, tau)
        answers[name] = counts, unresolved
    (one, first), (two, second) = answers["torch"], answers[backend]
    # below the rounding errors of the decomposition either count may be right
    sure = torch.tensor([tau > 1e-12 * float(values.max()) for tau in tolerances])[:, None, None]
    assert torch.equal(one[sure & ~first & ~second], two[sure & ~first & ~second])
    assert (~second | first).double().mean() >= resolved
    (one, first), (two, second) = (ek.entropy_ess(op, backend=x, certificate=True) for x in ("torch", backend))
    known = ~(first.unresolved | second.unresolved)
    assert ((one - two).abs() <= (first.error + second.error) * one + 1e-12)[known].all()
    assert (second.error[known] <= (first.error[known] * 1.1).clamp_min(1e-4)).all()
    positions = sorted({1, max(1, L // 2), L - 1})
    one, two = (ek.singular_values(op, positions, backend=x) for x in ("torch", backend))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-13 * float(values.max()))
    one, two = (ek.nuclear_norm(op, backend=x) for x in ("torch", backend))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-12 * float(values.max()))
    one, two = (ek.soft_ess(op, 0.1 * float(values.max()) + 1e-300, backend=x) for x in ("torch", backend))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "block"), [(2, 64), (3, 8), (8, 8), (17, 16), (64, 64), (65, 64), (77, 16), (70, 32)]
)
def test_lengths(length: int, block: int, backend: str):
    """Fewer tokens than a block, one block, and a last block of one token."""
    op = in_blocks(low_rank(length, rank=3) + 1e-6 * randn(length, length), block)
    assert block_states.takes(op.parts[0], length)
    check(op, [tau * float(values_of(op).max()) for tau in TOLERANCES[::2]], backend)


def test_nothing_to_answer(backend: str):
    op = in_blocks(randn(1, 1), 8)
    assert ek.tolerance_ess(op, backend=backend).shape == ek.entropy_ess(op, backend=backend).shape == (0,)
    no_heads = ek.compress(randn(0, 9, 9), 1e-3, block=8)
    assert no_heads.ranks.shape == (0, 1) and ek.tolerance_ess(no_heads, backend=backend).shape == (0, 8)


def with_empty_edges() -> Tensor:
    """Nothing crosses some of the edges of blocks of 8."""
    T = torch.zeros(48, 48, dtype=torch.float64)
    T[:16, :16], T[16:24, 16:24], T[24:, 24:] = randn(16, 16), randn(8, 8), low_rank(24, rank=2)
    return T


HARD = {
    "no edge is crossed": lambda: torch.block_diag(*randn(5, 8, 8)),
    "some edges are not crossed": with_empty_edges,
    "nothing at all": lambda: torch.zeros(40, 40, dtype=torch.float64),
    "full rank": lambda: randn(40, 40),
    "rows fall far": lambda: low_rank(60, rank=4) * 10.0 ** (-0.5 * torch.arange(60.0, dtype=torch.float64)[:, None]),
    "columns fall far": lambda: low_rank(60, rank=4) * 10.0 ** (-0.5 * torch.arange(60.0, dtype=torch.float64)),
    "a sink": lambda: low_rank(60, rank=2) + 1e9 * torch.nn.functional.pad(randn(60, 1), (0, 59)),
    "ties": lambda: torch.diag_embed(torch.ones(60, dtype=torch.float64), -1)[:60, :60],
    "graded": lambda: low_rank(60, rank=1) + 1e-5 * low_rank(60, rank=3) + 1e-10 * low_rank(60, rank=3),
    "huge": lambda: 1e200 * low_rank(40, rank=3),
    "tiny": lambda: 1e-200 * low_rank(40, rank=3),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_operators(name: str, backend: str):
    op = in_blocks(HARD[name](), 8)
    largest = float(values_of(op).max()) or 1.0
    check(op, [tau * largest for tau in TOLERANCES], backend)


def test_tolerances_on_singular_values(backend: str):
    """Where the tolerance is a singular value to the last digit nobody can tell, and the certificate says so."""
    op = in_blocks(low_rank(60, rank=5), 8)
    values = values_of(op)[0]
    at, which = [8, 20, 35, 50], [0, 2, 4, 4]
    tolerances = [float(values[i - 1, k]) for i, k in zip(at, which, strict=True)]
    check(op, tolerances, backend)
    counts, certificate = ek.tolerance_ess(op, atol=tolerances, backend=backend, certificate=True)
    for m, (i, k) in enumerate(zip(at, which, strict=True)):
        assert bool(certificate.unresolved[m, i - 1]) and int(counts[m, i - 1]) in (k, k + 1)
    relative = [ek.tolerance_ess(op, rtol=[1e-3, 1e-9], backend=x) for x in ("torch", backend)]
    assert torch.equal(*relative)


def test_heads_of_all_kinds_in_one_batch(backend: str):
    """Ranks of their own, a bad head, and one whose blocks kernels do not take; none touches its neighbours."""
    T = low_rank(2, 3, 40, rank=3)
    T[0, 1, 30, 2] = torch.nan
    T[1, 0] = randn(40, 40)
    T[1, 2] = 0.0
    found = in_blocks(T, 16)
    tau = [3.0, 1e-3]
    counts, ess = ek.tolerance_ess(found, atol=tau, backend=backend), ek.entropy_ess(found, backend=backend)
    assert counts.shape == (2, 2, 3, 39) and ess.shape == (2, 3, 39)
    assert (counts[:, 0, 1] == -1).all() and ess[0, 1].isnan().all()
    assert torch.equal(counts, ek.tolerance_ess(found, atol=tau, backend="torch"))
    for b, h in ((0, 0), (0, 2), (1, 0), (1, 1), (1, 2)):
        alone = in_blocks(T[b, h], 16, 1e-12 * float(T.nan_to_num().abs().max()) / (float(T[b, h].abs().max()) or 1.0))
        assert torch.equal(ek.tolerance_ess(alone, atol=tau, backend=backend), counts[:, b, h])
        assert torch.equal(ek.entropy_ess(alone, backend=backend), ess[b, h])


def test_blocks_that_kernels_do_not_take_are_left_to_pytorch():
    T = low_rank(60, rank=4)
    for length, block in ((60, 13), (60, 60), (0, 8)):
        op = in_blocks(T[:length, :length], block)
        assert not block_states.takes(op.parts[0], length)
        for metric in (ek.tolerance_ess, ek.entropy_ess):
            assert torch.equal(metric(op, backend="native"), metric(op, backend="torch"))
    wide = randn(600, 600)
    op = in_blocks(wide, 64)
    assert int(op.ranks.max()) > 256 and not block_states.takes(op.parts[0], 600)


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 200])
def test_bounds_from_compressed_operators(length: int):
    """`bounded_ess` asks `auto`, which is these kernels where they are installed."""
    T = low_rank(length, rank=3) + 1e-9 * randn(length, length)
    found = ek.bounded_ess(T, [1.0, 1e-3], method="compressed")
    exact = ek.tolerance_ess(T, atol=[1.0, 1e-3], backend="reference")
    assert ((found.lower <= exact) & (exact <= found.upper)).all()
    assert ((found.upper - found.lower) == 0).double().mean() > 0.98 or length == 1
    ess = ek.bounded_entropy_ess(T, method="compressed")
    exact = ek.entropy_ess(T, backend="reference")
    assert ((ess.lower <= exact * (1 + 1e-9)) & (exact <= ess.upper * (1 + 1e-9))).all()
