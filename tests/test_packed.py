"""Packed and padded batches: what the operator test case, which covers every family, cannot know."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from packed_inputs import CU, LENGTHS, PAIRS, T, gla_inputs

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.operators.side_by_side import batches
from ess_kernels.reference import reference_singular_values, reference_tolerance_ess
from ess_kernels.testing.cases import rand, randn


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def cut(tensors, start, stop, axis=1):
    return [x.narrow(axis, start, stop - start) for x in tensors]


# --- an operator of the usual kind that is cut by its transitions says the same ---------------------------------------


def test_gates_that_empty_the_state_say_the_same():
    q, k, g = gla_inputs()
    emptied = g.clone()
    emptied[:, [a for a, b in PAIRS if a < b]] = -torch.inf
    packed, whole = operators.gla(q, k, g, cu_seqlens=CU), operators.gla(q, k, emptied)
    tolerances = [1.0, 1e-1, 1e-3, 1e-6]
    assert torch.equal(ek.tolerance_ess(packed, tolerances), ek.tolerance_ess(whole, tolerances))
    torch.testing.assert_close(ek.entropy_ess(packed), ek.entropy_ess(whole), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed.dense(), whole.dense(), rtol=1e-12, atol=1e-12)


def test_transitions_that_empty_the_state_after_it_is_read_say_the_same():
    A, B, C = rand(1, T, 4), randn(1, T, 4), randn(1, T, 4)
    emptied, kept = A.clone(), B.clone()
    last = [b - 1 for a, b in PAIRS if a < b]
    emptied[:, last], kept[:, last] = 0, 0
    packed = operators.recurrence(A, B, C, diagonal=True, cu_seqlens=CU)
    whole = operators.recurrence(emptied, kept, C, diagonal=True)
    assert torch.equal(ek.tolerance_ess(packed, [1e-1, 1e-3]), ek.tolerance_ess(whole, [1e-1, 1e-3]))
    torch.testing.assert_close(packed.dense(), whole.dense(), rtol=1e-12, atol=1e-12)


def test_a_block_diagonal_matrix_says_the_same():
    q, k = randn(1, 2, T, 4), randn(1, 2, T, 4)
    seen = torch.block_diag(*[torch.ones(n, n) for n in LENGTHS]).bool()
    packed, whole = operators.attention(q, k, cu_seqlens=CU), operators.attention(q, k, attn_mask=seen)
    torch.testing.assert_close(packed.dense(), whole.dense(), rtol=1e-12, atol=1e-14)
    assert torch.equal(reference_tolerance_ess(packed, 0.05), reference_tolerance_ess(whole, 0.05))
    assert torch.equal(ek.tolerance_ess(packed, 0.05), ek.tolerance_ess(whole, 0.05))


# --- one by one -------------------------------------------------------------------------------------------------------


def test_answers_are_bit_for_bit_those_of_single_sequences():
    tensors = gla_inputs()
    op = operators.gla(*tensors, cu_seqlens=CU)
    counts, certificate = ek.tolerance_ess(op, [1e-1, 1e-3], certificate=True)
    entropy, of_entropy = ek.entropy_ess(op, certificate=True)
    for number, (a, b) in enumerate(PAIRS):
        one = operators.gla(*cut(tensors, a, b))
        its, its_certificate = ek.tolerance_ess(one, [1e-1, 1e-3], certificate=True)
        its_entropy, its_of_entropy = ek.entropy_ess(one, certificate=True)
        pairs = [(counts, its), *zip(certificate, its_certificate)]
        pairs += [(entropy, its_entropy), *zip(of_entropy, its_of_entropy)]
        for found, wanted in pairs:
            part = ek.split(found, op)[number]
            assert part.dtype == wanted.dtype
            assert torch.equal(part, wanted.squeeze(-3)), (number, part, wanted)


@pytest.mark.parametrize("backend", ["reference", "torch", "native", "auto"])
def test_positions_in_any_order(backend):
    op = operators.gla(*gla_inputs(), cu_seqlens=CU.int())
    if backend == "native" and not ek.show_config().native:
        pytest.skip("no compiled kernels")
    positions = [79, 3, 6, 3, 5, 30, 1, 22, 23, 24, 70]
    places = torch.tensor(positions) - 1
    every = ek.tolerance_ess(op, [1e-1, 1e-3], backend=backend)
    assert torch.equal(ek.tolerance_ess(op, [1e-1, 1e-3], positions=positions, backend=backend), every[..., places])
    entropy = ek.entropy_ess(op, backend=backend)
    some = ek.entropy_ess(op, positions, backend=backend)
    torch.testing.assert_close(some, entropy[..., places], rtol=1e-4, atol=1e-4)
    values = ek.singular_values(op, positions, backend=backend)
    wanted = reference_singular_values(op, positions)[..., :4]
    assert values.shape == (1, 2, 11, 4)
    torch.testing.assert_close(values, wanted, rtol=1e-12, atol=1e-12)
    assert ek.tolerance_ess(op, positions=[], backend=backend).shape == (1, 2, 0)


def test_attention_with_everything():
    q, k = randn(1, 4, T, 3), randn(1, 2, T, 3)
    sinks = randn(4)
    for mask in (randn(T, T), randn(4, T, T), randn(1, 4, T, T) > -1, randn(1, T), randn(1, 1, T, T)):
        op = operators.attention(q, k, attn_mask=mask, sinks=sinks, window_size=9, softcap=2.0, cu_seqlens=CU)
        parts = ek.split(ek.tolerance_ess(op, 0.1), op)
        for (a, b), part in zip(PAIRS, parts):
            its = mask[..., a:b, a:b] if mask.shape[-2] > 1 else mask[..., a:b]
            one = operators.attention(
                q[:, :, a:b], k[:, :, a:b], attn_mask=its, sinks=sinks, window_size=9, softcap=2.0
            )
            assert torch.equal(part, ek.tolerance_ess(one, 0.1)[0])


def test_rows_have_runs_of_their_own():
    index = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0], [4, 4, 4, 4, 4, 4, 4, 2, 4]], dtype=torch.int32)
    dt, A, B, C = rand(2, 9, 3), -rand(3), randn(2, 9, 1, 4), randn(2, 9, 1, 4)
    op = operators.ssd(dt, A, B, C, seq_idx=index, dt_limit=(0.0, float("inf")))
    parts = ek.split(ek.entropy_ess(op), op)
    runs = [(0, 0, 3), (0, 3, 7), (0, 7, 9), (1, 0, 7), (1, 7, 8), (1, 8, 9)]
    assert len(parts) == len(runs)
    for (row, a, b), part in zip(runs, parts):
        dt_, B_, C_ = (x[row : row + 1, a:b] for x in (dt, B, C))
        torch.testing.assert_close(part, ek.entropy_ess(operators.ssd(dt_, A, B_, C_))[0])
    start, stop = op.sequence_bounds()
    assert start.tolist() == [[0, 0, 3, 3, 3, 3, 7, 7], [0, 0, 0, 0, 0, 0, 7, 8]]
    assert stop.tolist() == [[3, 3, 7, 7, 7, 7, 9, 9], [7, 7, 7, 7, 7, 7, 8, 9]]
    assert op.valid.int().tolist() == [[1, 1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0, 0]]


def test_every_dimension_of_a_recurrence_shares_boundaries():
    A, B, C = rand(3, 2, T, 4), randn(3, 2, T, 4), randn(3, 2, T, 4)
    op = operators.recurrence(A, B, C, diagonal=True, cu_seqlens=CU)
    counts = ek.tolerance_ess(op)
    for (a, b), part in zip(PAIRS, ek.split(counts, op)):
        one = operators.recurrence(*cut((A, B, C), a, b, 2), diagonal=True)
        assert torch.equal(part, ek.tolerance_ess(one))


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("family", ["simple_gla", "rwkv6", "gated_delta_rule"])
def test_sequences_of_similar_lengths_share_a_call(family, backend):
    if backend == "native" and not ek.show_config().native:
        pytest.skip("no compiled kernels")
    lengths = [30, 33, 28, 30, 5, 7, 33, 31]
    boundaries, total = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    q, k, g = gla_inputs(total, n=12)
    k[0, 40, 0, 3] = torch.nan  # of the second sequence
    beta = rand(1, total, 2)

    def make(a, b, **marks):
        q_, k_, g_, beta_ = (x[:, a:b] for x in (q, k, g, beta))
        if family == "simple_gla":
            return operators.simple_gla(q_, k_, g=g_[..., 0], **marks)
        if family == "rwkv6":
            return operators.rwkv6(q_, k_, g_, torch.zeros(2, 12), **marks)
        return operators.gated_delta_rule(q_, k_ / 4, g=g_[..., 0], beta=beta_, **marks)

    op = make(0, total, cu_seqlens=boundaries)
    joined = batches(op.groups(op.sequences.every()))
    assert sorted(sum(len(group.sequences) for group in batch) for batch in joined) == [2, 6]
    for positions in (None, [*range(3, total, 5), 3, 40]):
        counts = ek.tolerance_ess(op, [1.0, 1e-1, 1e-3, 0.0], [0.0, 0.0, 0.1, 0.0], positions, backend)
        every = torch.full((4, *op.batch_shape, total - 1), -7)
        every[..., range(total - 1) if positions is None else [i - 1 for i in positions]] = counts
        for (a, b), part in zip(pairwise(boundaries.tolist()), ek.split(every, op)):
            own = ek.tolerance_ess(make(a, b), [1.0, 1e-1, 1e-3, 0.0], [0.0, 0.0, 0.1, 0.0], backend=backend)
            assert torch.equal(part, torch.where(part == -7, part, own[:, 0]))
            assert bool((own[:, 0, 0] == -1).all()) == (a == 30)


# --- sizes at the edge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundaries", [[0], [0, 0], [0, 0, 0]])
def test_no_tokens(boundaries):
    op = operators.gla(*gla_inputs(0), cu_seqlens=torch.tensor(boundaries))
    assert ek.tolerance_ess(op, [1.0, 0.1]).shape == (2, 1, 2, 0)
    assert ek.entropy_ess(op).shape == (1, 2, 0)
    assert [x.shape for x in ek.split(ek.entropy_ess(op), op)] == [(2, 0)] * (len(boundaries) - 1)
    assert op.dense().shape == (1, 2, 0, 0)
    assert op.valid.shape == (1, 0)


def test_sequences_of_one_token_only():
    op = operators.gla(*gla_inputs(5), cu_seqlens=torch.arange(6))
    assert torch.equal(ek.tolerance_ess(op), torch.zeros(1, 2, 4, dtype=torch.int64))
    assert torch.equal(ek.singular_values(op, [1, 4]), torch.zeros(1, 2, 2, 4, dtype=torch.float64)[..., :1])
    assert not bool(op.valid.any())
    assert bool((op.dense().diagonal(dim1=-2, dim2=-1) != 0).all())
    with pytest.raises(ValueError, match="backend: expected one of"):
        ek.tolerance_ess(op, backend="nonsense")


def test_rows_of_padding_only():
    mask = torch.tensor([[0] * 6, [0, 1, 1, 1, 0, 0], [1] * 6])
    q, k, g = gla_inputs(6, batch=3)
    q[0], k[1, 0] = torch.nan, torch.inf
    op = operators.gla(q, k, g, attention_mask=mask)
    counts = ek.tolerance_ess(op)
    assert bool((counts[0] == 0).all()) and bool((counts[1, :, [0, 3, 4]] == 0).all())
    assert bool((counts[1, :, 1:3] > 0).all()) and bool((counts[2] > 0).all())
    assert [x.shape for x in ek.split(counts, op)] == [(2, 0), (2, 2), (2, 5)]
    assert bool(op.finite(op.all_heads()).all())


def test_an_empty_batch():
    op = operators.gla(*gla_inputs(6, batch=0), attention_mask=torch.ones(0, 6, dtype=torch.bool))
    assert ek.tolerance_ess(op).shape == (0, 2, 5)
    assert ek.split(ek.entropy_ess(op), op) == []
    op = operators.gla(*gla_inputs(6, heads=0), cu_seqlens=torch.tensor([0, 4, 6]))
    assert ek.tolerance_ess(op).shape == (1, 0, 5)
    assert [x.shape for x in ek.split(ek.entropy_ess(op), op)] == [(0, 3), (0, 1)]


# --- bad data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "torch", "native", "auto"])
def test_bad_data_mark_one_sequence_of_one_head(backend):
    if backend == "native" and not ek.show_config().native:
        pytest.skip("no compiled kernels")
    q, k, g = gla_inputs()
    clean = operators.gla(q, k, g, cu_seqlens=CU)
    k = k.clone()
    k[0, 30, 1, 2] = torch.nan  # of the sequence 23..62
    op = operators.gla(q, k, g, cu_seqlens=CU)
    marked = torch.zeros(1, 2, T - 1, dtype=torch.bool)
    marked[0, 1, 23:62] = True
    counts, before = ek.tolerance_ess(op, 0.1, backend=backend), ek.tolerance_ess(clean, 0.1, backend=backend)
    assert torch.equal(counts, torch.where(marked, -1, before))
    entropy, before = ek.entropy_ess(op, backend=backend), ek.entropy_ess(clean, backend=backend)
    assert torch.equal(entropy.isnan(), marked) and torch.equal(entropy[~marked], before[~marked])
    values = ek.singular_values(op, range(1, T), 2, backend=backend)
    assert torch.equal(values.isnan().all(-1), marked)
    assert op.finite(op.all_heads()).tolist() == [True, False]


def test_a_sequence_that_grows_leaves_the_others_alone():
    q, k, g = gla_inputs()
    grown = g.clone()
    grown[0, 23:63, 1] = 9.0
    op, before = operators.gla(q, k, grown, cu_seqlens=CU), operators.gla(q, k, g, cu_seqlens=CU)
    found, wanted = (ek.split(ek.tolerance_ess(x, 0.1), x) for x in (op, before))
    for number in (0, 1, 2, 3, 5):
        assert torch.equal(found[number], wanted[number])


# --- gradients and graphs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gla", "attention"])
def test_gradients_are_those_of_single_sequences(family):
    boundaries = torch.tensor([0, 4, 8, 8, 9, 15])
    tensors = [x.detach() for x in gla_inputs(15)] if family == "gla" else [randn(1, 2, 15, 3), randn(1, 2, 15, 3)]
    axis = 1 if family == "gla" else 2
    leaves, others = ([x.clone().requires_grad_() for x in tensors] for _ in range(2))
    make = getattr(operators, family)
    entropy = ek.entropy_ess(make(*leaves, cu_seqlens=boundaries))
    weights = randn(14)
    (entropy * weights).sum().backward()
    for a, b in zip(boundaries.tolist(), boundaries.tolist()[1:]):
        if b - a > 1:
            (ek.entropy_ess(make(*cut(others, a, b, axis))) * weights[a : b - 1]).sum().backward()
    for x, y in zip(leaves, others):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-9)


def test_numbers_are_checked_inside_of_a_graph():
    torch._dynamo.reset()
    function = torch.compile(
        lambda q, k, g, cu: ek.tolerance_ess(operators.gla(q, k, g, cu_seqlens=cu)), fullgraph=True, backend="aot_eager"
    )
    tensors = gla_inputs()
    assert torch.equal(function(*tensors, CU), ek.tolerance_ess(operators.gla(*tensors, cu_seqlens=CU)))
    with pytest.raises(ValueError, match="cu_seqlens: expected the number of tokens 80 as its last number, got 79"):
        function(*tensors, torch.where(CU == T, T - 1, CU))


def test_options_cross_the_border_of_a_graph():
    def everything(dt, A, B, C, index):
        op = operators.ssd(dt, A, B, C, dt_limit=(-float("inf"), 0.5), seq_idx=index)
        some = ek.entropy_ess(op, [8, 1, 8]), ek.singular_values(op, (8, 2)), ek.aggregate.cap(op)
        return [ek.entropy_ess(op), *some, *op.sequence_bounds()]

    torch._dynamo.reset()
    tensors = rand(2, 9, 3), -rand(3), randn(2, 9, 1, 4), randn(2, 9, 1, 4)
    index = torch.randint(0, 2, (2, 9))
    function = torch.compile(everything, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, function(*tensors, index), everything(*tensors, index)))


def test_copies():
    op = operators.gla(*gla_inputs(), cu_seqlens=CU)
    for again in (copy.deepcopy(op), pickle.loads(pickle.dumps(op))):
        assert torch.equal(ek.tolerance_ess(again), ek.tolerance_ess(op))
    with pytest.raises(AttributeError, match="immutable"):
        op.length = 3
