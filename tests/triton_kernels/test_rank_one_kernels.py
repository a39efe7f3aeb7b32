"""Block parts of rank-one transitions by kernels: against their twin, token by token, and in whole answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from ess_kernels.testing import cases
from ess_kernels.testing.recurrences import DEVICE, normal

triton = pytest.importorskip("triton")

import ess_kernels as ek  # noqa: E402
from ess_kernels import operators  # noqa: E402
from ess_kernels.backends.triton.recurrence import engine, rank_one  # noqa: E402
from ess_kernels.engine import cost  # noqa: E402
from ess_kernels.engine.blocks import Blocks  # noqa: E402
from ess_kernels.operators.packing import pack, unpack  # noqa: E402
from ess_kernels.operators.structure import Tokens  # noqa: E402
from ess_kernels.reference import reference_singular_values  # noqa: E402


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def unit(seed: int, *shape: int) -> Tensor:
    return normalize(normal(seed, *shape), dim=-1)


def delta_tokens(
    length: int, n: int, heads: int = 2, *, before: bool = False, keys: Tensor | None = None, step: float | None = None,
    decay: Tensor | None = None,
) -> Tokens:  # fmt: skip
    """KDA: what a token looks up is taken away as it writes."""
    shape = (heads, length, n)
    k = unit(0, *shape) if keys is None else keys
    beta = 2 * uniform(1, heads, length, 1) if step is None else torch.full((heads, length, 1), step, device=DEVICE)
    d = torch.exp(-0.1 * uniform(2, *shape)) if decay is None else decay
    return Tokens(unit(3, *shape), beta.double() * k, d, before, d * k)


def general_tokens(length: int, n: int, heads: int = 2, *, before: bool = False) -> Tokens:
    """RWKV-7: an update of its own, beside the write."""
    k = unit(4, heads, length, n)
    update = k * uniform(5, heads, length, n)
    tokens = delta_tokens(length, n, heads, before=before)
    return replace(tokens, write=normal(6, heads, length, n), lookup=-k, update=update)


MAKERS = {"delta rule": delta_tokens, "own updates": general_tokens}


def close(found: Tensor, expected: Tensor, tolerance: float, floor: float = 1e-300) -> None:
    """The largest error is at most this part of the largest number, or of `floor` if that is larger."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max().clamp_min(floor)) < tolerance


def close_parts(found: Blocks, expected: Blocks, tolerance: float = 1e-13, floor: float = 1e-300) -> None:
    """`found` has states that are padded, and nothing in the padding but ones on the diagonal of `Phi`."""
    n = expected.X.shape[-1]
    close(found.X[..., :n], expected.X, tolerance, floor)
    close(found.Z[..., :n], expected.Z, tolerance, floor)
    close(found.Y, expected.Y, tolerance, floor)
    close(found.Phi[:, :n, :n], expected.Phi, tolerance, floor)
    assert not found.X[..., n:].any() and not found.Z[..., n:].any()
    assert not found.Phi[:, n:, :n].any() and not found.Phi[:, :n, n:].any()


@pytest.mark.parametrize("before", [False, True], ids=["read after", "read before"])
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "length, n, c",
    [
        (21, 5, 16),
        pytest.param(37, 20, 32, marks=pytest.mark.thorough),
        pytest.param(64, 33, 32, marks=pytest.mark.thorough),
        pytest.param(70, 65, 64, marks=pytest.mark.slow),
    ],
)
def test_parts_against_the_twin(length, n, c, kind, before):
    tokens = MAKERS[kind](length, n, before=before)
    close_parts(rank_one.build(tokens, c), rank_one.build_in_torch(tokens, c))


@pytest.mark.parametrize("kind", ["delta rule", pytest.param("own updates", marks=pytest.mark.thorough)])
def test_heads_in_pieces_give_the_same(kind, monkeypatch):
    n, heads, one = 3, 2, torch.ones(2, dtype=torch.float64, device=DEVICE)
    shape = (1, 17, heads, n)
    q, k = 2.0**70 * unit(0, *shape), unit(1, *shape)
    if kind == "delta rule":
        op = operators.delta_rule(q, k, uniform(2, *shape[:3]))
    else:
        op = operators.iplr_delta_rule(q, k, -k, k * uniform(3, *shape))
    whole = engine.TritonRecurrence(op, op.all_heads(), one, one, cost.Cost())
    monkeypatch.setattr(engine, "TOKEN_WORKSPACE", 1)
    pieces = engine.TritonRecurrence(op, op.all_heads(), one, one, cost.Cost())
    for name in ("unit", "finite", "growing"):
        assert torch.equal(getattr(pieces, name), getattr(whole, name)), name
    for name, found, expected in zip(whole.sizes._fields, pieces.sizes, whole.sizes, strict=True):
        assert torch.equal(found, expected), name
    for found, expected in zip(vars(pieces.parts).values(), vars(whole.parts).values(), strict=True):
        assert torch.equal(found, expected)


def same_keys(length: int, n: int) -> Tensor:
    return unit(0, 1, 1, n).expand(1, length, n)


def near_keys(length: int, n: int) -> Tensor:
    return normalize(unit(0, 1, 1, n) + 1e-3 * normal(7, 1, length, n), dim=-1)


LENGTH, SIZE = 32, 8
ONES = torch.ones(1, LENGTH, SIZE, dtype=torch.float64, device=DEVICE)
HARD = {
    "decay of 1e-9": {"decay": 1e-9 * (1 + uniform(8, 1, LENGTH, SIZE))},
    "closed gates": {"decay": torch.where(uniform(8, 1, LENGTH, SIZE) < 0.1, 0.0, 0.98 * ONES)},
    "steps of two": {"decay": ONES, "step": 2.0},
    "steps of two, one key": {"decay": ONES, "step": 2.0, "keys": same_keys(LENGTH, SIZE)},
    "steps of one, one key": {"decay": ONES, "step": 1.0, "keys": same_keys(LENGTH, SIZE)},
    "steps of one, keys within 1e-3": {"decay": ONES, "step": 1.0, "keys": near_keys(LENGTH, SIZE)},
    "steps of 1.9, keys within 1e-3": {"decay": ONES, "step": 1.9, "keys": near_keys(LENGTH, SIZE)},
    "steps of zero": {"step": 0.0},
    "keys that grow": {"step": 0.5, "keys": normal(9, 1, LENGTH, SIZE)},
}


@pytest.mark.parametrize("kind", ["delta rule", pytest.param("own updates", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", HARD)
def test_hard_cases_token_by_token(name, kind):
    """Against products of matrices. Where keys repeat, parts vanish but for rounding: they are held against 1e-2."""
    tokens = delta_tokens(LENGTH, SIZE, 1, **HARD[name])
    matrices = Tokens(tokens.read, tokens.write, tokens.matrices(), False)
    if kind == "own updates":
        tokens = replace(tokens, update=-tokens.write)
    expected = rank_one.build_in_torch(matrices, LENGTH)
    close_parts(rank_one.build(tokens, LENGTH), expected, 1e-12, 1e-2)


def by_doubling(triangle: Tensor) -> Tensor:
    """The inverse as `(I + N)(I + N^2)(I + N^4)...`."""
    one = torch.eye(triangle.shape[-1], dtype=torch.float64, device=DEVICE)
    power = one - triangle
    inverse = one + power
    for _ in range(5):
        power = power @ power
        inverse = inverse + inverse @ power
    return inverse


@pytest.mark.parametrize("name", ["steps of two, one key", "steps of 1.9, keys within 1e-3"])
def test_no_digits_are_lost_where_keys_repeat(name):
    """An inverse by doubling would lose nearly all of them in these cases."""
    tokens = delta_tokens(LENGTH, SIZE, 1, **HARD[name])
    assert tokens.lookup is not None
    products = (tokens.lookup @ tokens.write.mT).tril(-1)
    triangle = torch.eye(LENGTH, dtype=torch.float64, device=DEVICE) + products
    state = torch.nn.functional.pad(tokens.write, (0, 16 - SIZE)).contiguous()
    own = (tokens.read @ tokens.write.mT).tril()
    expected = [x.clone() for x in (state, own)]
    rank_one.substitute_in_torch(triangle, *expected)
    found = [x.clone() for x in (state, own)]
    rank_one.substitute(triangle, *found)
    inverse = by_doubling(triangle)
    doubled = [(state.mT @ inverse).mT, own @ inverse]
    for x, bad, y in zip(found, doubled, expected, strict=True):
        close(x, y, 1e-13)
        assert float((bad - y).abs().max()) > 1e-8
    assert not found[1].triu(1).any()


@pytest.mark.parametrize("items, n, c", [(2, 16, 16), (1, 32, 32), pytest.param(1, 64, 64, marks=pytest.mark.thorough)])
def test_substitution_against_the_twin(items, n, c):
    """What lies above the diagonal of the triangle does not matter."""
    triangle = normal(0, items, c, c).tril(-1) / c**0.5 + torch.eye(c, dtype=torch.float64, device=DEVICE)
    state, own = normal(1, items, c, n), normal(2, items, c, c)
    expected = [x.clone() for x in (state, own)]
    rank_one.substitute_in_torch(triangle, *expected)
    rank_one.substitute(triangle + normal(3, items, c, c).triu(1), state, own)
    for x, y in zip((state, own), expected, strict=True):
        close(x, y, 1e-11)


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made inside has."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            # the interpreter copies whole storages, as bytes
            if isinstance(x, Tensor) and x.dtype == torch.float64 and not x._is_view():
                self.numbers = max(self.numbers, x.numel())
        return result


def test_no_matrix_a_token():
    length, n = 64, 16
    op = operators.delta_rule(unit(0, 1, length, 1, n), unit(1, 1, length, 1, n), uniform(2, 1, length, 1))
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    with Largest() as largest:
        engine.TritonRecurrence(op, op.all_heads(), one, one, cost.Cost())
    # a block's matrices have as many numbers as its tokens
    assert largest.numbers <= 2 * length * n


def check_counts(op: operators.Operator, shares: tuple[float, ...]) -> None:
    """Counts at these shares of the largest singular value; where rounding decides, the certificate says so."""
    values = reference_singular_values(op)
    taus = [share * float(values.max()) for share in shares]
    found, certificate = ek.tolerance_ess(op, taus, backend="triton", certificate=True)
    for m, tau in enumerate(taus):
        wrong = found[m] != (values > tau).sum(-1)
        assert not bool((wrong & ~certificate.unresolved[m]).any())
    assert not bool(certificate.unresolved[0].any())


@pytest.mark.parametrize("kind", ["delta rule", pytest.param("own updates", marks=pytest.mark.thorough)])
def test_counts(kind):
    shape = (1, 20, 1, 5)
    q, k, g, beta = unit(0, *shape), unit(1, *shape), -0.1 * uniform(2, *shape), 2 * uniform(3, *shape[:3])
    g[0, 9] = -torch.inf
    if kind == "delta rule":
        op = operators.kda(q, k, g=g, beta=beta)
    else:
        op = operators.dplr_delta_rule(q, normal(4, *shape), -k, k * beta[..., None] / 2, g)
    check_counts(op, (1e-4,))


SOME = [
    "kda: closed gates",
    "kda: steps of two, one key",
    "kda: steps of 1.9, close keys",
    "gated_delta_rule: value heads",
    "rwkv7: as layers have it",
    "iplr_delta_rule: shears",
    "delta_rule: length 33, state 40",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_answers_of_hard_operators(name):
    packed = pack(cases.build(name))
    assert packed is not None
    op = unpack([None if x is None else x.to(DEVICE) for x in packed.tensors], *packed[1:])
    check_counts(op, (1e-1, 1e-3, 1e-5, 1e-7))


@pytest.mark.thorough
def test_bad_and_growing_heads_stay_alone():
    shape = (1, 12, 3, 4)
    q, k, beta = unit(0, *shape), unit(1, *shape), uniform(2, *shape[:3])
    expected = reference_singular_values(operators.delta_rule(q[:, :, :1], k[:, :, :1], beta[..., :1]))[0, 0]
    q[0, 7, 1, 2] = torch.nan
    # every step of this head multiplies the state by up to a million: its squares overflow
    k[0, :, 2] *= 1e3
    op = operators.delta_rule(q, k, beta)
    found = ek.tolerance_ess(op, 1e-2, backend="triton")
    assert torch.equal(found[0, 0], (expected > 0.01).sum(-1))
    assert bool((found[0, 1] == -1).all())
    assert torch.equal(found[0, 2], ek.tolerance_ess(op, 1e-2, backend="torch")[0, 2])
