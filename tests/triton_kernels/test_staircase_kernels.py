"""The staircase kernels against inertia, determinants and the engine's own staircase."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ess_kernels.backends.triton.staircase.descent import Roots, descend
from ess_kernels.engine import staircase as engine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
kinds = pytest.mark.parametrize("definite", [False, True], ids=["counts", "definite"])
# nodes of 64 pass through every kernel, those of 8 are roots without a level above them
sizes = pytest.mark.parametrize(
    "m", [8, 64, *(pytest.param(m, marks=() if DEVICE == "cuda" else pytest.mark.slow) for m in (16, 32))]
)
UNTOUCHED = -7.0


def random_nodes(J: int, m: int, definite: bool, seed: int = 0) -> Tensor:
    """`[J, 3, m, m]`: symmetric indefinite, or with positive definite R and negative definite C."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(J, 2 * m, 2 * m, generator=generator, dtype=torch.float64)
    R, K, C = A[:, :m, :m], A[:, :m, m:], A[:, m:, m:]
    if definite:
        one = torch.eye(m, dtype=torch.float64)
        R, C = one + R @ R.mT, -one - C @ C.mT
    else:
        R, C = R + R.mT, C + C.mT
    return torch.stack([R, K, C], 1).contiguous().to(DEVICE)


def roots_of(rkc: Tensor, **given: Tensor) -> Roots:
    """Roots from nothing, all positions there, one after the other, unless something else is given."""
    J, m = rkc.shape[0], rkc.shape[-1]
    zeros = torch.zeros(J, dtype=torch.float64, device=DEVICE)
    index = torch.arange(J, device=DEVICE)
    fields = {"value": zeros, "growth": zeros, "least": zeros + torch.inf, "place": index * m}
    return Roots(rkc, **(fields | {"limit": torch.full_like(index, m)} | given))


def answers(N: int) -> tuple[Tensor, Tensor, Tensor]:
    value, growth, least = torch.full((3, N), UNTOUCHED, dtype=torch.float64, device=DEVICE)
    return value, growth, least


def run(roots: Roots, definite: bool = False, **options: int) -> tuple[Tensor, Tensor, Tensor]:
    """Value, growth and least row `[J, m]` where every node has its own m places."""
    out = answers(len(roots) * roots.size)
    descend(roots, *out, definite, **options)
    value, growth, least = (x.view(len(roots), roots.size) for x in out)
    return value, growth, least


def twin(roots: Roots, definite: bool = False) -> engine.Answer:
    """The same by the engine, `[J, m]`."""
    J, m = len(roots), roots.size
    answer = engine.Answer.of(torch.ones(J, m, dtype=torch.bool, device=DEVICE))
    item = torch.arange(J, device=DEVICE)
    start = torch.zeros_like(item)
    R, K, C = (x.clone() for x in roots.rkc.unbind(1))
    nodes = engine.Nodes(R, K, C, roots.value, roots.growth, roots.least, item, start, start + m)
    engine.descend(nodes, answer, definite, 1 << 28)
    return answer


def submatrix(rkc: Tensor, s: int) -> Tensor:
    """Rows `s..m-1` and columns `0..s-1` of every node, `[J, m, m]`."""
    R, K, C = rkc.unbind(1)
    above = torch.cat([R[:, s:, s:], K[:, s:, :s]], 2)
    return torch.cat([above, torch.cat([K[:, s:, :s].mT, C[:, :s, :s]], 2)], 1)


@functools.cache
def outcome(m: int, definite: bool) -> tuple[Roots, tuple[Tensor, Tensor, Tensor]]:
    """Random roots with a past, scattered places and missing positions, and the flat answers to them."""
    J = 2
    generator = torch.Generator().manual_seed(m)
    value, growth = (torch.randint(9, (J,), generator=generator).double().to(DEVICE) for _ in range(2))
    roots = roots_of(
        random_nodes(J, m, definite, seed=m),
        value=value,
        growth=growth,
        least=torch.tensor([torch.inf, 1e-6], dtype=torch.float64, device=DEVICE),
        place=torch.tensor([m + 5, 0], device=DEVICE),
        limit=torch.tensor([m, m // 2 + 1], device=DEVICE),
    )
    if definite:
        # neither read nor written: they need not even be there
        roots.growth = roots.least = torch.empty(0, dtype=torch.float64, device=DEVICE)
    out = answers(3 * m)
    descend(roots, *out, definite)
    return roots, out


def by_node(roots: Roots, flat: Tensor) -> list[Tensor]:
    """The existing positions of each root."""
    return [flat[p : p + n] for p, n in zip(roots.place.tolist(), roots.limit.tolist())]


@sizes
def test_counts_are_the_inertia(m: int) -> None:
    roots, (value, _, _) = outcome(m, False)
    positive = torch.stack([(torch.linalg.eigvalsh(submatrix(roots.rkc, s)) > 0).sum(-1) for s in range(m)], 1)
    for j, got in enumerate(by_node(roots, value)):
        assert (got == roots.value[j] + positive[j, : len(got)]).all()


@sizes
def test_definite_values_are_log_determinants(m: int) -> None:
    roots, (value, _, _) = outcome(m, True)
    expected = torch.stack([torch.linalg.slogdet(submatrix(roots.rkc, s)).logabsdet for s in range(m)], 1)
    for j, got in enumerate(by_node(roots, value)):
        torch.testing.assert_close(got, roots.value[j] + expected[j, : len(got)], rtol=1e-12, atol=1e-11)


@sizes
def test_growth_and_least_row_are_the_engines(m: int) -> None:
    roots, (value, growth, least) = outcome(m, False)
    expected = twin(roots)
    for j in range(len(roots)):
        n = int(roots.limit[j])
        mine, its = by_node(roots, growth)[j], expected.growth[j, :n]
        # their last digits differ as much as rounding errors have grown
        assert (mine >= its * (1 - 1e-6)).all()
        assert (mine <= 3 * its).all()
        torch.testing.assert_close(by_node(roots, least)[j], expected.least[j, :n], rtol=1e-6, atol=0)
        assert (by_node(roots, value)[j] == expected.value[j, :n]).all()


@kinds
@sizes
def test_what_is_not_asked_for_is_not_written(m: int, definite: bool) -> None:
    roots, out = outcome(m, definite)
    written = torch.zeros(out[0].shape, dtype=torch.bool, device=DEVICE)
    for positions in by_node(roots, written):
        positions.fill_(True)
    for k, got in enumerate(out):
        untouched = ~written | (definite and k > 0)
        assert (got[untouched] == UNTOUCHED).all()
        assert (got[~untouched] != UNTOUCHED).all()


def test_a_batch_is_cut_to_the_budget() -> None:
    m = 16
    roots = roots_of(random_nodes(3, m, False, seed=3))
    for got, whole in zip(run(roots, budget=2 * 18 * m * m), run(roots)):
        assert (got == whole).all()


@pytest.mark.parametrize(
    "m", [8, 32, pytest.param(16, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
def test_what_is_not_a_number_and_what_is_zero_is_noticed(m: int) -> None:
    rkc = random_nodes(7, m, False, seed=5)
    h = m // 2
    # nothing but NaN, one in C (a column), one in R (a row)
    rkc[0] = rkc[1, 2, 0, 0] = rkc[2, 0, -1, -1] = torch.nan
    # the first pivots of both halves are zero, while much depends on them
    rkc[3, 0, h, h] = rkc[3, 2, 0, 0] = 0
    # a row that is zero as a whole
    rkc[4, 0, h], rkc[4, 0, :, h], rkc[4, 1, h] = 0, 0, 0
    rkc[5] = 0
    value, growth, least = run(roots_of(rkc))
    assert growth[0].isinf().all()
    assert growth[1, 1:].isinf().all()
    assert growth[2].isinf().all()
    assert (growth[3] > 1e200).all()
    assert (least[4, :h] == 0).all()
    assert (least[5] == 0).all()
    # while their neighbour does not suffer
    assert (value[6] == twin(roots_of(rkc[6:])).value[0]).all()
    assert growth[6].isfinite().all() and (least[6] > 0).all()


def test_bad_nodes_are_refused_and_none_are_fine() -> None:
    rkc = random_nodes(2, 8, False)
    out = answers(16)
    with pytest.raises(ValueError, match="one of"):
        descend(roots_of(rkc[..., :4, :4].contiguous()), *out, False)
    with pytest.raises(ValueError, match="contiguous float64"):
        descend(roots_of(rkc.float()), *out, False)
    with pytest.raises(ValueError, match="contiguous float64"):
        descend(roots_of(rkc.mT), *out, False)
    with pytest.raises(ValueError, match="int64"):
        descend(roots_of(rkc, limit=torch.tensor([8, 8], dtype=torch.int32)), *out, False)
    descend(roots_of(rkc[:0]), *out, False)
    assert (out[0] == UNTOUCHED).all()


@pytest.mark.gpu
@kinds
@pytest.mark.parametrize("m", [8, 16, 32, 64])
def test_many_nodes_at_once_and_again(m: int, definite: bool) -> None:
    """More nodes than a GPU has programs at a time, whose offsets pass 2^31 bytes; bit for bit the same twice."""
    J = 300_000_000 // (3 * m * m)
    few = random_nodes(16, m, definite, seed=6)
    rkc = few.repeat((J + 15) // 16, 1, 1, 1)
    first, again = (run(roots_of(rkc), definite, budget=1 << 30) for _ in range(2))
    expected = twin(roots_of(few), definite)
    for k, (one, two) in enumerate(zip(first, again)):
        assert torch.equal(one, two)
        if k == 0 or not definite:
            assert torch.equal(one, one[:16].repeat(len(rkc) // 16, 1))
    torch.testing.assert_close(first[0][:16], expected.value, rtol=1e-12, atol=1e-11)
