"""The companions of ESS against dense definitions, and the inequalities that they keep."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import logsigmoid, normalize

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.companions import causal_ess, observable_ess, state_spectra, token_influence
from ess_kernels.environment import MEMORY_BUDGET
from ess_kernels.operators.structure import StateSpace
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import CASES, build, powers, rand, randn

STATES = [name for name, about in CASES.items() if about.kind != "tiled"]
# T of these is a sum of cancelling products, which no way of computing it knows to more digits
CANCELLING = {"kda: steps of one, close keys": 1e-11}


def factors(tokens):
    """`Gamma_i` `[N, n, i]` and `O_i` `[N, L - i, n]` for i from 0 to L, as the definitions say."""
    A, N, length, n = tokens.matrices(), *tokens.read.shape
    reached = [tokens.write.new_zeros(N, n, 0)]
    for t in range(length):
        reached.append(torch.cat([A[:, t] @ reached[-1], tokens.write[:, t, :, None]], -1))
    seen = [tokens.read.new_zeros(N, 0, n)]
    for t in reversed(range(length)):
        own = tokens.read[:, t, None]
        rows = [own, seen[0] @ A[:, t]] if tokens.reads_before else [own @ A[:, t], seen[0] @ A[:, t]]
        seen.insert(0, torch.cat(rows, 1))
    return reached, seen


def heads_first(x):
    """`[*batch, m, n]` as `[N, m, n]`."""
    return x.reshape(x.shape[:-2].numel(), *x.shape[-2:])


def check_spectra(name, found, matrices, block=1):
    """`found` `[*batch, P, k]` against the singular values of `matrices[block * i]` at all positions i."""
    found = heads_first(found)
    for i in range(1, found.shape[1] + 1):
        s = torch.linalg.svdvals(matrices[block * i])
        k = min(s.shape[-1], found.shape[-1])
        largest = s[:, :1].clamp_min(1e-300) if s.shape[-1] else 1.0
        assert_close(f"{name}, position {i}", found[:, i - 1, :k] / largest, s[:, :k] / largest, rtol=0, atol=1e-13)
        assert bool((found[:, i - 1, k:] == 0).all()) and bool((s[:, k:] <= 1e-13 * largest).all())


def influence_of(op):
    """Norms of the columns below the diagonal, each token's together, by the definition."""
    T = op.strictly_lower(op.dense())
    unit = T.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300) if T.numel() else T.new_ones(1)
    columns = (T / unit).square().sum(-2).unflatten(-1, (op.length, op.block[1])).sum(-1)
    return columns.sqrt(), unit[..., 0]


def gla(heads=2, length=45, n=6, seed=0):
    torch.manual_seed(seed)
    q, k, v = randn(1, length, heads, n), randn(1, length, heads, n), randn(1, length, heads, 5)
    return q, k, logsigmoid(randn(1, length, heads, n)) / 8, v


@pytest.mark.parametrize("name", STATES)
def test_every_finite_state_agrees_with_dense_factors(name):
    op = build(name)
    tokens = op.inner.tokens(op.all_heads())
    reached, seen = factors(tokens)
    T = op.inner.dense_heads(op.all_heads()).tril(-1)
    for i in range(1, op.inner.length):
        H = seen[i] @ reached[i]
        unit = (seen[i].abs() @ reached[i].abs()).amax((1, 2))
        assert bool(((H - T[:, i:, :i]).abs().amax((1, 2)) <= 1e-13 * unit).all()), f"O Gamma is not H at {i}"
    step = op.inner.length // max(op.length, 1)
    check_spectra("causal", state_spectra(op), reached, step)
    check_spectra("observable", state_spectra(op, "observable"), seen, step)


@pytest.mark.parametrize("name", CASES)
def test_influence_of_every_family_agrees_with_dense_columns(name):
    op = build(name)
    wanted, unit = influence_of(op)
    assert_close(name, token_influence(op) / unit, wanted, rtol=0, atol=CANCELLING.get(name, 1e-13))


CONTENT = [name for name in STATES if "delta" in name or "recurrence" in name or name.startswith("gla: length")]


@pytest.mark.parametrize("name", CONTENT)
def test_content_is_what_the_values_leave(name):
    """`O_i S_i = H_i V`, and the spectra are those of `S_i`."""
    op = build(name)
    columns, outer = op.block[1], op.batch_shape
    torch.manual_seed(1)
    values = randn(*outer, op.length * columns, 3)
    reached, seen = factors(op.inner.tokens(op.all_heads()))
    step = op.inner.length // max(op.length, 1)
    # the sub-tokens that write: those with columns of T
    writes = [t for t in range(op.inner.length) if not hasattr(op, "columns") or t % step in range(*op.columns)]
    by_head = heads_first(values)
    states = []
    for i in range(op.inner.length + 1):
        earlier = [t for t in writes if t < i]
        states.append(reached[i][..., earlier] @ by_head[:, : len(earlier)])
    T = op.dense().reshape(op.num_heads, op.length * op.block[0], -1)
    for i in range(1, op.length):
        H = op.submatrix(T, i)
        outputs = H @ by_head[:, : columns * i]
        rows = (seen[step * i] @ states[step * i]).unflatten(1, (-1, step))
        rows = rows[:, :, slice(*op.rows) if hasattr(op, "rows") else slice(None)].flatten(1, 2)
        assert_close("outputs", rows, outputs, rtol=1e-9, atol=1e-11 * float(outputs.abs().amax() + 1))
    given = values.movedim(1, 2) if len(outer) == 2 else values
    check_spectra("content", state_spectra(op, "content", values=given), states, step)


def test_ess_is_bounded_by_both_factors():
    q, k, g, _ = gla(length=60, n=10)
    k[:, :, 0, 6:] = 0.0
    q[:, :, 1, :3] = 0.0
    op = operators.gla(q, k, g)
    causal, observable = causal_ess(op, 1e-12), observable_ess(op, 1e-12)
    ess = ek.tolerance_ess(op, rtol=1e-10)
    assert bool((ess <= torch.minimum(causal, observable)).all())
    assert causal[0, 0].amax() == 6 and observable[0, 1].amax() == 7


@pytest.mark.parametrize("name", ["gla: decay", "gla: repeated keys", "gla: zero queries", "gla: clustered spectrum"])
def test_ess_is_bounded_by_both_factors_of_hard_operators(name):
    op = build(name)
    bound = torch.minimum(causal_ess(op, 1e-13), observable_ess(op, 1e-13))
    assert bool((ek.tolerance_ess(op, rtol=1e-9) <= bound).all())


def test_two_states_of_which_one_is_reached_and_the_other_seen():
    """Both factors have rank 1 and ESS is 0: the bound is no equality."""
    A = torch.ones(3, 2)
    B, C = torch.tensor([[1.0, 0], [0, 0], [0, 0]]), torch.tensor([[0.0, 0], [0, 1], [0, 1]])
    op = operators.recurrence(A, B, C, diagonal=True)
    assert causal_ess(op).tolist() == [1, 1] and observable_ess(op).tolist() == [1, 1]
    assert ek.tolerance_ess(op, 0.0).tolist() == [0, 0]
    assert token_influence(op).tolist() == [0, 0, 0]


def test_content_and_ess_bound_each_other_in_neither_direction():
    q, k, g, _ = gla(heads=2, length=96, n=16)
    values = randn(1, 96, 2, 32)
    values[:, :, 0] = values[:, :, 0, :2] @ randn(2, 32)  # head 0: values span two directions
    q[:, :, 0, :4] = 0.0
    q[:, :, 1, 1:] = 0.0  # head 1: one coordinate of the state is read
    op = operators.gla(q, k, g)
    s = state_spectra(op, "content", [48], values)
    content = (s > 1e-9 * s[..., :1]).sum(-1)[0, :, 0]
    ess = ek.tolerance_ess(op, rtol=1e-9, positions=[48])[0, :, 0]
    assert content.tolist() == [2, 16] and ess.tolist() == [12, 1]


@pytest.mark.parametrize("n", [1, 7, 16])
def test_causal_ess_of_keys_of_full_rank_is_what_fits(n):
    q, k, g, _ = gla(length=40, n=n)
    op = operators.gla(q, k, g)
    i = torch.arange(1, 40)
    assert torch.equal(causal_ess(op, 1e-10), i.clamp_max(n).expand(1, 2, -1))
    assert torch.equal(observable_ess(op, 1e-10), (40 - i).clamp_max(n).expand(1, 2, -1))


def test_influence_does_not_depend_on_the_basis_and_spectra_do():
    torch.manual_seed(2)
    A, B, C = torch.linalg.qr(randn(2, 30, 5, 5)).Q * 0.9, randn(2, 30, 5), randn(2, 30, 5)
    U, V = (torch.linalg.qr(randn(5, 5)).Q for _ in range(2))
    M, inverse = (U * powers(-1, 1, 5)) @ V.T, (V / powers(-1, 1, 5)) @ U.T
    op = operators.recurrence(A, B, C, diagonal=False)
    other = operators.recurrence(M @ A @ inverse, B @ M.T, C @ inverse, diagonal=False)
    assert_close("influence", token_influence(other), token_influence(op), rtol=1e-11)
    assert not torch.allclose(state_spectra(other), state_spectra(op), rtol=0.1)


def test_a_complex_state_has_twice_as_many_real_numbers():
    """The values are those of the complex factor, real and imaginary parts of every column side by side."""
    torch.manual_seed(3)
    A = torch.polar(rand(20, 3), 6 * rand(20, 3))
    B, C = torch.complex(randn(20, 3), randn(20, 3)), torch.complex(randn(20, 3), randn(20, 3))
    op = operators.recurrence(A, B, C, diagonal=True)
    reached = [torch.zeros(3, 0, dtype=torch.complex128)]
    for t in range(20):
        reached.append(torch.cat([A[t, :, None] * reached[-1], B[t, :, None]], -1))
    check_spectra("causal", state_spectra(op), [torch.cat([x.real, x.imag])[None] for x in reached])
    assert causal_ess(op, 1e-9)[10] == 6


@pytest.mark.parametrize("kind", ["cu_seqlens", "attention_mask"])
def test_each_sequence_of_a_packed_batch_is_its_own(kind):
    torch.manual_seed(4)
    rows, total = (1 if kind == "cu_seqlens" else 2), 39
    value_heads = randn(rows, total, 2, 3)
    q, k, g = randn(rows, total, 2, 4), randn(rows, total, 2, 4), logsigmoid(randn(rows, total, 2, 4))
    if kind == "cu_seqlens":
        marks = torch.tensor([0, 9, 9, 29, 38, 39])
        bounds = [(0, start, stop) for start, stop in pairwise(marks.tolist())]
    else:
        marks, bounds = torch.ones(2, total).long(), [(0, 3, 39), (1, 0, 30)]
        marks[0, :3], marks[1, 30:] = 0, 0
    op = operators.gla(q, k, g, **{kind: marks})
    positions = [38, 5, 1, 14, 28, 5]
    found = {which: state_spectra(op, which) for which in ("causal", "observable")}
    found["content"] = state_spectra(op, "content", values=value_heads)
    influence = token_influence(op)
    outside = torch.ones(rows, 2, total - 1).bool()
    for row, start, stop in bounds:
        one = operators.gla(*(x[row : row + 1, start:stop] for x in (q, k, g)))
        outside[row, :, start : max(stop - 1, start)] = False
        for which, every in found.items():
            values = value_heads[row : row + 1, start:stop] if which == "content" else None
            wanted = state_spectra(one, which, values=values)
            mine = every[row, :, start : max(stop - 1, start), : wanted.shape[-1]]
            assert_close(which, mine, wanted[0], rtol=0, atol=1e-13 * float(every.amax()))
        assert_close("influence", influence[row, :, start:stop], token_influence(one)[0], rtol=1e-12)
    for which, every in found.items():
        assert bool((every[outside] == 0).all())
        some = state_spectra(op, which, positions, value_heads if which == "content" else None)
        assert_close(which, some, every[:, :, [i - 1 for i in positions], : some.shape[-1]], rtol=0, atol=1e-12)
    assert bool((causal_ess(op)[outside] == 0).all())


def test_alike_sequences_have_each_their_own_values():
    """The tokens of a constant recurrence are the same in all sequences, what is written is not."""
    torch.manual_seed(5)
    A, B, C, values = rand(2, 3), randn(2, 3), randn(2, 3), randn(2, 12, 2)
    op = operators.recurrence(A, B, C, diagonal=True, length=12, cu_seqlens=torch.tensor([0, 6, 12]))
    found = state_spectra(op, "content", values=values)
    one = operators.recurrence(A, B, C, diagonal=True, length=6)
    for start in (0, 6):
        wanted = state_spectra(one, "content", values=values[:, start : start + 6])
        assert_close("content", found[:, start : start + 5], wanted, rtol=0, atol=1e-13)
    assert_close("influence", token_influence(op), token_influence(one).repeat(1, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_data_marks_one_head_and_leaves_the_others_bit_identical(bad):
    q, k, g, v = gla(heads=3)
    clean = operators.gla(q, k, g)
    spoilt_k, spoilt_v = k.clone(), v.clone()
    spoilt_k[0, 20, 1, 2] = spoilt_v[0, 20, 1, 2] = bad
    spoilt = operators.gla(q, spoilt_k, g)
    others = [0, 2]
    pairs = [(state_spectra(spoilt, which), state_spectra(clean, which)) for which in ("causal", "observable")]
    pairs.append((token_influence(spoilt), token_influence(clean)))
    pairs.append(tuple(state_spectra(clean, "content", values=x) for x in (spoilt_v, v)))
    for found, wanted in pairs:
        assert bool(found[:, 1].isnan().all()) and torch.equal(found[:, others], wanted[:, others])
    counts = causal_ess(spoilt, [1e-6, 0.1])
    assert bool((counts[:, :, 1] == -1).all())
    assert torch.equal(counts[:, :, others], causal_ess(clean, [1e-6, 0.1])[:, :, others])
    T = operators.attention(randn(1, 3, 9, 4), randn(1, 3, 9, 4)).dense()
    broken = T.clone()
    broken[0, 1, 5, 2] = bad
    found, wanted = token_influence(broken), token_influence(T)
    assert bool(found[:, 1].isnan().all()) and torch.equal(found[:, others], wanted[:, others])


def test_pieces_that_fit_little_memory_give_the_same_numbers(monkeypatch):
    q, k, g, v = gla(heads=5, length=70)
    T = randn(5, 70, 70)
    op = operators.gla(q, k, g)

    def answers():
        return [
            state_spectra(op), state_spectra(op, "observable", [60, 3, 17]), state_spectra(op, "content", None, v),
            token_influence(op), token_influence(T),
        ]  # fmt: skip

    wanted = answers()
    monkeypatch.setenv(MEMORY_BUDGET, "40K")
    for x, y in zip(answers(), wanted):
        assert_close("in pieces", x, y, rtol=1e-12)


def test_positions_keep_their_order_and_repeats():
    q, k, g, v = gla()
    op = operators.gla(q, k, g)
    positions = [44, 3, 17, 3]
    for which in ("causal", "observable", "content"):
        values = v if which == "content" else None
        every = state_spectra(op, which, values=values)
        some = state_spectra(op, which, torch.tensor(positions), values)
        assert some.shape[-1] == every.shape[-1]
        assert_close(which, some, every[:, :, [i - 1 for i in positions]], rtol=1e-13)
    assert state_spectra(op, positions=[2]).shape == (1, 2, 1, 2)
    assert state_spectra(op, positions=[]).shape == (1, 2, 0, 0)
    assert causal_ess(op, positions=[]).shape == (1, 2, 0)
    assert causal_ess(op, [1e-3, 1e-6], [3]).shape == (2, 1, 2, 1)


def test_short_sequences_and_empty_batches():
    for length in (1, 2):
        op = operators.gla(*(randn(1, length, 2, 3) for _ in range(2)), -rand(1, length, 2, 3))
        assert state_spectra(op).shape == (1, 2, length - 1, length - 1)
        assert observable_ess(op).shape == (1, 2, length - 1) and token_influence(op).shape == (1, 2, length)
    none = operators.gla(*(torch.zeros(0, 5, 2, 3) for _ in range(3)))
    assert state_spectra(none).shape == (0, 2, 4, 3) and token_influence(none).shape == (0, 2, 5)
    assert token_influence(torch.zeros(2, 0, 0)).shape == (2, 0)


def test_states_beyond_the_limit_of_small_spectra():
    torch.manual_seed(6)
    q, k = randn(1, 300, 1, 260), randn(1, 300, 1, 260)
    values = state_spectra(operators.linear_attention(q, k, normalize=False), positions=[299])[0, 0, 0]
    assert_close("causal", values, torch.linalg.svdvals(k[0, :299, 0]), rtol=1e-11)


def test_what_requires_grad_and_half_precision_are_taken():
    q, k, g, v = gla()
    wanted = state_spectra(operators.gla(q.bfloat16(), k.bfloat16(), g))
    found = state_spectra(operators.gla(q.bfloat16(), k.bfloat16().requires_grad_(), g))
    assert torch.equal(found, wanted) and not found.requires_grad and found.dtype == torch.float64
    content = state_spectra(operators.gla(q, k, g), "content", [9], v.half().requires_grad_())
    assert content.dtype == torch.float64 and not content.requires_grad


def test_rank_one_transitions_of_many_heads_in_groups():
    torch.manual_seed(7)
    q, k = randn(2, 33, 2, 5), normalize(randn(2, 33, 2, 5), dim=-1)
    op = operators.gated_delta_rule(q, k, g=-rand(2, 33, 4), beta=rand(2, 33, 4))
    assert isinstance(op, StateSpace) and op.rank_one
    reached, seen = factors(op.tokens(op.all_heads()))
    check_spectra("causal", state_spectra(op), reached)
    check_spectra("observable", state_spectra(op, "observable"), seen)
    assert state_spectra(op, "content", [20], randn(2, 33, 4, 8)).shape == (2, 4, 1, 5)


REFUSED = {
    "op: .* got Dense, whose T has none": lambda op, v: causal_ess(torch.zeros(3, 3)),
    "op: .* got Attention, whose T has none": lambda op, v: state_spectra(
        operators.attention(randn(1, 1, 4, 2), randn(1, 1, 4, 2))
    ),
    "op: .* got SumOf, .* state of 12 numbers": lambda op, v: observable_ess(
        operators.sum_of(op, operators.delta_rule(op.q, op.k, beta=rand(1, 45, 2)), weights=(1, 1))
    ),
    "which: .* got 'observed'": lambda op, v: state_spectra(op, "observed"),
    "values: expected None beside which='causal'": lambda op, v: state_spectra(op, values=v),
    "values: expected a tensor": lambda op, v: state_spectra(op, "content"),
    r"values: expected shape \[B, T, H, V\] = \[1, 45, 2, 5\]": lambda op, v: state_spectra(
        op, "content", values=v.mT.movedim(-1, -2)[:, :40]
    ),
    r"positions: expected integers in 1\.\.44": lambda op, v: causal_ess(op, positions=[0]),
    "rtol: expected values >= 0": lambda op, v: causal_ess(op, -1.0),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_arguments_are_named(message):
    q, k, g, v = gla()
    with pytest.raises(ValueError, match=message):
        REFUSED[message](operators.gla(q, k, g), v)


def test_wrong_types_are_named():
    q, k, g, v = gla()
    op = operators.gla(q, k, g)
    with pytest.raises(TypeError, match="rtol: expected a number"):
        causal_ess(op, None)
    with pytest.raises(TypeError, match=r"values: expected .* torch\.int64"):
        state_spectra(op, "content", values=v.long())
    with pytest.raises(TypeError, match="values: expected a floating-point tensor, got list"):
        state_spectra(op, "content", values=v.tolist())
