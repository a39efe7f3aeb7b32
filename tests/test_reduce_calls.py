"""Calls of `reduce`: packed and padded batches, bad data, arguments that do not fit, and what is refused."""

import pytest
import torch
from packed_inputs import CU, PAIRS, T, gla_inputs
from torch.nn.functional import logsigmoid

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.reduction import reduce
from ess_kernels.testing.cases import rand, randn

BALANCED = (False, True)
FIELDS = ("A", "B", "C", "D", "state_sizes", "error_bound")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tensors(reduced):
    return [getattr(reduced, name) for name in FIELDS]


# --- packed and padded batches ----------------------------------------------------------------------------------------


def packed_attention(**sequences):
    return operators.attention(3 * randn(1, 2, T, 4), randn(1, 2, T, 4), **sequences)


PACKED = {
    "recurrence": lambda **sequences: operators.gla(*gla_inputs(), **sequences),
    "attention": packed_attention,
    "alike": lambda **sequences: operators.short_convolution(randn(3, 4), T, **sequences),
    "shared by a batch": lambda **sequences: operators.recurrence(
        rand(2, 3, T, 4), randn(2, 3, T, 4), randn(2, 3, T, 4), diagonal=True, **sequences
    ),
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("balanced", BALANCED)
def test_packed(kind, balanced):
    op = PACKED[kind](cu_seqlens=CU)
    whole = op.dense()
    torch.testing.assert_close(reduce(op, balanced=balanced).dense(), whole, rtol=1e-12, atol=1e-12)
    reduced = reduce(op, atol=0.1, balanced=balanced)
    assert (reduced.state_sizes[..., 1:] <= ek.tolerance_ess(op, atol=0.1)).all()
    error = torch.linalg.matrix_norm(whole - reduced.dense())
    torch.testing.assert_close(reduced.error_bound, error, rtol=1e-9, atol=1e-12)
    assert (error > 0).all()
    for start, stop in PAIRS:
        if start < stop:
            # the state is empty where a sequence starts, and after it ends
            assert not reduced.state_sizes[..., start].any()
            assert not reduced.A[..., stop - 1, :, :].any()
            assert not reduced.B[..., stop - 1, :].any()
    u = randn(*op.batch_shape, T, 2)
    torch.testing.assert_close(reduced.apply(u), reduced.dense() @ u)


def test_a_packed_sequence_is_reduced_as_by_itself():
    q, k, g = gla_inputs()
    start, stop = PAIRS[4]
    packed = reduce(operators.gla(q, k, g, cu_seqlens=CU), atol=0.1)
    alone = reduce(operators.gla(*(x[:, start:stop] for x in (q, k, g))), atol=0.1)
    assert torch.equal(packed.state_sizes[..., start:stop], alone.state_sizes)
    torch.testing.assert_close(packed.dense()[..., start:stop, start:stop], alone.dense())


def test_padding_is_not_looked_at():
    q, k, g = gla_inputs(20, batch=2)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, :4], mask[1, 15:] = False, False
    for x in (q, k, g):
        x[~mask] = torch.nan
    reduced = reduce(operators.gla(q, k, g, attention_mask=mask), atol=0.1)
    assert reduced.error_bound.isfinite().all()
    for x in tensors(reduced)[:-1]:
        outside = x.movedim(1, 0)[:, ~mask] if x.dim() < 3 else x.movedim(2, 1)[~mask]
        assert not outside.any()
    alone = reduce(operators.gla(q[:1, 4:], k[:1, 4:], g[:1, 4:]), atol=0.1)
    assert torch.equal(reduced.state_sizes[:1, :, 4:], alone.state_sizes)


def test_bad_data_stay_in_their_sequence():
    q, k, g = gla_inputs()
    good = reduce(operators.gla(q, k, g, cu_seqlens=CU), atol=0.1)
    start, stop = PAIRS[3]
    k[0, start + 2, 1] = torch.nan
    bad = reduce(operators.gla(q, k, g, cu_seqlens=CU), atol=0.1)
    inside = torch.zeros(T, dtype=torch.bool)
    inside[start:stop] = True
    assert (bad.state_sizes[0, 1, inside] == -1).all()
    assert bad.A[0, 1, inside].isnan().all()
    assert bad.error_bound.isnan().tolist() == [[False, True]]
    assert torch.equal(bad.state_sizes[0, 1, ~inside], good.state_sizes[0, 1, ~inside])
    assert torch.equal(bad.state_sizes[0, 0], good.state_sizes[0, 0])
    n = min(bad.A.shape[-1], good.A.shape[-1])
    assert torch.equal(bad.A[0, 1, ~inside][:, :n, :n], good.A[0, 1, ~inside][:, :n, :n])
    # what comes behind the sequence has its own rows and outputs
    assert bad.dense()[0, 1, inside, 0].isnan().all()
    torch.testing.assert_close(bad.dense()[0, 1, ~inside], good.dense()[0, 1, ~inside])
    u = randn(1, 2, T, 3)
    assert bad.apply(u)[0, 1].isnan().all(-1).tolist() == inside.tolist()
    torch.testing.assert_close(bad.apply(u)[0, 1, ~inside], good.apply(u)[0, 1, ~inside])
    assert (ek.tolerance_ess(bad.operator(), atol=0.1)[0, 1] == -1).all()


# --- bad data ---------------------------------------------------------------------------------------------------------


def inputs_of(kind, heads=4, length=30):
    if kind == "attention":
        return operators.attention, {"q": 3 * randn(1, heads, length, 5), "k": randn(1, heads, length, 5)}, 1
    n = 40 if kind == "large" else 5
    q, k, g = (randn(1, length, heads, n) for _ in range(3))
    if kind == "matrices":
        A = randn(heads, length, n, n) / 4
        return (
            lambda A, B, C: operators.recurrence(A, B, C, diagonal=False),
            {"A": A, "B": randn(heads, length, n), "C": randn(heads, length, n)},
            0,
        )
    return operators.gla, {"q": q, "k": k, "g": logsigmoid(g)}, 2


@pytest.mark.parametrize("kind", ["small", "large", "matrices", "attention"])
@pytest.mark.parametrize("balanced", BALANCED)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_head_spoils_no_other(kind, balanced, value):
    constructor, inputs, axis = inputs_of(kind)
    good = reduce(constructor(**inputs), atol=0.3, balanced=balanced)
    for name in inputs:
        changed = {other: x.clone() for other, x in inputs.items()}
        changed[name].select(axis, 1)[..., -1].view(-1)[0] = value
        bad = reduce(constructor(**changed), atol=0.3, balanced=balanced)
        n = min(good.A.shape[-1], bad.A.shape[-1])
        for field, x, y in zip(FIELDS, tensors(bad), tensors(good), strict=True):
            x, y = (z.flatten(0, 1) if kind != "matrices" else z for z in (x, y))
            assert (x[1] == -1).all() if field == "state_sizes" else x[1].isnan().all(), (name, field)
            if field in "ABC":
                x, y = x[..., :n], y[..., :n]
            if field == "A":
                x, y = x[..., :n, :], y[..., :n, :]
            others = [0, 2, 3]
            assert torch.equal(x[others], y[others]), (name, field)


def test_an_overflow_is_not_passed_for_a_number():
    growing = torch.full((2, 130, 3), 0.9, dtype=torch.float64)
    growing[0] = 1e3
    op = operators.recurrence(growing, randn(2, 130, 3), randn(2, 130, 3), diagonal=True)
    for balanced in BALANCED:
        reduced = reduce(op, balanced=balanced)
        assert (reduced.state_sizes[0] == -1).all()
        assert reduced.error_bound.isnan().tolist() == [True, False]
        torch.testing.assert_close(reduced.dense()[1], op.dense()[1], rtol=1e-11, atol=1e-11)


def test_a_matrix_beyond_float64_is_a_bad_head():
    T = torch.ones(2, 8, 8, dtype=torch.float64)
    T[0] = 1e200
    op = operators.sum_of(operators.dense(T), operators.dense(T), weights=(1e200, 1.0))
    reduced = reduce(op, atol=0.1)
    assert (reduced.state_sizes[0] == -1).all()
    assert reduced.state_sizes[1].tolist() == [0] + 7 * [1]
    torch.testing.assert_close(reduced.dense()[1], op.dense()[1])


def test_bad_numbers_on_the_diagonal_mark_no_head():
    r, k, w, u = randn(1, 20, 2, 3), randn(1, 20, 2, 3), -rand(1, 20, 2, 3), randn(2, 3)
    u[0, 0] = torch.nan
    reduced = reduce(operators.rwkv6(r, k, w, u))
    assert reduced.error_bound.isfinite().all()
    assert reduced.D[0, 0].isnan().all()
    assert reduced.D[0, 1].isfinite().all()


# --- arguments --------------------------------------------------------------------------------------------------------


def test_neither_gradients_nor_the_inputs_are_touched():
    q, k, g = (x.requires_grad_() for x in gla_inputs(12))
    before = q.detach().clone()
    reduced = reduce(operators.gla(q, k, g), atol=0.1)
    assert reduced.apply(torch.ones(1, 2, 12, 1)).isfinite().all()
    assert not any(x.requires_grad for x in tensors(reduced))
    assert torch.equal(q.detach(), before)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads):
    op = operators.attention(3 * randn(1, 5, 40, 4), randn(1, 5, 40, 4))
    expected = reduce(op, atol=0.1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = reduce(op, atol=0.1)
    finally:
        torch.set_num_threads(before)
    for x, y in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (TypeError, "op: expected an operator or a tensor", {"op": "gla"}),
        (ValueError, "T: expected shape", {"op": torch.ones(3, 4)}),
        (ValueError, "atol: expected a number >= 0", {"atol": -1.0}),
        (ValueError, "atol: expected a finite number", {"atol": float("nan")}),
        (TypeError, "atol: expected a finite number", {"atol": [1.0]}),
        (TypeError, "rank: expected an integer", {"rank": 1.5}),
        (ValueError, "rank: expected at least 0", {"rank": -1}),
        (TypeError, "balanced: expected a bool", {"balanced": 1}),
    ],
)
def test_arguments_that_do_not_fit(error, message, arguments):
    op = arguments.pop("op", torch.ones(4, 4))
    with pytest.raises(error, match=message):
        reduce(op, **arguments)


def test_several_inputs_a_token_are_refused_with_the_reason():
    op = operators.block_recurrence(rand(20, 4), randn(20, 4, 2), randn(20, 3, 4), diagonal=True)
    with pytest.raises(NotImplementedError, match=r"op: .* got 3 and 2: .* reduce op\.inner"):
        reduce(op)
    torch.testing.assert_close(reduce(op.inner).dense(), op.inner.dense())
    with pytest.raises(NotImplementedError, match="got 2 and 2: a reduced recurrence has one input and one output"):
        reduce(operators.dense(randn(8, 8), block=2))


def test_values_of_another_shape_are_refused():
    reduced = reduce(operators.gla(*gla_inputs(12)))
    assert reduced.apply(torch.ones(1, 2, 12, 3)).dtype == torch.float64
    with pytest.raises(ValueError, match=r"u: expected shape \[\*batch, L, d\] = \[1, 2, 12, d\], got \[1, 2, 12\]"):
        reduced.apply(torch.ones(1, 2, 12))
    with pytest.raises(TypeError, match="u: expected"):
        reduced.apply(torch.ones(1, 2, 12, 3, dtype=torch.int64))


def test_transforms_are_refused():
    with pytest.raises(NotImplementedError, match="op: transforms"):
        torch.func.vmap(lambda T: reduce(T).error_bound)(randn(2, 6, 6))
